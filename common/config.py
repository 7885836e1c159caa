"""Settings of every script: flag > environment > `.env` > default."""

import math
import os
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent

DEFAULTS = {
    "RABBITMQ_URL": "amqp://guest:guest@localhost:5672/%2F",
    "RETRY_DELAYS": "5,30,120",
    "STATE_DIR": ".state",
    "QUEUE_TYPE": "quorum",
    "RABBITMQ_CA_FILE": "",
    "SMTP_URL": "",
}
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
SMTP_PORTS = {"smtp": 587, "smtps": 465}
PATHS = ("STATE_DIR", "RABBITMQ_CA_FILE")
MAX_DELAY_S = 24 * 3600
MAX_DELAYS = 20  # the journey of a letter travels in its headers; a frame holds so much


class KitError(Exception):
    """What a person is told: str(error) is one Spanish sentence; exit_code ends the script."""

    exit_code = 1


class ConfigError(KitError):
    exit_code = 78


@dataclass(frozen=True)
class Settings:
    """urls: AMQP URLs of one broker or cluster; retry_delays: seconds, in the order they are waited.

    ca_file: who vouches for the broker of an amqps:// URL; None for the authorities that this machine trusts.
    smtp_url: where the e-mail consumer sends its mail (common/smtp.py); empty for nowhere.
    """

    urls: tuple[str, ...]
    retry_delays: tuple[float, ...]
    state_dir: Path
    queue_type: str
    ca_file: Path | None = None
    smtp_url: str = ""


