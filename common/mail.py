"""The welcome e-mail as a message, and sending it over SMTP.

A failure is the moment's (retry), the message's (dead letter) or the settings' (stop).
Source: https://www.rfc-editor.org/rfc/rfc5321#section-4.2.1 (4yz, 5yz), RFC 4954
"""

import base64
import binascii
import calendar
import email
import email.policy
import re
import smtplib
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from email.utils import formatdate
from urllib.parse import unquote, urlsplit

from common import console
from common.config import LOCAL_HOSTS, SMTP_PORTS, ConfigError, masked
from common.database import COMFORT
from common.events import EMAIL, Event
from common.patches import smtp_host
from common.problems import describe
from common.retry import PermanentError, cut

SENDER = "bienvenida@ecomarket.example"
TEXT = "Hola, {nombre}:\n\nTu cuenta de Ecomarket está lista. ¡Te damos la bienvenida!\n"
TIMEOUT_S = 10  # for each answer of the server
DEADLINE_S = 30  # for all of them: a server may answer one byte at a time
HELLO = "[127.0.0.1]"  # to look up this machine's own name may take seconds for each message


class MailNotSent(Exception):
    """Not this time: a retry may help."""


def welcome(event: Event, smtp_url: str = "") -> bytes:
    """A complete RFC 5322 message, the same bytes for the same event."""
    name = encoded_words(event.nombre)
    made_at = calendar.timegm(tuple(map(int, re.findall("[0-9]+", event.time[:19]))))
    zone = "-0000" if event.time[-1] in "zZ" else event.time[-6:].replace(":", "")
    head = (f"From: Ecomarket <{sender(smtp_url)}>\n"
            f"To: {name}\n <{event.email}>\n"
            f"Subject: Te damos la bienvenida,\n {name}\nDate: {formatdate(made_at)[:-5]}{zone}\n"
            f"Message-ID: <{event.id}@ecomarket.example>\nMIME-Version: 1.0\n"
            "Content-Type: text/plain; charset=\"utf-8\"\n"
            "Content-Transfer-Encoding: quoted-printable\n\n")
    body = binascii.b2a_qp(TEXT.format(nombre=event.nombre).encode(), istext=True)
    return (head.encode("ascii") + body).replace(b"\n", b"\r\n")


def encoded_words(text: str) -> str:
    """RFC 2047, in lines of at most 76: nothing of a name is read as an address. (EmailMessage
    takes a name apart when it folds a line: github.com/python/cpython/issues/121284.)"""
    words = []
    while text:
        word = cut(text, 39)
        words.append(f"=?utf-8?b?{base64.b64encode(word.encode()).decode()}?=")
        text = text[len(word):]
    return "\n ".join(words)


def as_text(message: bytes) -> list[str]:
    """Its header lines and its text, decoded, for people."""
    read = email.message_from_bytes(message, policy=email.policy.default)
    shown = [f"{name}: {read[name]}" for name in ("From", "To", "Subject", "Date")]
    return [console.clean(line) for line in [*shown, "", *read.get_content().splitlines()]]


def sender(smtp_url: str) -> str:
    """The account's own address, if its user is one: most servers accept no other sender."""
    user = unquote(urlsplit(smtp_url).username or "")
    return user if EMAIL.fullmatch(user) else SENDER


