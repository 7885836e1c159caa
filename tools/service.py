"""`kit.py broker up|down|status`: a broker that stays up for the terminals of the class."""

import os
from urllib.parse import urlsplit

from common import cli, config, console
from tools.broker import (
    AMQP_PORT,
    MANAGEMENT_PORT,
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
    start,
)
from tools.command import docker_answers
from tools.node import Node, free_port, host_and_port

KEPT_NODE = config.ROOT / ".state" / "broker"
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
                       " desde aquí no se puede arrancar.")
    if docker_answers() and compose_up():
        COMPOSE_MARK.parent.mkdir(exist_ok=True)
        COMPOSE_MARK.touch()
        return _describe(compose_broker())
    require_server(yes)
    node = _kept_node() or _new_kept_node()
    try:
        start(node)
    except KeyboardInterrupt:
        node.close(keep_data=True)
        raise
    return _describe(_broker_of(node))


def down(yes: bool) -> int:
    """Stop the broker that `up` started, and no other."""
    node = _kept_node()
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
                       " Arráncalo con: python kit.py broker up")
    return cli.EXIT_NO_BROKER


def _running_broker() -> Broker | None:
    node = _kept_node()
    if node and node.running and answers(node.url):
        return _broker_of(node)
    if COMPOSE_MARK.exists() and answers(compose_broker().url):
        return compose_broker()
    url = configured_url()
    if answers(url):
        return Broker(url, management_of(url), "uno que el kit no arrancó")
    return None


def _kept_node() -> Node | None:
    return Node(KEPT_NODE) if (KEPT_NODE / "ports.json").exists() else None


def _new_kept_node() -> Node:
    """On the default ports if they are free: then the scripts need no RABBITMQ_URL."""
    return Node(KEPT_NODE, free_port(AMQP_PORT), free_port(MANAGEMENT_PORT))


def _broker_of(node: Node) -> Broker:
    return Broker(node.url, node.management_url, f"nodo privado en {KEPT_NODE}")


def _describe(broker: Broker) -> int:
    console.print_line(f"Broker:   {display_url(broker.url)}  ({broker.description})")
    console.print_line(f"Gestión:  {broker.management_url}  ({_login(broker.url)})")
    if _endpoint_and_user(configured_url()) != _endpoint_and_user(broker.url):
        console.print_line(
            "Los scripts lo encuentran después de escribir esto en cada terminal:")
        console.print_line(f"  {_set_variable(broker.url)}")
    return cli.EXIT_OK


def _login(url: str) -> str:
    if url == display_url(url):
        return "usuario guest, contraseña guest"
    return f"usuario {urlsplit(url).username}; la contraseña, en .env"


def _endpoint_and_user(url: str) -> tuple[str, int, str | None]:
    host, port = host_and_port(url)
    return "127.0.0.1" if host in config.LOCAL_HOSTS else host, port, urlsplit(url).username


def _set_variable(url: str) -> str:
    if url != display_url(url):
        return "copia RABBITMQ_URL de .env.example a .env"
    if os.name == "nt":
        in_cmd = url.replace("%", "%%")
        return f'$env:RABBITMQ_URL = "{url}"     (PowerShell; en cmd: set RABBITMQ_URL={in_cmd})'
    return f"export RABBITMQ_URL='{url}'"
