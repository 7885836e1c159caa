"""Settings of every script: flag > environment > `.env` > default."""

import os
import re
import ssl
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent

DEFAULTS = {
    "RABBITMQ_URL": "amqp://guest:guest@127.0.0.1:5672/%2F",  # localhost: 2 s more on Windows
    "RETRY_DELAYS": "5,30,120",
    "STATE_DIR": ".state",
    "QUEUE_TYPE": "quorum",
    "RABBITMQ_CA_FILE": "",
    "RABBITMQ_MANAGEMENT_URL": "",
    "SMTP_URL": "",
}
COMPOSE_NAMES = {"RABBITMQ_USER", "RABBITMQ_PASSWORD"}  # of docker-compose.yml
AMQP_PORTS, MANAGEMENT_PORT = {"amqp": 5672, "amqps": 5671}, 15672
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
SMTP_PORTS = {"smtp": 587, "smtps": 465}
MAX_DELAY_S = 24 * 3600
MAX_DELAYS = 20  # the history of a dead letter travels in its headers; a frame holds so much


class KitError(Exception):
    """str(error) is one Spanish sentence for the person; exit_code ends the script."""

    exit_code = 1


class ConfigError(KitError):
    exit_code = 78


@dataclass(frozen=True)
class Settings:
    """urls: AMQP URLs of one broker or cluster. retry_delays: seconds, in order. ca_file: the
    authority of an amqps:// broker; None for those this machine trusts. smtp_url: "" for none.
    management_url: without a final slash; "" for the one beside each broker."""

    urls: tuple[str, ...]
    retry_delays: tuple[float, ...]
    state_dir: Path
    queue_type: str
    ca_file: Path | None = None
    smtp_url: str = ""
    management_url: str = ""


def load(flags: dict[str, str | None] | None = None) -> Settings:
    """Read the settings; `flags` maps a setting's name to its value on the command line.

    Raises ConfigError, which names the setting, what is wrong with it and an example.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    for name in ("STATE_DIR", "RABBITMQ_CA_FILE"):
        if given.get(name, "")[:1] not in ("", "~"):  # relative to the folder of the shell
            given[name] = str(Path(given[name]).absolute())
    environment = {name: os.environ[name] for name in DEFAULTS if os.environ.get(name)}
    values = DEFAULTS | _dotenv() | environment | given
    return Settings(
        urls=_urls(values["RABBITMQ_URL"]), retry_delays=_delays(values["RETRY_DELAYS"]),
        state_dir=_state_dir(values["STATE_DIR"]), queue_type=_queue_type(values["QUEUE_TYPE"]),
        ca_file=_ca_file(values["RABBITMQ_CA_FILE"]), smtp_url=_smtp_url(values["SMTP_URL"]),
        management_url=_management_url(values["RABBITMQ_MANAGEMENT_URL"]))


def masked(text: str) -> str:
    """A URL, or a text with one, without its password, for the screen: in a URL all from the colon
    after the user (a port is no password) to the last @; elsewhere from a colon to an @."""
    return re.sub(r"(://[^:\n]*):(?!\d{1,5}(?:[/\s,']|$))[^\n]*@|:(?!//)\S*@", r"\1@", text)


def endpoints(urls: Iterable[str]) -> str:
    """Host and port of every URL, for the screen."""
    return ", ".join(f"{parts.hostname}:{parts.port or AMQP_PORTS[parts.scheme]}"
                     for parts in map(urlsplit, urls))


def _dotenv() -> dict[str, str]:
    file = ROOT / ".env"
    if not file.exists():
        return {}
    from dotenv import dotenv_values  # late: kit.py runs before the packages are installed
    from dotenv.parser import parse_stream

    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows' Notepad writes a BOM
    except (OSError, UnicodeDecodeError):
        raise ConfigError("No se puede leer el archivo .env: guárdalo como texto UTF-8"
                          " y vuelve a probar.") from None
    for line in parse_stream(StringIO(text)):
        if line.error or (line.key and line.value is None):
            raise ConfigError(f"La línea {line.original.line} de .env no se entiende:"
                              " escribe NOMBRE=valor.")
    values = dotenv_values(stream=StringIO(text), interpolate=False)
    for name in values.keys() - DEFAULTS.keys() - COMPOSE_NAMES:
        if alike := get_close_matches(name.upper(), DEFAULTS, n=1, cutoff=0.8):
            raise ConfigError(f"El archivo .env tiene {name}, que no es un ajuste del kit: ¿querías"
                              f" escribir {alike[0]}? Corrígelo o borra la línea.")
        print(f"Aviso: {name}, en .env, no es un ajuste del kit y no se usa.", file=sys.stderr)
    return {name: value for name, value in values.items() if value}


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(part.strip() for part in text.split(",") if part.strip())
    if f":{MANAGEMENT_PORT}/" in text.replace(",", "/") + "/":
        raise ConfigError("RABBITMQ_URL lleva el puerto de la página de gestión, 15672: el del"
                          f" broker es el 5672; ejemplo: {DEFAULTS['RABBITMQ_URL']}.")
    if urls and all(map(_is_amqp_url, urls)):
        return urls
    raise ConfigError(
        "RABBITMQ_URL no se entiende: escribe amqp://usuario:contraseña@servidor:puerto/vhost, o"
        " amqps://, con los caracteres especiales codificados (/ es %2F, @ es %40, la coma %2C)"
        f" y sin opciones detrás de ?; ejemplo: {DEFAULTS['RABBITMQ_URL']}.")


def _is_amqp_url(url: str) -> bool:
    """pika's own errors quote a part of the password (docs/facts.md, pika 6)."""
    try:
        parts = _server(url, AMQP_PORTS)
        str(parts.hostname).encode("idna")
        return ((parts.username is None) == (parts.password is None)
                and not set(parts.path[1:]) & set("/@") and not set(url) & set(" \t\r\n")
                and bool(url.encode())  # no surrogate
                and len(unquote(parts.path[1:]).encode()) <= 255)
    except ValueError:
        return False


