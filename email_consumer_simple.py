"""Envía un correo de bienvenida a cada usuario nuevo.

  python email_consumer_simple.py

Por cada evento verás una línea:  10:31:02 email enviado a juan@eco.com · evento … · intento 1
El correo queda en STATE_DIR/outbox, un buzón Maildir que cualquier programa de correo abre.
"""

# The file's name is made from the event's id, so writing it twice is writing it once.

import os
from email.charset import QP, Charset
from email.header import Header
from email.mime.text import MIMEText
from email.policy import compat32
from email.utils import formatdate
from pathlib import Path

from common.cli import run
from common.consumer import Consumer, main
from common.events import Event
from common.ledger import COMFORT, Ledger
from common.state import unwritable

SENDER = "Ecomarket <bienvenida@ecomarket.example>"
UTF_8 = Charset("utf-8")
UTF_8.body_encoding = QP  # readable in the file, unlike base64
CRLF = compat32.clone(linesep="\r\n")
TEXT = "Hola, {nombre}:\n\nTu cuenta de Ecomarket está lista. ¡Te damos la bienvenida!\n"


def send_email(event: Event, state: Ledger) -> str:
    deliver(state.folder / "outbox", event.id, welcome(event).as_bytes(policy=CRLF))
    return f"email enviado a {event.email}"


def welcome(event: Event) -> MIMEText:
    message = MIMEText(TEXT.format(nombre=event.nombre), "plain", UTF_8)  # type: ignore[arg-type]
    message["From"] = SENDER
    message["To"] = mailbox(event.nombre, event.email)
    message["Subject"] = Header(f"Te damos la bienvenida, {event.nombre}", "utf-8", header_name="Subject")
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{event.id}@ecomarket.example>"
    return message


def mailbox(nombre: str, email: str) -> Header:
    """The name all encoded: whatever is in it, the address behind it stays the only recipient.

    EmailMessage would take the name apart when it folds the line (github.com/python/cpython/issues/121284).
    """
    header = Header(nombre, "utf-8", header_name="To")
    header.append(f"<{email}>", "us-ascii")
    return header


def deliver(outbox: Path, event_id: str, message: bytes) -> None:
    """Write into a Maildir: whole and on disk, or not there (https://cr.yp.to/proto/maildir.html)."""
    draft = outbox / "tmp" / f"{event_id}.{os.getpid()}"
    try:
        for folder in ("tmp", "new", "cur"):
            (outbox / folder).mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(message)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(outbox / "new" / f"{event_id}.ecomarket")
        sync_folder(outbox / "new")
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise unwritable(outbox, error, COMFORT) from None


def sync_folder(folder: Path) -> None:
    """The file's new name, on disk too; Windows opens no folders, and NTFS keeps a journal of names."""
    if os.name != "nt":
        opened = os.open(folder, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)


def report(state: Ledger) -> dict:
    outbox = state.folder / "outbox"
    return {"emails": sum(1 for folder in ("new", "cur") for _ in (outbox / folder).glob("*.ecomarket*"))}


def draw(counts: dict) -> list[str]:
    return [f"correos enviados: {counts['emails']}"]


EMAIL = Consumer("email", send_email, report, draw)

if __name__ == "__main__":
    run(lambda: main(EMAIL, __doc__))
