"""`kit.py broker up|down|status`: a broker that stays up for the terminals of the class."""

import os
from urllib.parse import unquote, urlsplit

from common import cli, config, console
from tools.broker import (
    AMQP_PORT,
    STARTING,
    Broker,
    NoBroker,
    answers,
    compose_broker,
    compose_down,
    compose_up,
    configured_url,
    display_url,
    management_of,
    require_server,
)
from tools.node import KEPT_NODE, Node, free_port, host_and_port, kept_node

COMPOSE_MARK = config.ROOT / ".state" / "compose-up"  # exists while the compose broker of `up` runs


def up(yes: bool) -> int:
    """Start a broker and leave it running."""
    running = _running_broker()
    if running:
        console.print_line("Ya hay un broker en marcha; no se cambia nada.")
        return _describe(running)
    configured = configured_url()
    if urlsplit(configured).hostname not in config.LOCAL_HOSTS:
        raise NoBroker(f"RABBITMQ_URL apunta a {config.masked(configured)}, que no responde y que"
                       " desde aquí no se puede arrancar: arráncalo en ese equipo o quita"
                       " RABBITMQ_URL.")
    if compose_up():
        COMPOSE_MARK.parent.mkdir(exist_ok=True)
        COMPOSE_MARK.touch()
        return _describe(compose_broker())
    require_server(yes)
    node = kept_node() or _new_kept_node(configured)
    console.print_line(STARTING)
    try:
        node.start()
    except KeyboardInterrupt:
        node.close(keep_data=True)
        raise
    return _describe(_broker_of(node))


def down(yes: bool) -> int:
    """Stop the broker that `up` started, and no other."""
    node = kept_node()
    if node and node.running:
        node.stop()
        node.close(keep_data=True)
        console.print_line(f"Nodo parado; sus datos siguen en la carpeta {KEPT_NODE}; bórrala para"
                           " empezar de cero.")
    elif COMPOSE_MARK.exists():
        if not compose_down():
            return cli.EXIT_CHECK_FAILED
        COMPOSE_MARK.unlink()
        console.print_line("Contenedor parado; sus datos siguen en el volumen"
                           " (docker compose down -v los borra).")
    else:
        console.print_line("No hay nada que parar: ningún broker de kit.py broker up está en"
                           " marcha.")
    return cli.EXIT_OK


def status(yes: bool) -> int:
    """Print whether a broker answers; the exit code is 0 or 69."""
    running = _running_broker()
    if running:
        return _describe(running)
    console.print_line(f"Ningún broker responde en {config.masked(configured_url())}."
                       " Arráncalo con python kit.py broker up o revisa RABBITMQ_URL.")
    return cli.EXIT_NO_BROKER


def _running_broker() -> Broker | None:
    url, node = configured_url(), kept_node()  # the settings first: they may be wrong
    if node and node.running and answers(node.url):
        return _broker_of(node)
    if COMPOSE_MARK.exists() and answers(compose_broker().url):
        return compose_broker()
    if answers(url):
        return Broker(url, management_of(url), "uno que el kit no arrancó")
    return None


def _new_kept_node(configured: str) -> Node:
    """With the user, and if it is free the port, that the scripts use anyway."""
    parts = urlsplit(configured)
    wanted = host_and_port(configured)[1] if parts.scheme == "amqp" else AMQP_PORT
    port = free_port(wanted)
    return Node(KEPT_NODE, port, free_port(port + 10_000),  # where setup_queues.py looks for it
                user=unquote(parts.username or "guest"),
                password=unquote(parts.password or "guest"))


def _broker_of(node: Node) -> Broker:
    return Broker(node.url, node.management_url, f"nodo privado en {KEPT_NODE}")


def _describe(broker: Broker) -> int:
    console.print_line(f"Broker:   {display_url(broker.url)}  ({broker.description})")
    console.print_line(f"Gestión:  {broker.management_url}  ({_account(broker.url)})")
    unknown = []
    if _login(configured_url()) != _login(broker.url):
        unknown.append(f"  RABBITMQ_URL={_with_placeholder(broker.url)}")
    if broker.management_url != management_of(broker.url):
        unknown.append(f"  RABBITMQ_MANAGEMENT_URL={broker.management_url}")
    if unknown:
        console.print_line("Para que los scripts lo encuentren, pon en .env (créalo si no existe):")
        console.print_line("\n".join(unknown))
        if os.environ.get("RABBITMQ_URL"):
            console.print_line("y quita la variable RABBITMQ_URL de cada terminal, que tiene"
                               " prioridad sobre .env.")
    return cli.EXIT_OK


def _account(url: str) -> str:
    if url == display_url(url):
        return "usuario guest, contraseña guest"
    return f"usuario {unquote(urlsplit(url).username or 'guest')}; la contraseña, en .env"


def _login(url: str) -> tuple:
    """What the scripts have to know of a broker; two URLs may say the same."""
    parts, (host, port) = urlsplit(url), host_and_port(url)
    return (parts.scheme, "127.0.0.1" if host in config.LOCAL_HOSTS else host, port,
            unquote(parts.username or "guest"), unquote(parts.password or "guest"),
            unquote(parts.path[1:]) or "/")


def _with_placeholder(url: str) -> str:
    """The URL without its password, unless that is guest's well-known one."""
    return display_url(url).replace("@", ":CONTRASEÑA@") if url != display_url(url) else url
