"""`kit.py broker up|down|status`: a broker that stays for the terminals of the class."""

import os
from urllib.parse import urlsplit

from common import cli, config, console
from tools.broker import (
    AMQP_PORT, MANAGEMENT_PORT, Broker, NoBroker, answers, compose_broker, compose_down, compose_up,
    configured_url, management_of, require_server, shown, start)
from tools.command import docker_answers
from tools.node import Node, free_port

KEPT_NODE = config.ROOT / ".state" / "broker"
COMPOSE_MARK = config.ROOT / ".state" / "compose-up"  # there while a compose broker of `up` runs


def up(yes: bool) -> int:
    """Keep a broker running for the terminals of the class."""
    present = _present()
    if present:
        console.say("Ya hay un broker en marcha; no se cambia nada.")
        return _describe(present)
    configured = configured_url()
    if urlsplit(configured).hostname not in config.LOCAL_HOSTS:
        raise NoBroker(f"RABBITMQ_URL apunta a {config.masked(configured)}, que no responde y que desde aquí no"
                       " se puede arrancar.")
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
    return _describe(_of(node))


def down(yes: bool) -> int:
    """Stop what `up` started, and nothing else."""
    node = _kept_node()
    if node and node.running:
        node.stop()
        node.close(keep_data=True)
        console.say(f"Nodo parado; sus datos siguen en la carpeta {KEPT_NODE}; bórrala para empezar de cero.")
    elif COMPOSE_MARK.exists():
        if not compose_down():
            return cli.EXIT_CHECK_FAILED
        COMPOSE_MARK.unlink()
        console.say("Contenedor parado; sus datos siguen en el volumen (docker compose down -v los borra).")
    else:
        console.say("No hay nada que parar: ningún broker de kit.py broker up está en marcha.")
    return cli.EXIT_OK


def status(yes: bool) -> int:
    """Say whether a broker answers: exit 0 or 69."""
    present = _present()
    if present:
        return _describe(present)
    console.say(f"Ningún broker responde en {config.masked(configured_url())}."
                " Arráncalo con: python kit.py broker up")
    return cli.EXIT_NO_BROKER


def _present() -> "Broker | None":
    node = _kept_node()
    if node and node.running and answers(node.url):
        return _of(node)
    if COMPOSE_MARK.exists() and answers(compose_broker().url):
        return compose_broker()
    url = configured_url()
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
    console.say(f"Gestión:  {broker.management_url}  ({_login(broker.url)})")
    configured = configured_url()
    if _place(configured) != _place(broker.url):
        console.say("Los scripts lo encuentran después de escribir esto en cada terminal:")
        console.say(f"  {_set_variable(broker.url)}")
    return cli.EXIT_OK


def _login(url: str) -> str:
    user = urlsplit(url).username
    return "usuario guest, contraseña guest" if url == shown(url) else f"usuario {user}; la contraseña, en .env"


def _place(url: str) -> tuple:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in config.LOCAL_HOSTS else parts.hostname
    return host, parts.port or AMQP_PORT, parts.username


def _set_variable(url: str) -> str:
    if url != shown(url):
        return "copia RABBITMQ_URL de .env.example a .env"
    if os.name == "nt":
        return f"$env:RABBITMQ_URL = \"{url}\"     (PowerShell; en cmd: set RABBITMQ_URL={url.replace('%', '%%')})"
    return f"export RABBITMQ_URL='{url}'"
