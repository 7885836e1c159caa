"""Connections to the broker: one that fails at once, one that always comes back, and its thread.

connect() is for a script that does one thing and ends. A consumer, and level 3, need more: a
handler may take minutes while heartbeats go on, and a lost connection is opened again. So an
IoThread serves pika's SelectConnection, and a Link keeps it open.
"""

import itertools
import logging
import random
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.data
from pika.adapters.select_connection import IOLoop, SelectPoller
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError

from common import console, patches
from common.config import Settings
from common.problems import NO_BROKER_ADVICE, BrokerUnavailable, describe, no_broker, refusal

HEARTBEAT_S = 10
CONNECT_TIMEOUT_S = 10
BLOCKED_TIMEOUT_S = 30  # of connect(); a Link waits as long as an alarm lasts
FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 5.0

logging.getLogger("pika").setLevel(logging.CRITICAL)  # the kit says it (docs/facts.md, pika 6)
patches.tolerant_decoder(pika.data)
patches.short_waits(SelectPoller)


def parameters(url: str, ca_file: Path | None, **more) -> pika.URLParameters:
    wanted = pika.URLParameters(url)
    if urlsplit(url).scheme == "amqps":  # certificate and host name are checked
        context = ssl.create_default_context(cafile=ca_file)
        wanted.ssl_options = pika.SSLOptions(context, wanted.host)
    wanted.heartbeat = HEARTBEAT_S
    wanted.socket_timeout = wanted.stack_timeout = CONNECT_TIMEOUT_S
    for name, value in more.items():
        setattr(wanted, name, value)
    return wanted


@contextmanager
def connect(settings: Settings):
    """A blocking connection to the first URL that answers. Raises ConfigError, and
    BrokerUnavailable also when the connection breaks within the block."""
    connection, url = _first_that_answers(settings)
    try:
        yield connection
        connection.close()
    except AMQPError as error:
        raise refusal(error, url) or BrokerUnavailable(
            f"Se perdió la conexión con el broker ({describe(error)}): mira que esté en marcha"
            " (python kit.py broker status).") from None


def _first_that_answers(settings: Settings) -> tuple[pika.BlockingConnection, str]:
    for url in random.sample(settings.urls, len(settings.urls)):
        try:
            return pika.BlockingConnection(parameters(
                url, settings.ca_file, blocked_connection_timeout=BLOCKED_TIMEOUT_S)), url
        except (AMQPError, AMQPConnectorException, OSError) as error:
            if refused := refusal(error, url):
                raise refused from None
            problem = error
    raise no_broker(settings.urls, problem)


def backoff_s(failures: int) -> float:
    """Exponential with jitter: after 0, 1, 2 … failures in a row, at most LAST_BACKOFF_S."""
    longest = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 16))
    return longest * random.uniform(0.5, 1)


class IoThread(threading.Thread):
    """Serves pika's connections while the main thread does the work. pika's objects belong to this
    thread; call() is the only way in (docs/facts.md, pika 4)."""

    def __init__(self):
        super().__init__(name="rabbitmq", daemon=True)
        self.ioloop = IOLoop()
        self.call = self.ioloop.add_callback_threadsafe
        self.error: Exception | None = None  # no reconnecting helps; for the main thread
        self.links: list[Link] = []
        self._stopped = False

    def run(self) -> None:
        while not self._stopped:
            try:
                self.ioloop.start()
            except Exception as error:  # from within pika (docs/facts.md, pika 9)
                for link in self.links:
                    link.restart(describe(error))

    def stop(self, timeout_s: float) -> None:
        """Close the links and end; a broker that does not answer is not waited for."""
        self.call(lambda: self._close(time.monotonic() + timeout_s))
        self.join(timeout_s + 0.5)

    def _close(self, deadline: float) -> None:
        closed = [link.close() for link in self.links]
        if all(closed) or time.monotonic() > deadline:
            self._stopped = True
            self.ioloop.stop()
        else:
            self.ioloop.call_later(0.02, lambda: self._close(deadline))


