"""What one consumer has done, in SQLite: an event done once is never done again, since its row is
written in the transaction of the effect (https://www.sqlite.org/lang_transaction.html)."""

import sqlite3
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from common.database import LOCK_POLL_S, open_database, problem, wait_longer
from common.events import Event

KEEP_DAYS = 90  # a copy of an event that arrives later than this is done again
TABLE = """CREATE TABLE IF NOT EXISTS done (
    event_id BLOB PRIMARY KEY, done_at INTEGER NOT NULL) WITHOUT ROWID;"""
_DENIED = sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT  # to handlers: a batch shares one


class Ledger:
    """One consumer's file, STATE_DIR/<consumer>.db, shared by all its processes. tables: SQL of the
    handler's own. state_dir None: in memory. Raises StateError, Stopped."""

    def __init__(self, state_dir: Path | None, consumer: str, tables: str = "",
                 stop_wanted: Callable[[], bool] = lambda: False):
        self.path = state_dir / f"{consumer}.db" if state_dir else Path(":memory:")
        self._stop_wanted, self._in_handler, self._began_at = stop_wanted, False, 0.0
        self.db = open_database(self.path, TABLE + tables, stop_wanted)
        # Asked when a statement is compiled; the kit's COMMIT, in Python's cache, has its own text.
        self.db.set_authorizer(lambda action, *_: (
            sqlite3.SQLITE_DENY if self._in_handler and action in _DENIED else sqlite3.SQLITE_OK))

    def begin(self, error: Exception | None = None) -> None:
        """Begin a transaction, if none is open. Raises if SQLite undid the last one."""
        if not self.db.in_transaction:
            if self._began_at:  # SQLite may undo it after an error
                raise problem(self.path, error or sqlite3.Error("(undone)"))
            self.execute("BEGIN IMMEDIATE")
            self._began_at = time.monotonic()

    def commit(self) -> None:
        if self._began_at:
            self.begin()  # raises if it is undone
            self.execute("COMMIT /* kit */")
            if time.monotonic() - self._began_at > 0.2:  # the others get their turn
                time.sleep(LOCK_POLL_S / 2)
            self._began_at = 0.0

    def once(self, event: Event, handler: Callable[[Event, sqlite3.Connection], str]) -> str | None:
        """Run handler(event, db) and write the row, both or neither; None if it was done before."""
        row = bytes.fromhex(event.id.replace("-", "")), int(time.time())  # UUID().bytes is slow
        line, error = None, None
        self.begin()
        self.execute("SAVEPOINT kit_event")  # a failure undoes this event, not the batch
        try:
            if self.db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", row).rowcount:
                self._in_handler = True
                line = handler(event, self.db) or "procesado"  # None: done before
        except Exception as raised:
            error = raised
        self._in_handler = False
        self.begin(error)  # raises if the handler's OR ROLLBACK ended the transaction
        if error:
            self.execute("ROLLBACK TO kit_event")
        self.execute("RELEASE kit_event")
        if error:
            raise problem(self.path, error)
        return line

    def is_done(self, event_id: str) -> bool:
        key = bytes.fromhex(event_id.replace("-", ""))
        return any(self.execute("SELECT 1 FROM done WHERE event_id = ?", key))

    def forget_old(self) -> None:
        self.execute("DELETE FROM done WHERE done_at < ?", time.time() - KEEP_DAYS * 86_400)

    def execute(self, sql: str, *values):
        """A statement of the kit's own: it waits for other processes; what fails is the disk."""
        for tries in count(1):
            try:
                return self.db.execute(sql, values)
            except sqlite3.Error as error:
                wait_longer(self.path, error, tries, self._stop_wanted())
