"""Finding a broker, first that answers; and `kit.py broker up|down|status`.

RABBITMQ_URL if set (use it or fail) -> one on 127.0.0.1:5672 -> Docker -> a local rabbitmq-server
as a private node -> the same, installed with a yes -> exit 69 with the choices in words.

A RABBITMQ_URL in `.env` that points to this machine is no order but where compose's broker
would be: when nobody answers there, the search goes on.
"""

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from common import cli, config, connection, console
from tools.install import has_apt, has_brew, install_rabbitmq
from tools.isolation import own_place
from tools.node import Node, NodeError, answers_amqp, find_server, free_port

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
AMQP_PORT = 5672
MANAGEMENT_PORT = 15672
DOCKER_TIMEOUT_S = 20
COMPOSE_TIMEOUT_S = 900  # the first time it downloads the image
KEPT_NODE = config.ROOT / ".state" / "broker"
COMPOSE_MARK = config.ROOT / ".state" / "compose-up"  # there while a compose broker of `up` runs

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


# ---------------------------------------------------------------- for the demo


@contextmanager
def found(yes: bool, delays: str):
    """Yield the URL of a place on the first broker of the ladder; what was started for it ends with it."""
    with ExitStack() as stack:
        yield (_place_on_configured(stack, delays) or _place_on_default(stack, delays)
               or _place_on_compose(stack, delays) or _place_on_private(stack, yes))


def _place_on_configured(stack: ExitStack, delays: str) -> "str | None":
    broker = _configured()
    return broker and _enter(stack, broker, delays)


def _place_on_default(stack: ExitStack, delays: str) -> "str | None":
    broker = _default_one()
    try:
        return broker and _enter(stack, broker, delays)
    except config.KitError as refusal:
        console.say(f"{refusal} Se busca otro broker.")
        return None


def _place_on_compose(stack: ExitStack, delays: str) -> "str | None":
    if not (docker_answers() and compose_up()):
        return None
    stack.callback(compose_down)
    return _enter(stack, compose_broker(), delays)


def _place_on_private(stack: ExitStack, yes: bool) -> str:
    require_server(yes)
    node = stack.enter_context(Node(Path(tempfile.mkdtemp(prefix="kit-broker-"))))
    started(node)
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


def _configured() -> "Broker | None":
    url = config.load().urls[0]
    if answers(url):
        if url != config.DEFAULTS["RABBITMQ_URL"]:
            return Broker(url, management_of(url), "el de RABBITMQ_URL")
    elif os.environ.get("RABBITMQ_URL") or urlsplit(url).hostname not in LOCAL_HOSTS:
        raise NoBroker(f"RABBITMQ_URL está puesta y ningún broker responde en {config.masked(url)}."
                       " Arráncalo, o quita RABBITMQ_URL para que el kit busque uno.")
    return None


def _default_one() -> "Broker | None":
    """One that lets guest in; another's broker with other users is left alone."""
    url = config.DEFAULTS["RABBITMQ_URL"]
    if not answers(url):
        return None
    try:
        with connection.connect(config.load({"RABBITMQ_URL": url})):
            pass
    except config.KitError:
        console.say("En 127.0.0.1:5672 hay un broker, pero no admite al usuario guest: se busca otro.")
        return None
    return Broker(url, management_of(url), "el que ya estaba en 127.0.0.1:5672")


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


def started(node: Node) -> None:
    console.say("Arrancando un nodo privado de RabbitMQ (tarda unos segundos)…")
    try:
        node.start()
    except NodeError as error:
        raise NoBroker(str(error)) from None


# ---------------------------------------------------------------- Docker


def docker_answers() -> bool:
    """A `docker` on PATH may have no engine behind it, and an engine no compose."""
    return shutil.which("docker") is not None and all(
        _docker(*words, timeout=DOCKER_TIMEOUT_S) for words in (["info"], ["compose", "version"]))


def compose_up() -> bool:
    """Start docker-compose.yml and wait until it is healthy; False, with words, if that fails."""
    if answers_amqp("127.0.0.1", AMQP_PORT):
        return False  # the port that it publishes is somebody else's
    _ensure_dotenv()
    console.say("Arrancando RabbitMQ con docker compose (la primera vez descarga la imagen)…")
    if _docker("compose", "up", "-d", "--wait", timeout=COMPOSE_TIMEOUT_S, loud=True):
        return True
    compose_down()
    return False


