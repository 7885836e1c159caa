"""Connections to the broker: one that fails at once, one that always comes back; and what broke, in words."""

import itertools
import logging
import random
import ssl
import struct
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pika.data
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import (
    AMQPConnectionError, AMQPError, AMQPHeartbeatTimeout, AuthenticationError, ChannelClosedByBroker,
    ConnectionBlockedTimeout, ConnectionClosedByBroker, ProbableAccessDeniedError, ProbableAuthenticationError)

from common import console, exchange
from common.config import ConfigError, KitError, Settings, masked

HEARTBEAT_S = 10
CONNECT_TIMEOUT_S = 10
BLOCKED_TIMEOUT_S = 30  # one-shot scripts only: consumers wait an alarm out
FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 5.0

logging.getLogger("pika").setLevel(logging.CRITICAL)  # own words for errors (docs/facts.md, pika 6)


class BrokerUnavailable(KitError):
    exit_code = 69


def parameters(url: str, ca_file: Path | None, **more) -> pika.URLParameters:
    wanted = pika.URLParameters(url)
    if urlsplit(url).scheme == "amqps":  # certificate and host name are checked
        wanted.ssl_options = pika.SSLOptions(ssl.create_default_context(cafile=ca_file), wanted.host)
    wanted.heartbeat = HEARTBEAT_S
    wanted.socket_timeout = wanted.stack_timeout = CONNECT_TIMEOUT_S
    wanted.connection_attempts = 1
    for name, value in more.items():
        setattr(wanted, name, value)
    return wanted


@contextmanager
def connect(settings: Settings):
    """A blocking connection to the first URL that answers, for scripts that do one thing and end.

    Raises BrokerUnavailable, also when the connection breaks within the block, or ConfigError.
    """
    connection, url = _first_that_answers(settings)
    try:
        yield connection
        connection.close()
    except AMQPError as error:
        raise refused(error, url) or BrokerUnavailable(
            f"Se perdió la conexión con el broker ({describe(error)}): mira que esté en marcha"
            " (python kit.py broker status).") from None


def _first_that_answers(settings: Settings) -> tuple[pika.BlockingConnection, str]:
    problem: Exception = AMQPConnectionError()
    for url in random.sample(settings.urls, len(settings.urls)):
        try:
            return pika.BlockingConnection(parameters(
                url, settings.ca_file, blocked_connection_timeout=BLOCKED_TIMEOUT_S)), url
        except (AMQPError, AMQPConnectorException, OSError) as error:
            problem = error
            refusal = refused(error, url)
            if refusal:
                raise refusal from None
    raise BrokerUnavailable(
        f"No hay broker en {places(settings)} ({describe(problem)}): arráncalo con"
        " python kit.py broker up o revisa RABBITMQ_URL.")


def places(settings: Settings) -> str:
    return places_of(settings.urls)


def places_of(urls: Iterable[str]) -> str:
    """Host and port of every URL, for the screen."""
    found = [urlsplit(url) for url in urls]
    return ", ".join(f"{parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"
                     for parts in found)


def refused(error: BaseException, url: str) -> ConfigError | None:
    """The words for an error that no waiting mends; None for any other."""
    cause = root_cause(error)
    if isinstance(cause, AuthenticationError) or _code(cause) == 403:
        return ConfigError("El broker no acepta el usuario o la contraseña de RABBITMQ_URL"
                           f" ({masked(url)}): corrígelos ahí o en .env; python kit.py broker status dice cuál usar.")
    if _code(cause) == 530:
        return ConfigError(f"El broker no da acceso al vhost de RABBITMQ_URL ({masked(url)}): revisa su nombre"
                           " (el de fábrica, /, se escribe %2F) y los permisos del usuario.")
    if isinstance(cause, ChannelClosedByBroker) and cause.reply_code == 403:
        return ConfigError(f"El usuario de RABBITMQ_URL ({masked(url)}) no tiene permiso para usar las colas del kit:"
                           " dáselo con rabbitmqctl set_permissions o usa otro usuario.")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConfigError(f"El certificado del broker ({places_of([url])}) no vale: {_certificate_problem(cause)}.")
    if isinstance(cause, ChannelClosedByBroker) and ("inequivalent arg" in cause.reply_text
                                                     or "invalid arg" in cause.reply_text):
        return exchange.explain_refusal(cause.reply_text)
    return None