def load(flags: dict[str, str | None] | None = None) -> Settings:
    """Read the settings; `flags` maps a setting's name to what the command line said.

    Raises ConfigError, which names the setting, what is wrong with it and an example.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    for name in PATHS:
        if given.get(name):  # a path typed in a shell means that shell's folder
            given[name] = str(Path(given[name]).absolute())
    values = DEFAULTS | _dotenv() | {name: os.environ[name] for name in DEFAULTS if os.environ.get(name)} | given
    return Settings(
        urls=_urls(values["RABBITMQ_URL"]),
        retry_delays=_delays(values["RETRY_DELAYS"]),
        state_dir=_state_dir(values["STATE_DIR"]),
        queue_type=_queue_type(values["QUEUE_TYPE"]),
        ca_file=_ca_file(values["RABBITMQ_CA_FILE"]),
        smtp_url=_smtp_url(values["SMTP_URL"]),
    )


def masked(url: str) -> str:
    """The URL without its password, for the screen."""
    head, at, tail = url.rpartition("@")
    scheme, slashes, user = head.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{tail}"


def _dotenv() -> dict[str, str]:
    file = ROOT / ".env"
    if not file.exists():
        return {}
    from dotenv import dotenv_values  # imported late: --help does not need it
    from dotenv.parser import parse_stream

    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows' Notepad puts a mark in front
    except (OSError, UnicodeDecodeError):
        raise ConfigError("No se puede leer el archivo .env: guárdalo como texto UTF-8 y vuelve a probar.") from None
    for line in parse_stream(StringIO(text)):
        if line.error:
            raise ConfigError(f"La línea {line.original.line} de .env no se entiende: escribe NOMBRE=valor.")
    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value}


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(part.strip() for part in text.split(",") if part.strip())
    if not urls:
        raise ConfigError(f"RABBITMQ_URL está vacía; ejemplo: {DEFAULTS['RABBITMQ_URL']}.")
    for url in urls:
        _check_url(url)
    return urls


def _check_url(url: str) -> None:
    """Say in our words what pika would say with a piece of the password in it (docs/facts.md, pika 6)."""
    example = f"ejemplo: {DEFAULTS['RABBITMQ_URL']}."
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
        if set(url) & set(" \t\r\n") or "@" in parts.path or not url.encode():  # encode: lone surrogates
            raise ValueError
    except ValueError:
        raise ConfigError(
            "RABBITMQ_URL no se entiende: revisa el servidor y el puerto (1 a 65535) y escribe los caracteres"
            f" especiales de la contraseña codificados (/ es %2F, @ es %40, la coma %2C); {example}"
        ) from None
    if parts.scheme not in ("amqp", "amqps"):
        raise ConfigError(f"RABBITMQ_URL debe empezar por amqp:// o amqps://; {example}")
    if not parts.hostname:
        raise ConfigError(f"A RABBITMQ_URL le falta el nombre del servidor; {example}")
    if parts.username is not None and parts.password is None:
        raise ConfigError(f"A RABBITMQ_URL le falta la contraseña detrás del usuario; {example}")
    if port == 0:
        raise ConfigError(f"RABBITMQ_URL tiene el puerto 0; usa uno de 1 a 65535; {example}")
    if "/" in parts.path[1:]:
        raise ConfigError(
            f"El vhost de RABBITMQ_URL lleva una / sin codificar: escríbela como %2F; {example}")
    if len(unquote(parts.path[1:]).encode()) > 255:
        raise ConfigError(f"El vhost de RABBITMQ_URL tiene más de 255 bytes; {example}")
    if parts.query or parts.fragment:
        raise ConfigError(
            "RABBITMQ_URL lleva un ? o un #: si son de la contraseña, escríbelos como %3F y %23;"
            f" opciones detrás de ? no se admiten; {example}")


def _delays(text: str) -> tuple[float, ...]:
    parts = [part.strip() for part in text.split(",")]
    try:
        delays = tuple(float(part) for part in parts)
    except ValueError:
        delays = ()
    if not delays or len(delays) > MAX_DELAYS or not all(_is_delay(delay) for delay in delays):
        raise ConfigError(
            f"RETRY_DELAYS={text[:60]!r} no vale: escribe de 1 a {MAX_DELAYS} esperas en segundos, de 0.001 a"
            f" {MAX_DELAY_S}, separadas por comas; ejemplo: RETRY_DELAYS=5,30,120.")
    return delays


def _is_delay(seconds: float) -> bool:
    return math.isfinite(seconds) and 0.001 <= seconds <= MAX_DELAY_S


def _state_dir(text: str) -> Path:
    try:
        return _path(text)
    except ValueError:
        raise ConfigError("STATE_DIR no es el nombre de una carpeta; ejemplo: STATE_DIR=.state.") from None


def _path(text: str) -> Path:
    try:
        if "\0" not in text:
            return ROOT / Path(text).expanduser()
    except RuntimeError:  # ~somebody that this machine does not know
        pass
    raise ValueError(text)


def _ca_file(text: str) -> Path | None:
    if not text:
        return None
    import ssl  # late: only TLS needs it

    try:
        ssl.create_default_context(cafile=_path(text))
        return _path(text)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise ConfigError("RABBITMQ_CA_FILE no es un archivo con certificados en formato PEM que se pueda leer;"
                          " ejemplo: RABBITMQ_CA_FILE=ca.pem.") from None


def _smtp_url(text: str) -> str:
    if text and not _is_smtp_url(text):
        raise ConfigError(
            "SMTP_URL no se entiende: escribe smtp://servidor:puerto, o smtp://usuario:contraseña@servidor:puerto con"
            " los caracteres especiales codificados (/ es %2F, @ es %40), o lo mismo con smtps://; ejemplo:"
            " SMTP_URL=smtp://localhost:1025.")
    return text


def _is_smtp_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        (parts.hostname or "").encode("idna")
        return bool(parts.scheme in SMTP_PORTS and parts.hostname and parts.port != 0
                    and (not parts.username) == (not parts.password)
                    and not (parts.path.strip("/") or parts.query or parts.fragment)
                    and unquote(text).isascii() and unquote(text).isprintable() and " " not in text)
    except ValueError:
        return False


def _queue_type(text: str) -> str:
    if text not in ("quorum", "classic"):
        raise ConfigError(f"QUEUE_TYPE={text[:60]!r} no vale: escribe quorum o classic.")
    return text
