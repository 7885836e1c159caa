"""`kit.py doctor`: print what this machine lacks and how to fix it; change nothing."""

import dataclasses
import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

from common import cli, config, console
from tools import environment
from tools.command import NO_COMPOSE, accepts, docker_problem, taken_compose_port
from tools.install import has_apt, has_brew
from tools.node import PortTaken, answers_amqp, find_server, host_and_port, kept_node

COLUMNS = 80  # the width of the scripts' tables and event lines

Finding = tuple[bool, str]  # (whether the check passed, the text to print)


def main() -> int:
    """Print one line for each finding; return 1 if a check failed."""
    findings = [finding for check in CHECKS for finding in check()]
    for passed, text in findings:
        mark = console.paint("✔", "ok") if passed else console.paint("✘", "error")
        console.print_line(f"{mark} {text}")
    failures = sum(not passed for passed, _ in findings)
    if failures:
        console.print_error(f"Cosas que arreglar: {failures} (líneas con ✘).")
        return cli.EXIT_CHECK_FAILED
    console.print_line("Todo listo. La demo: python kit.py demo", "ok")
    return cli.EXIT_OK


def python() -> Iterator[Finding]:
    yield True, f"Python {sys.version.split()[0]}"  # kit.py itself rejects an old one


def packages() -> Iterator[Finding]:
    if all(map(importlib.util.find_spec, ("pika", "dotenv"))):
        yield True, f"los paquetes del kit están en {sys.prefix}"
    elif importlib.util.find_spec("ensurepip"):
        yield False, cli.NO_PACKAGES
    else:
        package = environment.venv_package()
        yield False, f"a este Python le falta el módulo venv: sudo apt-get install {package}"


def settings() -> Iterator[Finding]:
    try:
        loaded = config.load()
    except ModuleNotFoundError:  # .env needs python-dotenv; packages() reports that it is missing
        return
    except config.KitError as problem:
        yield False, str(problem)
        return
    delays = ", ".join(f"{delay:g}" for delay in loaded.retry_delays)
    yield True, (f"los ajustes valen: espera entre reintentos de {delays} s,"
                 f" colas {loaded.queue_type}, estado en {loaded.state_dir}")
    yield from state_dir(loaded)
    yield from broker(loaded)
    yield from mail_server(loaded)


def state_dir(loaded: config.Settings) -> Iterator[Finding]:
    """Try to write to STATE_DIR, or to the nearest parent folder that exists."""
    folder = loaded.state_dir
    try:
        folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
        trial = folder / f".kit-{os.getpid()}"  # tempfile tries for ever on Windows (cpython#66305)
        trial.touch(exist_ok=False)
        trial.unlink()
        yield True, f"se puede escribir en {folder}"
    except OSError as error:
        yield False, (f"no se puede escribir en {folder} ({console.reason(error)}):"
                      " cambia STATE_DIR o sus permisos")


def broker(loaded: config.Settings) -> Iterator[Finding]:
    for url in loaded.urls:
        host, port = host_and_port(url)
        if not accepts(host, port):
            advice = ("arráncalo en ese equipo, o corrige RABBITMQ_URL"
                      if host not in config.LOCAL_HOSTS else how_to_start_a_broker())
            yield False, f"ningún broker responde en {host}:{port}; {advice}"
        elif urlsplit(url).scheme == "amqp" and not answers_amqp(host, port):
            yield False, (f"en {host}:{port} responde otro programa, no un broker:"
                          " páralo, o cambia RABBITMQ_URL")
        else:
            yield login(loaded, url, f"{host}:{port}")


def login(loaded: config.Settings, url: str, endpoint: str) -> Finding:
    """Connect with the user and password of the URL, if pika is installed."""
    if importlib.util.find_spec("pika") is None:
        return True, f"un broker responde en {endpoint}"
    from common import connection

    try:
        with connection.connect(dataclasses.replace(loaded, urls=(url,))):
            return True, f"el broker de {endpoint} admite el usuario y la contraseña"
    except config.KitError as problem:
        return False, str(problem)


@functools.cache
def how_to_start_a_broker() -> str:
    """Advice that depends on what this machine has: what `kit.py broker up` would run into."""
    problem = docker_problem()
    taken = None if problem else taken_compose_port()
    if not problem and not taken:
        return "hay Docker: arráncalo con python kit.py broker up"
    obstacle = f"hay Docker y {taken}: ciérralo" if taken else problem
    if find_server():
        node = kept_node()
        try:
            if node and not node.running:
                node.check_ports()
        except PortTaken as error:
            return str(error).rstrip(".").replace("Otro", "otro", 1)
        alternative = "RabbitMQ está instalado: arráncalo con python kit.py broker up"
        return f"{obstacle}; o {alternative}" if taken or problem == NO_COMPOSE else alternative
    if taken or problem == NO_COMPOSE:
        return f"{obstacle}; después, python kit.py broker up"
    if shutil.which("docker"):
        return str(problem)
    if has_apt() or has_brew():
        return ("no hay ni Docker ni RabbitMQ: python kit.py broker up --yes lo instala y lo"
                " arranca")
    return ("no hay ni Docker ni RabbitMQ: instala Docker (https://docs.docker.com/get-docker/)"
            " o RabbitMQ (https://www.rabbitmq.com/docs/download)")


def mail_server(loaded: config.Settings) -> Iterator[Finding]:
    if not loaded.smtp_url:
        return
    parts = urlsplit(loaded.smtp_url)
    host, port = parts.hostname or "", parts.port or config.SMTP_PORTS[parts.scheme]
    if accepts(host, port):
        yield True, f"el servidor de correo acepta conexiones en {host}:{port}"
    else:
        yield False, (f"el servidor de correo no responde en {host}:{port}: revisa o quita"
                      " SMTP_URL; Mailpit se arranca con docker compose --profile mailpit up -d")


def terminal() -> Iterator[Finding]:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding == "utf8":
        yield True, "esta terminal muestra acentos y flechas (UTF-8): á ñ → █"
    else:
        command = ('$env:PYTHONUTF8 = "1"; [Console]::OutputEncoding = [Text.Encoding]::UTF8'
                   if os.name == "nt" else "export LANG=C.UTF-8")
        shell = " (PowerShell)" if os.name == "nt" else ""
        yield False, (f"lo que se imprime va en {encoding}: escribe  {command}  en cada"
                      f" terminal{shell}")
    columns = shutil.get_terminal_size((COLUMNS, 24)).columns
    if columns < COLUMNS:
        yield False, (f"esta terminal tiene {columns} columnas: con {COLUMNS} caben las líneas"
                      " enteras")


CHECKS = (python, packages, settings, terminal)