def describe(error: BaseException) -> str:
    """What broke, in a few Spanish words and never with a password in it."""
    cause = root_cause(error)
    if isinstance(cause, AMQPHeartbeatTimeout):
        return "el broker dejó de dar señales de vida"
    if isinstance(cause, ConnectionBlockedTimeout):
        return "el broker no admite mensajes: tiene una alarma de memoria o de disco"
    if _code(cause) == 320:
        return "el broker se está apagando"
    if isinstance(cause, (ConnectionClosedByBroker, ChannelClosedByBroker)):
        return f"el broker cerró la conexión: {console.clean(cause.reply_text)}"
    if isinstance(cause, ConnectionRefusedError):
        return "conexión rechazada"
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return "ahí no se habla TLS: usa amqp:// o el puerto de TLS, que suele ser el 5671"
    if isinstance(cause, ssl.SSLError):
        return f"fallo de TLS: {cause.reason}"
    if isinstance(cause, OSError) and type(cause).__name__ == "gaierror":
        return "el nombre del servidor no existe"
    if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
        return "no responde a tiempo"
    return "la conexión se cortó"


def _certificate_problem(error: ssl.SSLCertVerificationError) -> str:
    """OpenSSL's codes (https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/), for a person."""
    if error.verify_code in (62, 64):
        return "es de otro servidor; escribe en RABBITMQ_URL el nombre para el que se hizo"
    if error.verify_code == 10:
        return "ha caducado; renuévalo en el broker"
    return "nadie de confianza lo firmó; pon en RABBITMQ_CA_FILE el certificado de quien lo hizo"


def root_cause(error: BaseException) -> BaseException:
    """Unwrap what pika wraps: workflow errors hold lists, connector errors hold one."""
    while True:
        inner = getattr(error, "exceptions", None) or getattr(error, "exception", None) or error.args[:1]
        inner = inner[-1] if isinstance(inner, (list, tuple)) and inner else inner
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _code(error: BaseException) -> int | None:
    """Why the broker closed the connection: 403 wrong credentials, 530 no such vhost, 320 it goes down.

    Within a handshake pika has it in a text; a broker that dies just then looks the same, without a number.
    """
    if isinstance(error, (ProbableAuthenticationError, ProbableAccessDeniedError)):
        return next((code for code in (403, 530) if f"ConnectionClosedByBroker: ({code})" in str(error)), None)
    return error.reply_code if isinstance(error, ConnectionClosedByBroker) else None


def backoff_s(failures: int) -> float:
    """Exponential with jitter: after 0, 1, 2 … failures in a row, at most LAST_BACKOFF_S."""
    return min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 16)) * random.uniform(0.5, 1)