def compose_down() -> None:
    """Stop it; the volume with its data stays."""
    _docker("compose", "down", timeout=COMPOSE_TIMEOUT_S, loud=True)


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


def _docker(*words: str, timeout: float, loud: bool = False) -> bool:
    try:
        done = subprocess.run(["docker", *words], cwd=config.ROOT, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              encoding="utf-8", errors="replace", timeout=timeout)
        output, worked = done.stdout, done.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        output, worked = str(error), False
    if loud and not worked:
        console.complain(f"docker {' '.join(words)} no funcionó:\n  "
                         + "\n  ".join(output.strip().splitlines()[-5:]))
    return worked


# ---------------------------------------------------------------- kit.py broker …


def up(yes: bool) -> int:
    """Keep a broker running for the terminals of the class."""
    present = _present()
    if present:
        console.say("Ya hay un broker en marcha; no se cambia nada.")
        return _describe(present)
    if os.environ.get("RABBITMQ_URL") and urlsplit(config.load().urls[0]).hostname not in LOCAL_HOSTS:
        raise NoBroker(f"RABBITMQ_URL apunta a {config.masked(config.load().urls[0])}, que no responde y que"
                       " desde aquí no se puede arrancar.")
    if docker_answers() and compose_up():
        COMPOSE_MARK.parent.mkdir(exist_ok=True)
        COMPOSE_MARK.touch()
        return _describe(compose_broker())
    require_server(yes)
    node = _kept_node() or _new_kept_node()
    started(node)
    return _describe(_of(node))


def down(yes: bool) -> int:
    """Stop what `up` started, and nothing else."""
    node = _kept_node()
    if node and node.running:
        node.stop()
        node.close(keep_data=True)
        console.say(f"Nodo parado; sus datos siguen en {KEPT_NODE} (bórrala para empezar de cero).")
    elif COMPOSE_MARK.exists():
        compose_down()
        COMPOSE_MARK.unlink()
        console.say("Contenedor parado; sus datos siguen en el volumen (docker compose down -v los borra).")
    else:
        console.say("No hay nada que parar: kit.py broker up no arrancó ningún broker.")
    return cli.EXIT_OK


def status(yes: bool) -> int:
    """Say whether a broker answers: exit 0 or 69."""
    present = _present()
    if present:
        return _describe(present)
    console.say(f"Ningún broker responde en {config.masked(config.load().urls[0])}."
                " Arráncalo con: python kit.py broker up")
    return cli.EXIT_NO_BROKER


def _present() -> "Broker | None":
    node = _kept_node()
    if node and answers(node.url):
        return _of(node)
    if COMPOSE_MARK.exists() and answers(compose_broker().url):
        return compose_broker()
    url = config.load().urls[0]
    return Broker(url, management_of(url), "uno que el kit no arrancó") if answers(url) else None


def _kept_node() -> "Node | None":
    return Node(KEPT_NODE) if (KEPT_NODE / "ports.json").exists() else None


def _new_kept_node() -> Node:
    """On the usual ports when nobody has them, so that the scripts find it without RABBITMQ_URL."""
    return Node(KEPT_NODE, free_port(AMQP_PORT), free_port(MANAGEMENT_PORT))


def _of(node: Node) -> Broker:
    return Broker(node.url, node.management_url, f"nodo privado en {KEPT_NODE}")


def _describe(broker: Broker) -> int:
    console.say(f"Broker:   {shown(broker.url)}  ({broker.words})")
    console.say(f"Gestión:  {broker.management_url}  (usuario {urlsplit(broker.url).username})")
    configured = config.load().urls[0]
    if _place(configured) != _place(broker.url):
        console.say("Los scripts lo encuentran después de escribir esto en cada terminal:")
        console.say(f"  {_set_variable(broker.url)}")
    return cli.EXIT_OK


def shown(url: str) -> str:
    """For the screen; guest's password is no secret."""
    return url if url.startswith("amqp://guest:guest@") else config.masked(url)


def _place(url: str) -> tuple:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in LOCAL_HOSTS else parts.hostname
    return host, parts.port or AMQP_PORT, parts.username


def _set_variable(url: str) -> str:
    if url != shown(url):
        return "copia RABBITMQ_URL de .env.example a .env"
    if os.name == "nt":
        return f"$env:RABBITMQ_URL = \"{url}\"     (PowerShell; en cmd: set RABBITMQ_URL={url.replace('%', '%%')})"
    return f"export RABBITMQ_URL='{url}'"
