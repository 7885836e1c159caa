"""Settings of every script: flag > environment > `.env` > default."""

import os
import re
import ssl
import sys
from collections.abc import Callable, Collection, Iterable
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
_ENCODED = "con los caracteres especiales codificados (/ es %2F, @ es %40, la coma %2C)"
ADVICE = {  # what to write instead of a value that is not valid
    "RABBITMQ_URL": f"escribe amqp:// o amqps://usuario:contraseña@servidor:5672/vhost, {_ENCODED}"
                    " y sin opciones detrás de ? (el puerto 15672 es el de la página de gestión);"
                    f" ejemplo: {DEFAULTS['RABBITMQ_URL']}",
    "RETRY_DELAYS": f"escribe de 1 a {MAX_DELAYS} retardos, en segundos, de 0.001 a {MAX_DELAY_S};"
                    " ejemplo: 5,30,120",
    "STATE_DIR": "escribe el nombre de una carpeta; ejemplo: .state",
    "QUEUE_TYPE": "escribe quorum o classic",
    "RABBITMQ_CA_FILE": "escribe un archivo, que se pueda leer, con certificados en formato PEM;"
                        " ejemplo: ca.pem",
    "RABBITMQ_MANAGEMENT_URL": "escribe http:// o https://servidor:puerto, sin usuario; ejemplo:"
                               " http://127.0.0.1:15672",
    "SMTP_URL": f"escribe smtp:// o smtps://usuario:contraseña@servidor:puerto, {_ENCODED}, o sin"
                " usuario ni contraseña; ejemplo: smtp://127.0.0.1:1025",
}


class KitError(Exception):
    """str(error) is one Spanish sentence for the person; exit_code ends the script."""
    exit_code = 1


class ConfigError(KitError):
    exit_code = 78


@dataclass(frozen=True)
class Settings:
    urls: tuple[str, ...]  # AMQP URLs of one broker or cluster
    retry_delays: tuple[float, ...]  # seconds, in order
    state_dir: Path
    queue_type: str
    ca_file: Path | None = None  # who signed for an amqps:// broker; None: whom this machine trusts
    smtp_url: str = ""  # "": none
    management_url: str = ""  # without a final slash; "": the one beside each broker


def load(flags: dict[str, str | None] | None = None) -> Settings:
    """flags: of the command line, by name; those that are no settings do not count. Raises
    ConfigError."""
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    for name in ("STATE_DIR", "RABBITMQ_CA_FILE"):
        if given.get(name, "")[:1] not in ("", "~"):  # relative to the folder of the shell
            given[name] = str(Path(given[name]).absolute())
    environment = {name: os.environ[name] for name in DEFAULTS if os.environ.get(name)}
    values = DEFAULTS | _dotenv() | environment | given

    def read(name: str, parse: Callable):
        try:
            return parse(values[name])
        except (ValueError, OSError, RuntimeError):  # SSLError is an OSError; RuntimeError: ~user
            plain = name in ("RETRY_DELAYS", "QUEUE_TYPE") and "@" not in values[name]
            shown = f"={values[name][:60]!r}" * plain  # a URL given by mistake has a password
            raise ConfigError(f"{name}{shown} no vale: {ADVICE[name]}.") from None

    return Settings(
        urls=read("RABBITMQ_URL", _urls), retry_delays=read("RETRY_DELAYS", _delays),
        state_dir=read("STATE_DIR", _path), queue_type=read("QUEUE_TYPE", _queue_type),
        ca_file=read("RABBITMQ_CA_FILE", _ca_file), smtp_url=read("SMTP_URL", _smtp_url),
        management_url=read("RABBITMQ_MANAGEMENT_URL", _management_url))


def masked(text: str) -> str:
    """A URL, or a text with one, without its password, for the screen: in a URL all from the colon
    after the user (a port is no password) to the last @; elsewhere from a colon to an @."""
    return re.sub(r"(://[^:\n]*):(?!\d{1,5}(?:[/\s,']|$))[^\n]*@|:(?!//)\S*@", r"\1@", text)


def endpoints(urls: Iterable[str]) -> str:
    """Host and port of every URL, for the screen."""
    return ", ".join(f"{parts.hostname}:{parts.port or AMQP_PORTS[parts.scheme]}"
                     for parts in map(urlsplit, urls))


def _dotenv() -> dict[str, str]:
    try:
        text = (ROOT / ".env").read_text(encoding="utf-8-sig")  # Windows' Notepad writes a BOM
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise ConfigError("No se puede leer el archivo .env: guárdalo como texto UTF-8"
                          " y vuelve a probar.") from None
    from dotenv.parser import parse_stream  # late: kit.py runs before the packages are installed
    lines = list(parse_stream(StringIO(text)))
    for line in lines:
        if line.error or (line.key and line.value is None):
            raise ConfigError(f"La línea {line.original.line} de .env no se entiende:"
                              " escribe NOMBRE=valor.")
    values = {line.key: line.value for line in lines if line.key}
    for name in values.keys() - DEFAULTS.keys() - COMPOSE_NAMES:
        if alike := get_close_matches(name.upper(), DEFAULTS, n=1, cutoff=0.8):
            raise ConfigError(f"El archivo .env tiene {name}, que no es un ajuste del kit: ¿querías"
                              f" escribir {alike[0]}? Corrígelo o borra la línea.")
        shown = name if name.isidentifier() else "una línea"  # a URL has a password
        print(f"Aviso: {shown}, en .env, no es un ajuste del kit y no se usa.", file=sys.stderr)
    return {name: value for name, value in values.items() if value}


def _urls(text: str) -> tuple[str, ...]:
    """Checked here, as pika's errors quote a part of the password (docs/facts.md, pika 6)."""
    urls = tuple(part.strip() for part in text.split(",") if part.strip()) or ("",)
    for url in urls:
        server = _server(url, AMQP_PORTS)
        vhost = server.path[1:]
        if (server.port == MANAGEMENT_PORT or set(vhost) & set("/@")
                or len(unquote(vhost).encode()) > 255):
            raise ValueError(url)
    return urls


def _smtp_url(text: str) -> str:
    if text:
        path, plain = _server(text, SMTP_PORTS).path, unquote(text)
        if path.strip("/") or not plain.isascii() or not plain.isprintable():
            raise ValueError(text)
    return text


def _management_url(text: str) -> str:
    if text and ("@" in text or not _server(text, ("http", "https"))):
        raise ValueError(text)
    return text.rstrip("/")


def _server(url: str, schemes: Collection[str]) -> SplitResult:
    """The parts of a URL that names a server and has no options. Raises ValueError."""
    parts = urlsplit(url)
    if (parts.scheme not in schemes or not parts.hostname or parts.port == 0
            or parts.username == "" or (not parts.username) != (not parts.password)
            or parts.query or parts.fragment or " " in url or not url.isprintable()):
        raise ValueError(url)
    parts.hostname.encode("idna")
    return parts


def _delays(text: str) -> tuple[float, ...]:
    delays = tuple(map(float, text.split(",")))
    if len(delays) > MAX_DELAYS or not all(0.001 <= delay <= MAX_DELAY_S for delay in delays):
        raise ValueError(text)
    return delays


def _queue_type(text: str) -> str:
    if text not in ("quorum", "classic"):
        raise ValueError(text)
    return text


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return ROOT / Path(text).expanduser()


def _ca_file(text: str) -> Path | None:
    if not text:
        return None
    ssl.create_default_context(cafile=_path(text))
    return _path(text)