class Link:
    """One connection with one channel on an I/O loop, which comes back by itself until closed.

    on_channel(channel): a new channel is open. on_lost(): it is gone, and what was under way on it
    is unknown. on_refused(error): what no new connection mends. All are called in the loop's thread.
    quiet: another link of the script says it already when the broker goes and comes.
    """

    def __init__(self, ioloop, settings: Settings, on_channel, on_lost, on_refused, quiet: bool = False):
        self.ioloop = ioloop
        self.blocked = False  # an alarm: the broker reads nothing from a connection that publishes
        self.closed = False
        self._urls = itertools.cycle(random.sample(settings.urls, len(settings.urls)))
        self._url, self._ca_file = "", settings.ca_file
        self._on_channel, self._on_lost, self._on_refused = on_channel, on_lost, on_refused
        self._connection = None
        self._failures = 0
        self._pausing = False  # between a failure and the next try
        self._quiet = quiet
        self._said = ""
        self._worked = False

    def open(self) -> None:
        if self.closed or self._connection or self._pausing:
            return
        self._url = next(self._urls)
        try:
            self._connection = _Connection(
                parameters(self._url, self._ca_file), custom_ioloop=self.ioloop, on_open_callback=self._opened,
                on_open_error_callback=self._lost, on_close_callback=self._lost)
        except (AMQPError, OSError, ValueError) as error:
            self._drop(describe(error))

    def healthy(self) -> None:
        """The channel is of use: the next failure is the first again."""
        self._failures = 0
        self._worked = True
        if self._said and not self._quiet:
            self.say("Conectado de nuevo con el broker.", "ok")
        self._said = ""

    def carries(self, channel) -> bool:
        """Whether the channel is of the present connection, not of one that was given up."""
        return channel.connection is self._connection

    def restart(self, words: str) -> None:
        """Give this connection up for a new one; `words` says why."""
        if self._connection and not self.closed:
            self._drop(words)

    def close(self) -> None:
        self.closed = True
        _hang_up(self._connection)

    @property
    def gone(self) -> bool:
        """After close(): whether the goodbye is over."""
        return not self._connection or self._connection.is_closed

    def _opened(self, connection) -> None:
        if connection is not self._connection or self.closed:
            return _hang_up(connection)
        connection.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel) -> None:
        if self.carries(channel) and not self.closed:
            channel.add_on_close_callback(lambda _, reason: self._lost(channel.connection, reason))
            self._on_channel(channel)

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        if blocked:
            self.say("El broker no admite mensajes: tiene una alarma de memoria o de disco. Se espera.", "warn")
        else:
            self.say("El broker admite mensajes otra vez.", "ok")

    def _lost(self, connection, reason: BaseException) -> None:
        if connection is not self._connection or self.closed:
            return
        refusal = refused(reason, self._url)
        if refusal:
            self._on_refused(refusal)
        else:
            self._drop(describe(reason))

    def _drop(self, words: str) -> None:
        connection, self._connection = self._connection, None
        self.blocked = False
        _hang_up(connection)
        self._on_lost()
        delay = backoff_s(self._failures)
        self._failures += 1
        if words != self._said and not self._quiet:
            advice = "" if self._worked else " Arráncalo en otra terminal con python kit.py broker up o revisa RABBITMQ_URL."
            self.say(f"Sin conexión con el broker: {words}.{advice} Se vuelve a intentar.", "warn")
        self._said = words
        self._pausing = True
        self.ioloop.call_later(delay, self._open_again)

    def _open_again(self) -> None:
        self._pausing = False
        self.open()

    def say(self, text: str, colour: str) -> None:
        """A line for people from the loop's thread; if nobody reads it any more, that ends the script."""
        try:
            console.say(f"{console.clock()} {text}", colour)
        except BrokenPipeError as error:
            self._on_refused(error)


class _Connection(pika.SelectConnection):
    """pika makes a system call for each frame, three an event; here all that is there goes with one."""

    def __init__(self, *arguments, **options):
        self._frames: list[bytes] = []
        super().__init__(*arguments, **options)

    def _output_marshaled_frames(self, marshaled_frames) -> None:
        if not self._frames:
            self.ioloop.call_later(0, self._send_frames)
        self._frames += marshaled_frames

    def _send_frames(self) -> None:
        frames, self._frames = b"".join(self._frames), []
        if self._transport:  # else the connection is gone, and they with it
            super()._output_marshaled_frames([frames])


def _hang_up(connection) -> None:
    """Close politely; a connection that is not there, or already closing, needs nothing."""
    try:
        if connection:
            connection.close()
    except Exception:  # it is given up anyway, and the I/O thread has to go on
        pass


_pika_decode_value = pika.data.decode_value


def _decode_value(encoded: bytes, offset: int) -> tuple:
    """pika's decoder, which a header of NaN, of the year 30000 or 400 tables deep ends with an
    exception, and so every consumer of the queue in turn; here such a value reads as None."""
    try:
        return _pika_decode_value(encoded, offset)
    except (ArithmeticError, ValueError, OSError, RecursionError):
        kind = encoded[offset:offset + 1]
        size = {b"f": 4, b"d": 8, b"T": 8, b"D": 5}.get(kind)
        if size is None:  # a table or an array says its length
            size = 4 + struct.unpack_from(">I", encoded, offset + 1)[0]
        return None, offset + 1 + size


pika.data.decode_value = _decode_value
