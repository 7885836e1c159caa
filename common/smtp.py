"""One message over SMTP, and whose fault a failure is: the moment's, the message's, or the settings'.

Source: https://www.rfc-editor.org/rfc/rfc5321#section-4.2.1 (4yz, 5yz), https://www.rfc-editor.org/rfc/rfc4954#section-6
"""

import smtplib
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit

from common.config import LOCAL_HOSTS, SMTP_PORTS, ConfigError, masked
from common.connection import describe
from common.retry import PermanentError

TIMEOUT_S = 10  # for each answer of the server
DEADLINE_S = 30  # for all of them: a server may answer one byte at a time
ACCOUNT_CODES = (530, 534, 535, 538)


class MailNotSent(Exception):
    """Not this time: another try may help."""


def send(url: str, sender: str, recipient: str, message: bytes) -> None:
    """Send it; returns when the server has taken it.

    url: smtp://[user:password@]host[:port], encrypted as soon as the server offers STARTTLS, or smtps:// from the start.
    Raises MailNotSent (4yz to the message, or any trouble with the connection: the server may have taken it),
    PermanentError (5yz to the message), ConfigError (account or certificate refused).
    """
    parts = urlsplit(url)
    try:
        with _connected(parts) as server:
            _log_in(server, url, parts)
            server.sendmail(sender, [recipient], message)
            with suppress(OSError):  # it has the message: a clumsy goodbye changes nothing
                server.quit()
    except smtplib.SMTPRecipientsRefused as refusal:
        raise _refused(url, *refusal.recipients[recipient]) from None
    except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as refusal:
        raise _refused(url, refusal.smtp_code, refusal.smtp_error) from None
    except smtplib.SMTPResponseException as refusal:  # of the greeting, of STARTTLS: nothing was said of the message
        raise MailNotSent(_words(refusal.smtp_code, refusal.smtp_error)) from None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"El certificado del servidor de correo ({masked(url)}) no vale ({error.verify_message}):"
                          " usa en SMTP_URL el nombre para el que se hizo, o pon en SSL_CERT_FILE quién lo firmó.") from None
    except ssl.SSLError:
        raise MailNotSent("la conexión con el servidor de correo no se pudo cifrar; smtps:// suele ir con el puerto"
                          " 465, y smtp:// con el 587") from None
    except (OSError, ValueError) as error:  # smtplib's own errors are OSErrors; a challenge that is no base64
        late = "timed out" in str(error)  # smtplib says only so
        raise MailNotSent(f"no hay servidor de correo ({'no responde a tiempo' if late else describe(error)})") from None


@contextmanager
def _connected(parts):
    """A connection that is cut after DEADLINE_S, whatever it is waiting for, and closed at the end."""
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(timeout=TIMEOUT_S, context=ssl.create_default_context())
    else:
        server = smtplib.SMTP(timeout=TIMEOUT_S)
    over = threading.Event()
    threading.Thread(target=_cut_late, args=(server, over), daemon=True).start()
    try:
        server._host = parts.hostname  # as the constructor does: the name that the certificate has to have
        code, words = server.connect(parts.hostname, parts.port or SMTP_PORTS[parts.scheme])
        if code != 220:
            raise smtplib.SMTPConnectError(code, words)
        yield server
    finally:
        over.set()
        server.close()


def _cut_late(server: smtplib.SMTP, over: threading.Event) -> None:
    """After DEADLINE_S, again and again until it is over: while the connection is made there is no socket yet."""
    ended = over.wait(DEADLINE_S)
    while not ended:
        with suppress(OSError, AttributeError):
            server.sock.shutdown(socket.SHUT_RDWR)
        ended = over.wait(0.5)


def _log_in(server: smtplib.SMTP, url: str, parts) -> None:
    """Encrypted where it can be, and logged in if the URL says as whom. What the server says of an account is not
    repeated: it may quote the password."""
    encrypted = parts.scheme == "smtps"
    server.ehlo_or_helo_if_needed()
    if not encrypted and server.has_extn("starttls"):
        server.starttls(context=ssl.create_default_context())
        encrypted = True
    if not parts.username:
        return
    if not encrypted and parts.hostname not in LOCAL_HOSTS:
        raise ConfigError(f"El servidor de correo ({masked(url)}) no ofrece TLS, y sin él no se envía una"
                          " contraseña: usa smtps:// o el puerto de envío, que suele ser el 587.")
    try:
        server.login(unquote(parts.username), unquote(parts.password or ""))
    except smtplib.SMTPServerDisconnected:
        raise
    except smtplib.SMTPResponseException as refusal:
        if refusal.smtp_code >= 500:
            raise _account_refused(url) from None
        raise MailNotSent(f"el servidor de correo no admite la cuenta por ahora ({refusal.smtp_code})") from None
    except smtplib.SMTPException:  # it offers no way to log in, or none that Python knows
        raise _account_refused(url) from None


def _refused(url: str, code: int, text: bytes) -> Exception:
    if code in ACCOUNT_CODES:
        return _account_refused(url)
    return PermanentError(_words(code, text)) if code >= 500 else MailNotSent(_words(code, text))


def _account_refused(url: str) -> ConfigError:
    return ConfigError(f"El servidor de correo no acepta el usuario o la contraseña de SMTP_URL ({masked(url)}):"
                       " corrígelos ahí o en .env. No se pierde nada: el broker guarda los eventos.")


def _words(code: int, text: bytes | str) -> str:
    """smtplib itself gives a text where a line was too long."""
    shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return f"el servidor de correo contesta {code} {' '.join(shown.split())}"
