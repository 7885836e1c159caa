"""What broke, in one Spanish sentence, never with a password in it: broker and TLS."""

import re
import ssl

import pika.exceptions as pika_errors

from common import console
from common.config import ConfigError, KitError, endpoints, masked

NO_BROKER_ADVICE = "Arráncalo con python kit.py broker up o revisa RABBITMQ_URL."


class BrokerUnavailable(KitError):
    exit_code = 69


def no_broker(urls: tuple[str, ...], error: BaseException | None = None) -> BrokerUnavailable:
    cause = f" ({describe(error)})" if error else ""
    return BrokerUnavailable(f"No hay broker en {endpoints(urls)}{cause}. {NO_BROKER_ADVICE}")


def refusal(error: BaseException, url: str) -> ConfigError | None:
    """What is not recoverable by reconnecting; None for all the rest."""
    cause, shown = _root_cause(error), masked(url)
    if isinstance(cause, pika_errors.AuthenticationError) or _code(cause) == 403:
        return ConfigError("El broker no acepta el usuario o la contraseña de RABBITMQ_URL"
                           f" ({shown}): corrígelos ahí o en .env; python kit.py broker status"
                           " dice cuál usar, si lo arrancó el kit.")
    if _code(cause) == 530:
        return ConfigError(f"El broker no da acceso al vhost de RABBITMQ_URL ({shown}): revisa su"
                           " nombre (por defecto /, que se escribe %2F) y los permisos.")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConfigError(f"El certificado del broker ({endpoints([url])}) no vale:"
                           f" {_certificate(cause)}.")
    if not isinstance(cause, pika_errors.ChannelClosedByBroker):
        return None
    text = cause.reply_text
    if cause.reply_code == 403:
        return ConfigError(f"El usuario de RABBITMQ_URL ({shown}) no tiene permiso para usar las"
                           " colas del kit: dáselo con rabbitmqctl set_permissions o usa otro.")
    if "inequivalent arg" in text or "invalid arg" in text:
        return ConfigError(f"{difference(text)}. Usa los ajustes con los que se creó (QUEUE_TYPE),"
                           " o bórralo todo y créalo de nuevo: python setup_queues.py --reset"
                           " (con --force, también lo que tenga mensajes).")
    return None


def difference(text: str) -> str:
    """What the broker says of an inequivalent declaration (406), in Spanish and short."""
    match = re.search(r"inequivalent arg '(.+)' for (?:queue|exchange) '(.+)' in vhost .*: received"
                      r" (.*) but current is (.*)", text, re.DOTALL)
    if not match:
        return f"El broker no acepta la definición: {text}"
    argument, name, wanted, current = (
        re.sub(r"the value (.*) of type .*", r"\1", part) for part in match.groups())
    has = f"sin {argument}" if current == "none" else f"con {argument} = {current}"
    asks = "no lo ponen" if wanted == "none" else f"piden {wanted}"
    return f"{name} ya existe {has}, y estos ajustes {asks}"


def describe(error: BaseException) -> str:
    """What broke, in a few words."""
    cause = _root_cause(error)
    if isinstance(cause, pika_errors.AMQPHeartbeatTimeout):
        return "el broker dejó de responder a los heartbeats"
    if isinstance(cause, pika_errors.ConnectionBlockedTimeout):
        return "el broker no admite mensajes: tiene una alarma de memoria o de disco"
    if _code(cause) == 320:
        return "el broker se está apagando"
    if isinstance(cause, (pika_errors.ConnectionClosedByBroker, pika_errors.ChannelClosedByBroker)):
        return f"el broker cerró la conexión: {console.clean(cause.reply_text)}"
    if isinstance(cause, ConnectionRefusedError):
        return "conexión rechazada"
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return "ahí no se habla TLS: usa amqp:// o el puerto de TLS, que suele ser el 5671"
    if isinstance(cause, ssl.SSLError):
        return f"fallo de TLS: {cause.reason}"
    if isinstance(cause, OSError) and type(cause).__name__ == "gaierror":
        return "no se encuentra el nombre del servidor"
    if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
        return "no responde a tiempo"
    return "la conexión se cortó"


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    """https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/"""
    if error.verify_code in (62, 64):
        return "es de otro servidor; escribe en RABBITMQ_URL el nombre para el que se hizo"
    if error.verify_code in (9, 10):
        return "aún no vale o ha caducado; mira la fecha de este equipo, o renuévalo en el broker"
    return "nadie de confianza lo firmó; pon en RABBITMQ_CA_FILE el certificado de quien lo hizo"


def _root_cause(error: BaseException) -> BaseException:
    """Unwrap what pika wraps: workflow errors hold lists, connector errors hold one."""
    held = (*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args)
    inner = [each for each in held if isinstance(each, BaseException)]
    return _root_cause(inner[-1]) if inner else error


def _code(error: BaseException) -> int | None:
    """Why the broker closed the connection: 403 credentials, 530 no such vhost, 320 shutdown.

    Within a handshake pika gives it as text; without a number, the broker died just then.
    """
    if isinstance(error, pika_errors.ConnectionClosedByBroker):
        return error.reply_code
    quoted = re.search(r"ConnectionClosedByBroker: \((403|530)\)", str(error))
    return int(quoted[1]) if quoted else None
