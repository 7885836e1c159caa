"""A place for the demo on a broker that others use: nothing of theirs is touched.

A virtual host of its own, if the management API gives one; else the URL's own virtual host, but
only if none of the kit's queues is there. Afterwards everything made is gone.
"""

import secrets
from contextlib import contextmanager, suppress
from urllib.parse import quote, unquote, urlsplit

from common import config, connection, exchange, status
from common.cli import EXIT_NO_BROKER
from common.config import KitError, Settings, masked
from tools.node import create_vhost, delete_vhost


class NotOurs(KitError):
    """The broker has no place where the demo would disturb nobody."""

    exit_code = EXIT_NO_BROKER


@contextmanager
def own_place(url: str, management_url: str, delays: str):
    """Yield a URL where the demo may declare, publish and delete. Raises NotOurs before that."""
    vhost = f"kit-demo-{secrets.token_hex(4)}"
    parts = urlsplit(url)
    user, password = (unquote(part or "guest") for part in (parts.username, parts.password))
    place = parts._replace(path="/" + quote(vhost, safe="")).geturl()
    if _create(place, management_url, user, password, vhost):
        try:
            yield place
        finally:
            delete_vhost(management_url, user, password, vhost)
        return
    settings = config.load({"RABBITMQ_URL": url, "RETRY_DELAYS": delays})
    _refuse_if_used(settings)
    try:
        yield url
    finally:
        _delete_all(settings)


def _create(place: str, management_url: str, user: str, password: str, vhost: str) -> bool:
    if urlsplit(place).scheme != "amqp":  # the management page is asked without TLS: no password over that
        return False
    try:
        create_vhost(management_url, user, password, vhost)
        with connection.connect(config.load({"RABBITMQ_URL": place})):  # it may be another broker's page
            return True
    except (OSError, KitError):  # no management plugin there, or the user is no administrator
        with suppress(OSError):
            delete_vhost(management_url, user, password, vhost)
        return False


def _refuse_if_used(settings: Settings) -> None:
    with connection.connect(settings) as opened:
        used = [found.queue.name for found in status.look(opened, settings) if found.ready is not None]
        if status.has_exchange(opened):
            used.append(exchange.EXCHANGE)
    if used:
        raise NotOurs(f"En {masked(settings.urls[0])} ya existe {used[0]} y no se puede crear un vhost aparte"
                      " (hace falta el plugin de gestión y un usuario administrador): la demo no toca colas ajenas.")


def _delete_all(settings: Settings) -> None:
    with connection.connect(settings) as opened:
        channel = opened.channel()
        for queue in exchange.topology(settings):
            channel.queue_delete(queue=queue.name)
        channel.exchange_delete(exchange=exchange.EXCHANGE)