def _delays(text: str) -> tuple[float, ...]:
    try:
        delays = tuple(float(part) for part in text.split(","))
    except ValueError:
        delays = ()
    if not (0 < len(delays) <= MAX_DELAYS and all(0.001 <= d <= MAX_DELAY_S for d in delays)):
        raise ConfigError(
            f"RETRY_DELAYS={masked(text)[:60]!r} no vale: escribe de 1 a {MAX_DELAYS} retardos, en"
            f" segundos, de 0.001 a {MAX_DELAY_S}; ejemplo: RETRY_DELAYS=5,30,120.")
    return delays


def _state_dir(text: str) -> Path:
    with suppress(RuntimeError, ValueError):  # ~user, and this machine has no such user
        if text and "\0" not in text:
            return ROOT / Path(text).expanduser()
    raise ConfigError("STATE_DIR no es el nombre de una carpeta; ejemplo: STATE_DIR=.state.")


def _ca_file(text: str) -> Path | None:
    if not text:
        return None
    try:
        file = ROOT / Path(text).expanduser()
        ssl.create_default_context(cafile=file)
        return file
    except (OSError, ValueError, RuntimeError):  # ssl.SSLError is an OSError; RuntimeError: ~user
        raise ConfigError("RABBITMQ_CA_FILE no es un archivo con certificados en formato PEM que"
                          " se pueda leer; ejemplo: RABBITMQ_CA_FILE=ca.pem.") from None


def _smtp_url(text: str) -> str:
    with suppress(ValueError):
        if not text:
            return ""
        parts, plain = _server(text, SMTP_PORTS), unquote(text)
        str(parts.hostname).encode("idna")
        if ((not parts.username) == (not parts.password) and not parts.path.strip("/")
                and plain.isascii() and plain.isprintable() and " " not in text):
            return text
    raise ConfigError(
        "SMTP_URL no se entiende: escribe smtp://servidor:puerto o"
        " smtp://usuario:contraseña@servidor:puerto, o smtps://, con los caracteres especiales"
        " codificados (/ es %2F, @ es %40); ejemplo: SMTP_URL=smtp://127.0.0.1:1025.")


def _management_url(text: str) -> str:
    with suppress(ValueError):
        if not text or ("@" not in text and _server(text, ("http", "https"))):
            return text.rstrip("/")
    raise ConfigError("RABBITMQ_MANAGEMENT_URL no se entiende: escribe http://servidor:puerto, sin"
                      " usuario; ejemplo: http://127.0.0.1:15672.")


def _server(url: str, schemes: Collection[str]) -> SplitResult:
    """The parts of a URL that names a server and has no options. Raises ValueError."""
    parts = urlsplit(url)
    if (parts.scheme not in schemes or not parts.hostname or parts.port == 0
            or parts.query or parts.fragment):
        raise ValueError(url)
    return parts


def _queue_type(text: str) -> str:
    if text not in ("quorum", "classic"):
        raise ConfigError(f"QUEUE_TYPE={masked(text)[:60]!r} no vale: escribe quorum o classic.")
    return text
