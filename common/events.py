"""The event: a JSON object with the field names of CloudEvents 1.0.

{"specversion": "1.0", "id": UUID, "source": "/ecomarket/usuarios", "type": "UsuarioCreado",
 "time": RFC 3339 in UTC, "data": {"user_id": UUID, "nombre": text, "email": address}}

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

import json
import os
import re
import time
import unicodedata
import uuid
from datetime import datetime, timezone
from typing import NamedTuple, NoReturn

from common.config import KitError

USER_CREATED = "UsuarioCreado"
SOURCE = "/ecomarket/usuarios"
CONTENT_TYPE = "application/cloudevents+json"
MAX_BYTES = 256 * 1024
MAX_NAME = 200  # characters
MAX_EMAIL = 254  # RFC 5321, 4.5.3.1.3: a path of 256 less its two angle brackets

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

# What browsers accept in <input type=email>:
# https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address, with a dot asked for
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
EMAIL = re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+")

# RFC 3339, 5.6; fromisoformat alone takes weeks, days without an hour, times without a zone
_TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}(\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
                   re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class InvalidUser(KitError):
    """A name or an e-mail address that no event may carry."""

    exit_code = 65


class MalformedEvent(Exception):
    """A body that is no valid event: no retry can mend it."""


class Event(NamedTuple):
    """user_id, nombre and email are empty in an event of another type than UsuarioCreado."""

    id: str
    type: str
    time: str
    user_id: str = ""
    nombre: str = ""
    email: str = ""


def user_created(nombre: str, email: str) -> Event:
    """A new UsuarioCreado of a new user. Raises InvalidUser."""
    check_user(nombre, email)
    return Event(new_id(), USER_CREATED, now(), new_id(), nombre, email)


def new_id() -> str:
    """A UUID of version 7: ids of one time are neighbours, also in the ledger, where random ones would each touch
    a page of their own. Source: https://www.rfc-editor.org/rfc/rfc9562#section-5.7 (Python 3.14 has uuid.uuid7)
    """
    octets = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    octets[6] = 0x70 | octets[6] & 0x0F  # version
    octets[8] = 0x80 | octets[8] & 0x3F  # variant
    return str(uuid.UUID(bytes=bytes(octets)))


def now() -> str:
    """This moment: RFC 3339, UTC, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> datetime:
    """What now() wrote, in local time; the epoch for what is no time."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):  # the last one is Windows', for a time before 1970
        return datetime.fromtimestamp(0, timezone.utc)


def check_user(nombre: object, email: object) -> None:
    """Raises InvalidUser with a sentence that says what to write instead."""
    if not isinstance(nombre, str) or not nombre.strip():
        raise InvalidUser("El nombre está vacío: escribe uno, por ejemplo --nombre \"Juan\".")
    if len(nombre) > MAX_NAME:
        raise InvalidUser(f"El nombre tiene {len(nombre)} caracteres: acórtalo a {MAX_NAME} o menos.")
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in nombre):
        raise InvalidUser("El nombre lleva caracteres de control o que no son UTF-8: escribe solo texto.")
    if not isinstance(email, str) or len(email) > MAX_EMAIL or not EMAIL.fullmatch(email):
        raise InvalidUser("La dirección de correo no vale: escribe una como juan@eco.com (sin espacios ni"
                          f" acentos, {MAX_EMAIL} caracteres como mucho).")


def encode(event: Event) -> bytes:
    data = {"user_id": event.user_id, "nombre": event.nombre, "email": event.email}
    envelope = {"specversion": "1.0", "id": event.id, "source": SOURCE, "type": event.type,
                "time": event.time, "data": data}
    return _to_json(envelope).encode()


def properties(event: Event, delivery_mode: int, headers: dict | None = None):
    """The AMQP properties; delivery_mode 1 is transient, 2 persistent."""
    import pika  # late: who only reads events, or a script's --help, does not need it

    return pika.BasicProperties(
        content_type=CONTENT_TYPE, message_id=event.id, type=event.type, app_id="ecomarket",
        timestamp=int(time.time()), delivery_mode=delivery_mode, headers=headers)


def decode(body: bytes) -> Event:
    """Raises MalformedEvent with the reason, in Spanish. Unknown fields are ignored."""
    envelope = _json_object(body)
    if envelope.get("specversion") != "1.0":
        raise MalformedEvent("specversion no es \"1.0\"")
    event_id = _uuid(envelope, "id")
    texts = [_text(envelope, field) for field in ("source", "type", "time")]
    _check_time(texts[2])
    if texts[1] != USER_CREATED:
        return Event(event_id, texts[1], texts[2])
    data = envelope.get("data")
    if not isinstance(data, dict):
        raise MalformedEvent("data no es un objeto")
    try:
        check_user(data.get("nombre"), data.get("email"))
    except InvalidUser as error:
        raise MalformedEvent(str(error)) from None
    return Event(event_id, texts[1], texts[2], _uuid(data, "user_id"), data["nombre"], data["email"])


def _json_object(body: bytes) -> dict:
    if len(body) > MAX_BYTES:
        raise MalformedEvent(f"el cuerpo tiene {len(body)} bytes, más de {MAX_BYTES}")
    try:
        envelope = _from_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedEvent("el cuerpo no es UTF-8") from None
    except (ValueError, RecursionError):  # also a number of 5,000 digits, and depth (docs/facts.md, Python)
        raise MalformedEvent("el cuerpo no es JSON" if body else "el cuerpo está vacío") from None
    if not isinstance(envelope, dict):
        raise MalformedEvent("el cuerpo no es un objeto JSON")
    return envelope


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_from_json = json.JSONDecoder(parse_constant=_no_constant).decode


def _text(fields: dict, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 255 or not value.isprintable():
        raise MalformedEvent(f"falta {name} o no es un texto de 1 a 255 caracteres")
    return value


def _uuid(fields: dict, name: str) -> str:
    text = _text(fields, name)
    if _UUID.fullmatch(text):  # as the kit writes it, and nearly everybody
        return text
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise MalformedEvent(f"{name} no es un UUID") from None


def _check_time(text: str) -> None:
    try:
        if not _TIME.fullmatch(text):  # newer Pythons read much that is not RFC 3339
            raise ValueError
        datetime.fromisoformat(text[:19])  # Python 3.10 reads neither Z nor fractions other than 3 or 6 digits
    except ValueError:
        raise MalformedEvent("time no es una fecha RFC 3339") from None
