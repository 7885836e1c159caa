"""What publishers wrote down and the broker has not confirmed: --resume sends it, same ids
(https://microservices.io/patterns/data/transactional-outbox.html)."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from common.database import open_database, state_errors
from common.events import Event, decode

TABLE = """PRAGMA busy_timeout = 10000; CREATE TABLE IF NOT EXISTS unconfirmed
    (event_id TEXT UNIQUE NOT NULL, body BLOB NOT NULL);"""


class Outbox:
    """STATE_DIR/publisher.db, shared by all publishers. Raises StateError."""

    def __init__(self, state_dir: Path):
        self.path = state_dir / "publisher.db"
        self.db = open_database(self.path, TABLE)

    def write(self, events: Iterable[tuple[str, bytes]], confirmed: Iterable[str] = ()) -> None:
        """In one transaction, add events, as (id, body), and remove the ids that have an ack."""
        with state_errors(self.path), self.db:  # commits, or rolls back
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany("DELETE FROM unconfirmed WHERE event_id = ?", zip(confirmed))
            self.db.executemany("INSERT OR IGNORE INTO unconfirmed VALUES (?, ?)", events)

    def count(self) -> int:
        with state_errors(self.path):
            return self.db.execute("SELECT count(*) FROM unconfirmed").fetchone()[0]

    def left(self) -> Iterator[Event]:
        """The events that are there now, oldest first, with the bytes that were written."""
        with state_errors(self.path), closing(sqlite3.connect(self.path)) as snapshot:
            for [body] in snapshot.execute("SELECT body FROM unconfirmed ORDER BY rowid"):
                yield decode(body)._replace(body=body)  # what is written later is not among them
