"""One message over SMTP, and whose fault a failure is: the moment's, the message's, or the settings'.

Source: https://www.rfc-editor.org/rfc/rfc5321#section-4.2.1 (4yz, 5yz), https://www.rfc-editor.org/rfc/rfc4954#section-6
"""

import smtplib
import ssl
from contextlib import closing, suppress
from urllib.parse import unquote, urlsplit

from common.config import SMTP_PORTS, ConfigError, masked
from common.connection import describe
from common.retry import PermanentError

TIMEOUT_S = 10  # for each answer of the server
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ACCOUNT_CODES = (530, 534, 535, 538)


class MailNotSent(Exception):
    """Not this time: another try may help."""


def send(url: str, sender: str, recipient: str, message: bytes) -> None:
    """Send it; returns when the server has taken it.

    url: smtp://[user:password@]host[:port], encrypted as soon as the server offers STARTTLS, or smtps:// from the start.
    Raises MailNotSent (4yz, no connection), PermanentError (5yz), ConfigError (account or certificate refused).
    """
    try:
        with closing(_connect(url)) as server:
            server.sendmail(sender, [recipient], message)
            with suppress(OSError):  # it has the message: a clumsy goodbye changes nothing
                server.quit()
    except smtplib.SMTPRecipientsRefused as refusal:
        raise _refused(url, *refusal.recipients[recipient]) from None
    except smtplib.SMTPConnectError as refusal:  # it talks to nobody now, whatever the code
        raise MailNotSent(_words(refusal.smtp_code, refusal.smtp_error)) from None
    except smtplib.SMTPResponseException as refusal:
        raise _refused(url, refusal.smtp_code, refusal.smtp_error) from None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"El certificado del servidor de correo ({masked(url)}) no vale ({error.verify_message}):"
                          " usa en SMTP_URL el nombre para el que se hizo, o pon en SSL_CERT_FILE quién lo firmó.") from None
    except smtplib.SMTPNotSupportedError:
        raise ConfigError(f"El servidor de correo ({masked(url)}) no admite usuario y contraseña: quítalos de"
                          " SMTP_URL o usa el puerto de envío, que suele ser el 587.") from None
    except ssl.SSLError:
        raise MailNotSent("la conexión con el servidor de correo no se pudo cifrar; smtps:// suele ir con el puerto"
                          " 465, y smtp:// con el 587") from None
    except OSError as error:  # smtplib's own errors are OSErrors, too
        raise MailNotSent(f"no hay servidor de correo ({describe(error)})") from None


def _connect(url: str) -> smtplib.SMTP:
    """Encrypted where it can be, and logged in if the URL says as whom."""
    parts, context = urlsplit(url), ssl.create_default_context()
    where = parts.hostname, parts.port or SMTP_PORTS[parts.scheme]
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(*where, timeout=TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(*where, timeout=TIMEOUT_S)
    try:
        server.ehlo_or_helo_if_needed()
        encrypted = parts.scheme == "smtps"
        if not encrypted and server.has_extn("starttls"):
            server.starttls(context=context)
            encrypted = True
        if parts.username:
            if not encrypted and parts.hostname not in LOOPBACK:
                raise ConfigError(f"El servidor de correo ({masked(url)}) no ofrece TLS, y sin él no se envía una"
                                  " contraseña: usa smtps:// o el puerto de envío, que suele ser el 587.")
            server.login(unquote(parts.username), unquote(parts.password or ""))
        return server
    except BaseException:
        server.close()
        raise


def _refused(url: str, code: int, text: bytes) -> Exception:
    if code in ACCOUNT_CODES:
        return ConfigError(f"El servidor de correo no acepta el usuario o la contraseña de SMTP_URL ({masked(url)}):"
                           " corrígelos ahí o en .env. No se pierde nada: el broker guarda los eventos.")
    return PermanentError(_words(code, text)) if code >= 500 else MailNotSent(_words(code, text))


def _words(code: int, text: bytes) -> str:
    return f"el servidor de correo contesta {code} {' '.join(text.decode('utf-8', 'replace').split())}"