class Link:
    """A connection with one channel, opened again and again until close().

    on_channel(channel): a new channel is open. on_lost(): it is gone, and what was under way on it
    is unknown. quiet: another link of the script prints that the broker went and came. All runs in
    the I/O thread; the main thread may read `channel` (the open one, or None) and `connected_at`.
    """

    def __init__(self, io: IoThread, settings: Settings, on_channel, on_lost, quiet: bool = False):
        self.channel: Any = None
        self.blocked = False  # an alarm: the broker reads nothing from a publishing connection
        self.connected_at = 0.0  # the last time, of time.monotonic(); 0: never
        self._io, self._ca_file = io, settings.ca_file
        self._on_channel, self._on_lost, self._quiet = on_channel, on_lost, quiet
        self._urls = itertools.cycle(random.sample(settings.urls, len(settings.urls)))
        self._url = self._printed = ""
        self._connection: Any = None
        self._failures = 0
        self._closed = False
        io.links.append(self)

    def open(self) -> None:
        """Connect; the second call does nothing, as a lost connection comes back by itself."""
        if not self._url:
            self._connect()

    def _connect(self) -> None:
        if self._closed or self._connection:
            return
        self._url = next(self._urls)
        try:
            self._connection = pika.SelectConnection(
                parameters(self._url, self._ca_file), custom_ioloop=self._io.ioloop,
                on_open_callback=self._opened, on_open_error_callback=self._lost,
                on_close_callback=self._lost)
        except (AMQPError, OSError, ValueError) as error:
            self.restart(describe(error))

    def healthy(self) -> None:
        """The channel is of use: the next failure counts as the first."""
        self._failures = 0
        self.connected_at = time.monotonic()
        if self._printed and not self._quiet:
            self.print_line("Conectado de nuevo con el broker.", "ok")
        self._printed = ""

    def close(self) -> bool:
        """Close it for good; whether the broker has answered yet."""
        self._closed, self.channel = True, None
        _close(self._connection)
        return not self._connection or self._connection.is_closed

    def _opened(self, connection) -> None:
        if connection is not self._connection or self._closed:
            return _close(connection)
        connection.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel) -> None:
        if channel.connection is self._connection and not self._closed:
            channel.add_on_close_callback(lambda _, reason: self._lost(channel.connection, reason))
            self.channel = channel
            self._on_channel(channel)

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        if blocked:
            self.print_line("El broker no admite mensajes: tiene una alarma de memoria o de disco."
                            " Se espera.", "warn")
        else:
            self.print_line("El broker admite mensajes otra vez.", "ok")

    def _lost(self, connection, reason: BaseException) -> None:
        if connection is not self._connection or self._closed:
            return
        self.channel = None
        if refused := refusal(reason, self._url):
            self._io.error = refused
        else:
            self.restart(describe(reason))

    def restart(self, words: str) -> None:
        """Give this connection up for a new one, after a pause; `words` says why."""
        if self._closed or not self._url:  # never opened
            return
        connection, self._connection, self.channel = self._connection, None, None
        self.blocked = False
        self._io.ioloop.call_later(backoff_s(self._failures), self._connect)
        self._failures += 1
        _close(connection)
        self._on_lost()
        if words != self._printed and not self._quiet:
            advice = "" if self.connected_at else f" {NO_BROKER_ADVICE}"
            self.print_line(f"Sin conexión con el broker: {words}.{advice} Se reintenta.", "warn")
        self._printed = words

    def print_line(self, text: str, colour: str | None = None) -> None:
        """Print from the I/O thread; if stdout fails, the main thread ends the script."""
        try:
            console.print_line(f"{console.clock()} {text}", colour)
        except console.OutputError as error:
            self._io.error = error


def _close(connection) -> None:
    """Close a connection that may be absent, closing or broken; the I/O thread goes on."""
    with suppress(Exception):
        if connection:
            connection.close()