def send(smtp_url: str, event: Event) -> None:
    """Send the welcome; returns when the server has it. Raises MailNotSent (4yz; trouble with the
    connection: the server may have it all the same), PermanentError (5yz to the message),
    ConfigError (account or certificate refused)."""
    parts = urlsplit(smtp_url)
    try:
        with _connected(parts) as server:
            _log_in(server, smtp_url, parts)
            server.sendmail(sender(smtp_url), [event.email], welcome(event, smtp_url))
            with suppress(OSError):  # it has the message: a failing QUIT changes nothing
                server.quit()
    except smtplib.SMTPRecipientsRefused as refused:
        raise _refusal(smtp_url, *refused.recipients[event.email]) from None
    except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as refused:
        raise _refusal(smtp_url, refused.smtp_code, refused.smtp_error) from None
    except smtplib.SMTPResponseException as refused:  # of the greeting, of STARTTLS
        raise MailNotSent(_words(refused.smtp_code, refused.smtp_error)) from None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"El certificado del servidor de correo ({masked(smtp_url)}) no vale"
                          f" ({error.verify_message}): usa en SMTP_URL el nombre para el que se"
                          " hizo, o pon en SSL_CERT_FILE quién lo firmó.") from None
    except ssl.SSLError:
        raise MailNotSent("la conexión con el servidor de correo no se pudo cifrar; smtps:// suele"
                          " ir con el puerto 465, y smtp:// con el 587") from None
    except (OSError, ValueError) as error:  # smtplib's own are OSErrors; ValueError: bad base64
        cause = "no responde a tiempo" if "timed out" in str(error) else describe(error)
        raise MailNotSent(f"no hay servidor de correo ({cause})") from None


@contextmanager
def _connected(parts):
    """A connection that ends after DEADLINE_S, once the server's name is looked up."""
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(local_hostname=HELLO, timeout=TIMEOUT_S,
                                                context=ssl.create_default_context())
    else:
        server = smtplib.SMTP(local_hostname=HELLO, timeout=TIMEOUT_S)
    smtp_host(server, parts.hostname)
    over = threading.Event()
    threading.Thread(target=_shut_down_late, args=(server, over), daemon=True).start()
    try:
        code, words = server.connect(parts.hostname, parts.port or SMTP_PORTS[parts.scheme])
        if code != 220:
            raise smtplib.SMTPConnectError(code, words)
        yield server
    finally:
        over.set()
        server.close()


def _shut_down_late(server: smtplib.SMTP, over: threading.Event) -> None:
    """After DEADLINE_S, again and again: while it connects there is no socket yet."""
    ended = over.wait(DEADLINE_S)
    while not ended:
        with suppress(OSError, AttributeError):
            server.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        ended = over.wait(0.5)


def _log_in(server: smtplib.SMTP, smtp_url: str, parts) -> None:
    """STARTTLS if offered, then log in. Never print the answer: it may quote the password."""
    server.ehlo_or_helo_if_needed()
    starttls = parts.scheme == "smtp" and server.has_extn("starttls")
    if starttls:
        server.starttls(context=ssl.create_default_context())
        server.ehlo_or_helo_if_needed()  # a refusal now is not one of the account
    if not parts.username:
        return
    if parts.scheme == "smtp" and not starttls and parts.hostname not in LOCAL_HOSTS:
        raise ConfigError(f"El servidor de correo ({masked(smtp_url)}) no ofrece TLS, y sin él no"
                          " se envía una contraseña: usa smtps:// o el puerto de envío (587).")
    try:
        server.login(unquote(parts.username), unquote(parts.password or ""))
    except smtplib.SMTPServerDisconnected:
        raise
    except smtplib.SMTPException as refused:  # no code: it offers no way that Python knows
        code = getattr(refused, "smtp_code", 500)
        raise _account_refused(smtp_url) if code >= 500 else MailNotSent(
            f"el servidor de correo no admite la cuenta por ahora ({code})") from None


def _refusal(smtp_url: str, code: int, text: bytes | str) -> Exception:
    if code in (530, 534, 535, 538):  # RFC 4954: about the account, not the message
        return _account_refused(smtp_url)
    return (PermanentError if code >= 500 else MailNotSent)(_words(code, text))


def _account_refused(smtp_url: str) -> ConfigError:
    return ConfigError("El servidor de correo no acepta el usuario o la contraseña de SMTP_URL"
                       f" ({masked(smtp_url)}): corrígelos ahí o en .env. {COMFORT}")


def _words(code: int, text: bytes | str) -> str:
    """smtplib gives a str where a line was too long."""
    shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return f"el servidor de correo contesta {code} {' '.join(shown.split())}"
