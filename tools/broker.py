"""Finding a broker for the demo: the first that answers.

RABBITMQ_URL if set (use it or fail) -> one on 127.0.0.1:5672 -> Docker -> a local rabbitmq-server
as a private node -> the same, installed with a yes -> exit 69 with the choices in words.

A RABBITMQ_URL in `.env` that points to this machine is no order but where compose's broker
would be: when nobody answers there, the search goes on.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from common import cli, config, connection, console
from tools.command import docker_answers, failure_of
from tools.install import has_apt, has_brew, install_rabbitmq
from tools.isolation import own_place
from tools.node import Node, answers_amqp, find_server

AMQP_PORT = 5672
MANAGEMENT_PORT = 15672
COMPOSE_TIMEOUT_S = 900  # the first time it downloads the image

CHOICES = """No hay ningún broker. Elige una de estas opciones y repite la orden:
  - Docker: abre Docker Desktop (https://docs.docker.com/get-docker/) y espera a que arranque.
  - Instalar RabbitMQ: en Debian o Ubuntu, repite la orden con --yes; en macOS,
    brew install rabbitmq; en Windows, el instalador de https://www.rabbitmq.com/docs/install-windows.
  - Usar uno que ya tengas: RABBITMQ_URL=amqp://usuario:clave@servidor:5672/%2F, en el entorno o en .env."""


class NoBroker(config.KitError):
    exit_code = cli.EXIT_NO_BROKER


@dataclass(frozen=True)
class Broker:
    """A broker that answers; words: whose it is, for the screen."""

    url: str
    management_url: str
    words: str


@contextmanager
def found(yes: bool, delays: str):
    """Yield the URL of a place on the first broker of the ladder; what was started for it ends with it."""
    with ExitStack() as stack:
        yield (_place_on_running(stack, delays) or _place_on_compose(stack, delays)
               or _place_on_private(stack, yes))


def _place_on_running(stack: ExitStack, delays: str) -> "str | None":
    configured = configured_url()
    if _is_order(configured):
        if not answers(configured):
            raise NoBroker(f"RABBITMQ_URL está puesta y ningún broker responde en {config.masked(configured)}."
                           " Arráncalo, o quita RABBITMQ_URL para que el kit busque uno.")
        return _enter(stack, Broker(configured, management_of(configured), "el de RABBITMQ_URL"), delays)
    for url in dict.fromkeys((configured, config.DEFAULTS["RABBITMQ_URL"])):
        try:
            if answers(url):
                return _enter(stack, Broker(url, management_of(url), "uno que ya estaba en marcha"), delays)
        except config.KitError as refusal:
            console.say(f"{refusal} Se busca otro broker.")
    return None


def configured_url() -> str:
    """The first of RABBITMQ_URL that answers; when none does, the first."""
    urls = config.load().urls
    return next(filter(answers, urls), urls[0])


def _is_order(url: str) -> bool:
    """Whether RABBITMQ_URL says which broker to use, or only where compose's would be."""
    return bool(os.environ.get("RABBITMQ_URL")) or urlsplit(url).hostname not in config.LOCAL_HOSTS


def _place_on_compose(stack: ExitStack, delays: str) -> "str | None":
    if not (docker_answers() and compose_up()):
        return None
    stack.callback(compose_down)
    return _enter(stack, compose_broker(), delays)


def _place_on_private(stack: ExitStack, yes: bool) -> str:
    require_server(yes)
    node = stack.enter_context(Node(Path(tempfile.mkdtemp(prefix="kit-broker-"))))
    start(node)
    console.say(f"Broker: un nodo privado, solo para esto, en {node.url}")
    return node.url


def _enter(stack: ExitStack, broker: Broker, delays: str) -> str:
    url = stack.enter_context(own_place(broker.url, broker.management_url, delays))
    console.say(f"Broker: {broker.words}, {shown(url)}")
    return url


def require_server(yes: bool) -> None:
    """Return when there is a local rabbitmq-server; install it if told to. Raises NoBroker."""
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
    """Whether an AMQP broker answers there; one behind TLS counts when it accepts a connection."""
    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else AMQP_PORT)
    if parts.scheme == "amqps":
        return _connects(url)
    return answers_amqp(parts.hostname, port)


def _connects(url: str) -> bool:
    try:
        with connection.connect(config.load({"RABBITMQ_URL": url})):
            return True
    except connection.BrokerUnavailable:
        return False


def management_of(url: str) -> str:
    host = urlsplit(url).hostname
    return f"http://{f'[{host}]' if ':' in host else host}:{MANAGEMENT_PORT}"


def start(node: Node) -> None:
    console.say("Arrancando un nodo privado de RabbitMQ (tarda unos segundos)…")
    node.start()


def shown(url: str) -> str:
    """For the screen; guest's password is no secret."""
    return url if url.startswith("amqp://guest:guest@") else config.masked(url)


# ---------------------------------------------------------------- Docker


def compose_up() -> bool:
    """Start docker-compose.yml and wait until it is healthy; False, with words, if that fails."""
    if answers_amqp("127.0.0.1", AMQP_PORT):
        return False  # the port that it publishes is somebody else's
    _ensure_dotenv()
    console.say("Arrancando RabbitMQ con docker compose (la primera vez descarga la imagen)…")
    if _compose("up", "-d", "--wait"):
        return True
    compose_down()
    return False


def compose_down() -> bool:
    """Stop it; the volume with its data stays."""
    return _compose("down")


def compose_broker() -> Broker:
    """Where docker-compose.yml puts it, with the user of `.env`."""
    from dotenv import dotenv_values

    values = dotenv_values(config.ROOT / ".env", encoding="utf-8") | os.environ
    user, password = (quote(values.get(name) or "", safe="") for name in ("RABBITMQ_USER", "RABBITMQ_PASSWORD"))
    url = f"amqp://{user}:{password}@127.0.0.1:{AMQP_PORT}/%2F"
    return Broker(url, management_of(url), "el de docker compose")


def _ensure_dotenv() -> None:
    if not (config.ROOT / ".env").exists():
        shutil.copy(config.ROOT / ".env.example", config.ROOT / ".env")
        console.say("No había .env: se ha copiado de .env.example.")


def _compose(*words: str) -> bool:
    """Whether it worked; if not, its last lines are on the screen."""
    failure = failure_of(["docker", "compose", *words], COMPOSE_TIMEOUT_S)
    if failure is not None:
        console.complain(f"docker compose {' '.join(words)} no funcionó:\n{failure}")
    return failure is None
