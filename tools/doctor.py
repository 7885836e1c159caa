"""`kit.py doctor`: what is missing on this machine for the class, and what to do. It changes nothing."""

import dataclasses
import functools
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from urllib.parse import urlsplit

from common import cli, config, console
from tools import environment
from tools.command import docker_answers
from tools.install import has_apt, has_brew
from tools.node import answers_amqp, find_server

COLUMNS = 80  # what the tables and the lines of an event are made for

Finding = tuple[bool, str]  # whether it is as it should be, and the words


def main() -> int:
    """A line for each finding; 1 if something is missing."""
    findings = [finding for check in CHECKS for finding in check()]
    for good, words in findings:
        console.say(f"{console.paint('✔', 'ok') if good else console.paint('✘', 'error')} {words}")
    missing = sum(not good for good, _ in findings)
    if missing:
        console.complain(f"Cosas que arreglar: {missing} (líneas con ✘).")
        return cli.EXIT_CHECK_FAILED
    console.say("Todo listo. La demo: python kit.py demo", "ok")
    return cli.EXIT_OK


def python() -> Iterator[Finding]:
    yield True, f"Python {sys.version.split()[0]}"  # kit.py itself refuses an old one


def packages() -> Iterator[Finding]:
    if all(map(importlib.util.find_spec, ("pika", "dotenv"))):
        yield True, f"los paquetes del kit están en {sys.prefix}"
    elif importlib.util.find_spec("ensurepip"):
        yield False, cli.NO_PACKAGES
    else:
        yield False, f"a este Python le falta el módulo venv: sudo apt-get install {environment.venv_package()}"


def settings() -> Iterator[Finding]:
    try:
        loaded = config.load()
    except ModuleNotFoundError:  # .env is there and python-dotenv is not: packages() says it
        return
    except config.KitError as problem:
        yield False, str(problem)
        return
    delays = ", ".join(f"{delay:g}" for delay in loaded.retry_delays)
    yield True, f"los ajustes valen: esperas de {delays} s, colas {loaded.queue_type}, estado en {loaded.state_dir}"
    yield from state_dir(loaded)
    yield from broker(loaded)
    yield from mail_server(loaded)


def state_dir(loaded: config.Settings) -> Iterator[Finding]:
    """Try to write where STATE_DIR is, or will be."""
    folder = loaded.state_dir
    try:
        folder = next(there for there in (folder, *folder.parents) if there.exists())
        tempfile.TemporaryFile(dir=folder).close()
        yield True, f"se puede escribir en {folder}"
    except OSError as error:
        yield False, f"no se puede escribir en {folder} ({console.reason(error)}): cambia STATE_DIR o sus permisos"


def broker(loaded: config.Settings) -> Iterator[Finding]:
    for url in loaded.urls:
        parts = urlsplit(url)
        port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
        where = f"{parts.hostname}:{port}"
        if not accepts(parts.hostname, port):
            way = way_to_a_broker() if parts.hostname in config.LOCAL_HOSTS else "arráncalo en ese equipo, o corrige RABBITMQ_URL"
            yield False, f"ningún broker responde en {where}; {way}"
        elif parts.scheme == "amqp" and not answers_amqp(parts.hostname, port):
            yield False, f"en {where} responde otro programa, no un broker: páralo, o cambia RABBITMQ_URL"
        else:
            yield login(loaded, url, where)


def login(loaded: config.Settings, url: str, where: str) -> Finding:
    """The broker may be there and refuse the password."""
    if importlib.util.find_spec("pika") is None:
        return True, f"un broker responde en {where}"
    from common import connection

    try:
        with connection.connect(dataclasses.replace(loaded, urls=(url,))):
            return True, f"el broker de {where} admite el usuario y la contraseña"
    except config.KitError as problem:
        return False, str(problem)


@functools.cache
def way_to_a_broker() -> str:
    """What this machine has to start one with."""
    engine = docker_answers()
    if engine or find_server():
        return f"{'hay Docker' if engine else 'RabbitMQ está instalado'}: arráncalo con python kit.py broker up"
    if shutil.which("docker"):
        return "Docker está instalado y su motor no responde: abre Docker Desktop y espera a que arranque"
    if has_apt() or has_brew():
        return "no hay ni Docker ni RabbitMQ: python kit.py broker up --yes lo instala y lo arranca"
    return ("no hay ni Docker ni RabbitMQ: instala Docker (https://docs.docker.com/get-docker/) o RabbitMQ"
            " (https://www.rabbitmq.com/docs/download)")


def mail_server(loaded: config.Settings) -> Iterator[Finding]:
    if loaded.smtp_url:
        parts = urlsplit(loaded.smtp_url)
        port = parts.port or config.SMTP_PORTS[parts.scheme]
        if accepts(parts.hostname, port):
            yield True, f"el servidor de correo acepta conexiones en {parts.hostname}:{port}"
        else:
            yield False, (f"el servidor de correo no responde en {parts.hostname}:{port}: docker compose --profile"
                          " mailpit up -d lo arranca, o quita SMTP_URL")


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 3).close()
        return True
    except (OSError, UnicodeError):
        return False


def terminal() -> Iterator[Finding]:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding == "utf8":
        yield True, "esta terminal muestra acentos y flechas (UTF-8): á ñ → █"
    elif os.name == "nt":
        yield False, f"lo que se imprime va en {encoding}: escribe  $env:PYTHONUTF8 = \"1\"  en cada terminal (PowerShell)"
    else:
        yield False, f"lo que se imprime va en {encoding}: escribe  export LANG=C.UTF-8  en cada terminal"
    columns = shutil.get_terminal_size((COLUMNS, 24)).columns
    if columns < COLUMNS:
        yield False, f"esta terminal tiene {columns} columnas: con {COLUMNS} caben las líneas enteras"


CHECKS = (python, packages, settings, terminal)
