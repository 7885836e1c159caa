"""Isolate the demo on a broker that others use, without changing anything of theirs.

The demo gets a virtual host of its own if the management API can create one. Otherwise it uses the
URL's virtual host, but only if none of the kit's queues exist there. Afterwards everything the
demo created is deleted.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote, unquote, urlsplit

from common import config, connection, console, exchange
from common.cli import EXIT_NO_BROKER
from common.config import KitError, Settings, masked
from common.views import status
from tools.node import create_vhost, delete_vhost


class IsolationError(KitError):
    """The demo cannot run on this broker without touching queues of others."""

    exit_code = EXIT_NO_BROKER


@contextmanager
def isolated_url(url: str, management_url: str, delays: str) -> Iterator[str]:
    """Yield a URL where the demo may declare, publish and delete. Raises IsolationError first."""
    vhost = f"kit-demo-{secrets.token_hex(4)}"
    parts = urlsplit(url)
    user, password = (unquote(part or "guest") for part in (parts.username, parts.password))
    vhost_url = parts._replace(path="/" + quote(vhost, safe="")).geturl()
    if _create(vhost_url, management_url, user, password, vhost):
        try:
            yield vhost_url
        finally:
            try:
                delete_vhost(management_url, user, password, vhost)
            except Exception:  # the broker is gone, too
                console.print_notice(f"Quizá queda el vhost {vhost}: bórralo en su página de"
                                     " gestión.")
        return
    settings = config.load({"RABBITMQ_URL": url, "RETRY_DELAYS": delays})
    _refuse_if_used(settings)
    try:
        yield url
    finally:
        _delete_all(settings)


def _create(vhost_url: str, management_url: str, user: str, password: str, vhost: str) -> bool:
    """Create the virtual host and connect to it; return whether both worked."""
    if urlsplit(vhost_url).scheme != "amqp":  # create_vhost() passes no RABBITMQ_CA_FILE
        return False
    try:
        create_vhost(management_url, user, password, vhost)
        # Connecting proves that the management API belongs to the same broker.
        with connection.connect(config.load({"RABBITMQ_URL": vhost_url})):
            return True
    except Exception:  # no management plugin, no administrator, or another program answers there
        with suppress(Exception):
            delete_vhost(management_url, user, password, vhost)
        return False


def _refuse_if_used(settings: Settings) -> None:
    with connection.connect(settings) as opened:
        used = [queue.name for queue in exchange.topology(settings)
                if status.depth(opened, queue.name)]
        if status.has_exchange(opened):
            used.append(exchange.EXCHANGE)
    if used:
        raise IsolationError(
            f"En {masked(settings.urls[0])} ya existe {used[0]} y no se puede crear un vhost aparte"
            " (hace falta el plugin de gestión y un usuario administrador): la demo no toca colas"
            " ajenas. Activa el plugin o usa otro broker.")


def _delete_all(settings: Settings) -> None:
    with connection.connect(settings) as opened:
        channel = opened.channel()
        for queue in exchange.topology(settings):
            channel.queue_delete(queue=queue.name)
        channel.exchange_delete(exchange=exchange.EXCHANGE)
