"""Envía un correo de bienvenida a cada usuario nuevo.

  python email_consumer_simple.py

Por cada evento verás una línea:
  10:31:02 email enviado a juan@eco.com · evento … · intento 1

El correo queda en STATE_DIR/outbox, un buzón Maildir que cualquier programa
de correo abre. Con SMTP_URL sale además por ese servidor:
  python email_consumer_simple.py --smtp-url smtp://localhost:1025
"""

# The file's name is made from the event's id, so writing it twice is writing it once. What an SMTP server has
# taken cannot be taken back: after a crash it may be sent twice, with the same Message-ID.

import errno
import os
from contextlib import contextmanager, suppress
from email.charset import QP, Charset
from email.header import Header
from email.mime.text import MIMEText
from email.policy import compat32
from email.utils import formatdate
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from common.cli import run
from common.config import Settings
from common.consumer import Consumer, main
from common.events import EMAIL, Event
from common.ledger import COMFORT, Ledger
from common.state import unwritable

SENDER = "bienvenida@ecomarket.example"
UTF_8 = Charset("utf-8")
UTF_8.body_encoding = QP  # readable in the file, unlike base64
CRLF = compat32.clone(linesep="\r\n")
TEXT = "Hola, {nombre}:\n\nTu cuenta de Ecomarket está lista. ¡Te damos la bienvenida!\n"


def email_consumer(settings: Settings) -> Consumer:
    return Consumer("email", partial(send_email, settings.smtp_url), report, draw, elsewhere=bool(settings.smtp_url))


def send_email(smtp_url: str, event: Event, state: Ledger) -> str:
    sender = sender_of(smtp_url)
    message = welcome(event, sender).as_bytes(policy=CRLF)
    with delivered(state.folder / "outbox", event.id, message):
        if smtp_url:
            from common import smtp  # late: most classes need none

            smtp.send(smtp_url, sender, event.email, message)
    return f"email enviado a {event.email}"


def sender_of(smtp_url: str) -> str:
    """The account's own address, if its user is one: most servers let it send as nobody else."""
    user = unquote(urlsplit(smtp_url).username or "")
    return user if EMAIL.fullmatch(user) else SENDER


def welcome(event: Event, sender: str = SENDER) -> MIMEText:
    message = MIMEText(TEXT.format(nombre=event.nombre), "plain", UTF_8)  # type: ignore[arg-type]
    message["From"] = f"Ecomarket <{sender}>"
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


@contextmanager
def delivered(outbox: Path, event_id: str, message: bytes):
    """Write into a Maildir, whole and on disk or not at all (https://cr.yp.to/proto/maildir.html).

    The draft is written before the block, where a full disk shows; when the block is done, it gets its name.
    """
    draft = outbox / "tmp" / f"{event_id}.{os.getpid()}"
    try:
        for folder in ("tmp", "new", "cur"):
            (outbox / folder).mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(message)
            file.flush()
            os.fsync(file.fileno())
        if not os.access(outbox / "new", os.W_OK):
            raise PermissionError(errno.EACCES, "not writable", str(outbox / "new"))
        yield
        draft.replace(outbox / "new" / f"{event_id}.ecomarket")
        sync_folder(outbox / "new")
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(outbox, error, COMFORT) from None
        raise


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


if __name__ == "__main__":
    run(lambda: main(email_consumer, __doc__))
