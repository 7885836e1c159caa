"""Dead letters as a file, one JSON object a line: written, and read again when it was edited."""

import base64
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from common import console
from common.config import ConfigError, KitError
from common.events import MalformedEvent, decode
from common.views.dead_letters import DeadLetter


class EditError(KitError):
    """What was edited is no event."""
    exit_code = 65


class Key(NamedTuple):
    """What a line of the file has of its dead letter, and no other dead letter has."""

    message_id: str
    consumer: str
    failed_at: str


def key_of(found: DeadLetter) -> Key:
    return Key(found.message_id, found.consumer, found.failed_at)


def write(target: Path, letters: Iterable[DeadLetter]) -> int:
    """Write all, or leave no file; how many. Raises ConfigError; KitError, if the file is there."""
    draft, number = Path(f"{target}.{os.getpid()}.tmp"), 0
    try:
        with draft.open("w", encoding="utf-8") as file:
            for found in letters:
                file.write(json.dumps(found.as_json(), ensure_ascii=False) + "\n")
                number += 1
        if os.path.lexists(target):  # since the script looked
            raise KitError(f"{target} ya existe: elige otro nombre.")
        draft.replace(target)
    except OSError as error:
        raise ConfigError(f"No se puede escribir {target} ({console.reason(error)}):"
                          " elige otra carpeta o libera espacio.") from None
    finally:
        with suppress(OSError):  # it is gone
            draft.unlink()
    return number


def read(file: Path) -> dict[Key, bytes]:
    """The bodies, edited or not, by key_of(). Raises EditError: then nothing may be replayed."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = console.reason(error) if isinstance(error, OSError) else "no es texto UTF-8"
        raise EditError(f"No se puede leer {file} ({why}): da el archivo de --export.") from None
    bodies: dict[Key, bytes] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # a text may have U+2028
        if line.strip():
            try:
                bodies |= _parsed(line)
            except Exception as error:  # whatever an edit made of it
                why = str(error) if isinstance(error, MalformedEvent) else "no es de --export"
                raise EditError(f"La línea {number} de {file} no vale: {why.rstrip('.')}. No se ha"
                                " reenviado nada: corrígela o quítala.") from None
    return bodies


def _parsed(line: str) -> dict[Key, bytes]:
    fields = json.loads(line)
    key = Key(fields["id"], fields["consumer"], fields["failed_at"])
    body = (base64.b64decode(fields["body_base64"], validate=True) if "body_base64" in fields
            else fields["body"].encode())
    if decode(body).id != key.message_id.lower():
        raise MalformedEvent("el id del cuerpo no es el del mensaje, y no se cambia")
    return {key: body}
