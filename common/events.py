"""The event: a JSON object with the field names of CloudEvents 1.0.

{"specversion": "1.0", "id": UUID, "source": "/ecomarket/usuarios", "type": "UsuarioCreado",
 "time": RFC 3339 in UTC, "data": {"user_id": UUID, "nombre": text, "email": address}}

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

import json
import random
import re
import time
import uuid
from datetime import datetime, timezone
from typing import NamedTuple

from common.config import KitError
from common.retry import PermanentError

USER_CREATED = "UsuarioCreado"
MAX_BYTES = 256 * 1024
# Text without control characters, surrogates and line separators
_NAME = re.compile(r"(?=.*\S)[^\0-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]{1,200}")
# https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address, with a dot in the domain;
# at most 254 characters (RFC 5321, 4.5.3.1.3: a path of 256 less its two angle brackets)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
EMAIL = re.compile(rf"(?=.{{3,254}}\Z)[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}"
                   rf"(?:\.{_LABEL})+")
_TIME = re.compile(  # RFC 3339, 5.6
    r"(?!0000|9999)[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3])"
    r":[0-5][0-9]:[0-6][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class InvalidUser(KitError):
    """A name or an e-mail address that no event may carry."""
    exit_code = 65


class MalformedEvent(PermanentError):
    """A body that is no valid event: no retry can help."""


class Event(NamedTuple):
    id: str
    type: str
    time: str
    user_id: str = ""  # like the next two, empty unless type is UsuarioCreado
    nombre: str = ""
    email: str = ""
    body: bytes = b""  # of an event that the outbox kept


def user_created(nombre: str, email: str) -> Event:
    """A new UsuarioCreado of a new user. Raises InvalidUser."""
    check_user(nombre, email)
    return Event(new_id(), USER_CREATED, now(), new_id(), nombre, email)


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): ids of one time are neighbours in the ledger."""
    value = time.time_ns() // 1_000_000 << 80 | random.getrandbits(80)
    return str(uuid.UUID(int=value & ~(0xF << 76 | 3 << 62) | 7 << 76 | 2 << 62))


def now() -> str:
    """This moment: RFC 3339, UTC, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_user(nombre: object, email: object, error: type[Exception] = InvalidUser) -> None:
    """Raises `error` with a sentence that says what to write instead."""
    if not isinstance(nombre, str) or not _NAME.fullmatch(nombre):
        raise error("El nombre no vale: escribe de 1 a 200 caracteres, solo texto en UTF-8;"
                    " ejemplo: --nombre \"Juan\".")
    if not isinstance(email, str) or not EMAIL.fullmatch(email):
        raise error("La dirección de correo no vale: escribe una como juan@eco.com (sin"
                    " espacios ni acentos, 254 caracteres como mucho).")


def encode(event: Event) -> bytes:
    """The body: JSON in UTF-8; of an event that the outbox kept, the very bytes it kept."""
    return event.body or _to_json({
        "specversion": "1.0", "id": event.id, "source": "/ecomarket/usuarios", "type": event.type,
        "time": event.time, "data": {"user_id": event.user_id, "nombre": event.nombre,
                                     "email": event.email}}).encode()


def decode(body: bytes) -> Event:
    """Raises MalformedEvent with the reason, in Spanish. Unknown fields are ignored."""
    if len(body) > MAX_BYTES:
        raise MalformedEvent(f"el cuerpo tiene {len(body)} bytes, más de {MAX_BYTES}")
    try:
        fields = _from_json(body.decode("utf-8"))
    except (ValueError, RecursionError):  # 5,000 digits, 100,000 levels (docs/facts.md, Python)
        raise MalformedEvent("el cuerpo no es JSON en UTF-8") from None
    if not isinstance(fields, dict) or fields.get("specversion") != "1.0":
        raise MalformedEvent("el cuerpo no es un objeto JSON con specversion \"1.0\"")
    event_id, kind = _text(fields, "id", _UUID).lower(), _text(fields, "type")
    at, _ = _text(fields, "time", _TIME), _text(fields, "source")  # a source is required, not used
    if kind != USER_CREATED:
        return Event(event_id, kind, at)
    data = fields["data"] if isinstance(fields.get("data"), dict) else {}
    check_user(data.get("nombre"), data.get("email"), MalformedEvent)
    user_id = _text(data, "user_id", _UUID).lower()
    return Event(event_id, kind, at, user_id, data["nombre"], data["email"])


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_from_json = json.JSONDecoder(parse_constant=int).decode  # int("NaN") raises: no JSON


def _text(fields: dict, name: str, form: re.Pattern = re.compile(".+")) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable() or (
            not form.fullmatch(value)):
        raise MalformedEvent(f"falta {name} o no tiene el formato debido")
    return value
