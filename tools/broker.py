"""Find a broker for the demo: the first in this order that answers.

RABBITMQ_URL if set (use it or fail) -> 127.0.0.1:5672 -> Docker -> a local rabbitmq-server as a
private node -> the same, installed after confirmation -> exit 69 with the choices.

A RABBITMQ_URL in `.env` that points to this machine only says where the broker of docker compose
would be: if nothing answers there, the search continues.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from common import cli, config, connection, console
from common.views.management import default_address
from tools.command import NO_COMPOSE, docker_problem, failure_of, taken_compose_port
from tools.install import has_apt, has_brew, install_rabbitmq
from tools.isolation import isolated_url
from tools.node import answers_amqp, find_server, host_and_port, new_node

AMQP_PORT = config.AMQP_PORTS["amqp"]
COMPOSE_TIMEOUT_S = 900  # the first start downloads the image
STARTING = "Arrancando un nodo privado de RabbitMQ (tarda unos segundos)…"

CHOICES = """No hay ningún broker. Elige una de estas opciones y repite la orden:
  - Docker: abre Docker Desktop (https://docs.docker.com/get-docker/) y espera a que arranque.
  - Instalar RabbitMQ: en Debian o Ubuntu, repite la orden con --yes; en macOS,
    brew install rabbitmq; en Windows, el instalador de
    https://www.rabbitmq.com/docs/install-windows.
  - Usar uno que ya tengas: RABBITMQ_URL=amqp://usuario:clave@servidor:5672/%2F, en el entorno
    o en .env."""


class NoBroker(config.KitError):
    exit_code = cli.EXIT_NO_BROKER


@dataclass(frozen=True)
class Broker:
    """A broker that answers. description: where it comes from, in Spanish."""

    url: str
    management_url: str
    description: str


def stop_it_on_signals() -> None:
    """A closed terminal or a cancelled CI job must leave neither a broker nor a program running."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))


@contextmanager
def find_or_start(yes: bool, delays: str) -> Iterator[str]:
    """Yield the URL of an isolated virtual host; at the end, stop what was started for it."""
    with ExitStack() as stack:
        yield (_use_running(stack, delays) or _use_compose(stack, delays)
               or _use_private_node(stack, yes))


def _use_running(stack: ExitStack, delays: str) -> str | None:
    configured = configured_url()
    if _is_required(configured):
        if not answers(configured):
            raise NoBroker(
                f"RABBITMQ_URL está puesta y ningún broker responde en {config.masked(configured)}."
                " Arráncalo, o quita RABBITMQ_URL para que el kit busque uno.")
        broker = Broker(configured, management_of(configured), "el de RABBITMQ_URL")
        return _isolate(stack, broker, delays)
    for url in dict.fromkeys((configured, config.DEFAULTS["RABBITMQ_URL"])):
        try:
            if answers(url):
                broker = Broker(url, management_of(url), "uno que ya estaba en marcha")
                return _isolate(stack, broker, delays)
        except config.KitError as refusal:
            console.print_line(f"{refusal} Se busca otro broker.")
    return None


def configured_url() -> str:
    """The first URL of RABBITMQ_URL that answers; if none does, the first one."""
    urls = config.load().urls
    return next(filter(answers, urls), urls[0])


def _is_required(url: str) -> bool:
    """Whether RABBITMQ_URL names a broker that must be used (see the module's docstring)."""
    return bool(os.environ.get("RABBITMQ_URL")) or urlsplit(url).hostname not in config.LOCAL_HOSTS


def _use_compose(stack: ExitStack, delays: str) -> str | None:
    if not compose_up():
        return None
    stack.callback(compose_down)
    return _isolate(stack, compose_broker(), delays)


def _use_private_node(stack: ExitStack, yes: bool) -> str:
    require_server(yes)
    console.print_line(STARTING)
    node = stack.enter_context(new_node(Path(tempfile.mkdtemp(prefix="kit-broker-"))))
    console.print_line(f"Broker: un nodo privado, solo para esto, {node.url}")
    return node.url


def _isolate(stack: ExitStack, broker: Broker, delays: str) -> str:
    url = stack.enter_context(isolated_url(broker.url, broker.management_url, delays))
    console.print_line(f"Broker: {broker.description}, {display_url(url)}")
    return url


def require_server(yes: bool) -> None:
    """Ensure a local rabbitmq-server; install it if `yes` or the user agrees. Raises NoBroker."""
    if find_server():
        return
    if not (has_apt() or has_brew()) or os.name == "nt":
        raise NoBroker(CHOICES)
    if not yes and not cli.confirm("No hay RabbitMQ en este equipo. ¿Instalarlo?"):
        raise NoBroker(CHOICES)
    install_rabbitmq()
    if not find_server():
        raise NoBroker(CHOICES)


def answers(url: str) -> bool:
    """Whether an AMQP broker answers there; with amqps, whether it accepts a connection."""
    if urlsplit(url).scheme == "amqps":
        return _connects(url)
    return answers_amqp(*host_and_port(url))


def _connects(url: str) -> bool:
    try:
        with connection.connect(config.load({"RABBITMQ_URL": url})):
            return True
    except connection.BrokerUnavailable:
        return False


def management_of(url: str) -> str:
    return config.load().management_url or default_address(url)


def display_url(url: str) -> str:
    """The URL for the screen, without its password unless that is guest's well-known one."""
    return url if url.startswith("amqp://guest:guest@") else config.masked(url)


# ---------------------------------------------------------------- Docker


def compose_up() -> bool:
    """Start docker-compose.yml and wait until it is healthy; on failure print why, return False."""
    if answers_amqp("127.0.0.1", AMQP_PORT):
        return False  # another broker has the port that compose publishes
    problem = docker_problem()
    if problem == NO_COMPOSE:  # without Docker, or with a stopped one, nobody expects compose
        console.print_error(f"{problem}. Mientras tanto se busca otro broker.")
    if problem:
        return False
    console.print_line(
        "Arrancando RabbitMQ con docker compose (la primera vez descarga la imagen)…")
    try:
        failure = _compose("up", "-d", "--wait")
    except BaseException:  # Ctrl-C: the container starts without us
        compose_down()
        raise
    if failure is None:
        return True
    compose_down()
    # Only now: a container that was still starting had these ports itself.
    taken = taken_compose_port()
    console.print_error(f"Docker no arrancó el broker: {taken}. Ciérralo para usar el de Docker;"
                        " mientras tanto se busca otro broker." if taken else
                        f"docker compose up -d --wait no funcionó:\n{failure}")
    return False


def compose_down() -> bool:
    """Stop the container; the volume with its data stays. On failure print why, return False."""
    failure = _compose("down")
    if failure is not None:
        console.print_error(f"docker compose down no funcionó:\n{failure}")
    return failure is None


def compose_broker() -> Broker:
    """The broker of docker-compose.yml, with its user: that of `.env`, else guest."""
    from dotenv import dotenv_values

    values = dotenv_values(config.ROOT / ".env", encoding="utf-8-sig") | os.environ
    user, password = (quote(values.get(name) or "guest", safe="")
                      for name in ("RABBITMQ_USER", "RABBITMQ_PASSWORD"))
    url = f"amqp://{user}:{password}@127.0.0.1:{AMQP_PORT}/%2F"
    return Broker(url, management_of(url), "el de docker compose")


def _compose(*words: str) -> str | None:
    return failure_of(["docker", "compose", *words], COMPOSE_TIMEOUT_S)
