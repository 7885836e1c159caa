"""What one consumer has done, in SQLite: an event done once is never done again.

The row is written in the transaction of the effect itself, so there is no moment at which one is on
disk and the other is not. Source: https://www.sqlite.org/lang_transaction.html
"""

import time
from collections.abc import Callable
from pathlib import Path

from common.state import StateFile, key_of

COMFORT = "No se pierde nada: el broker guarda los eventos."
KEEP_DAYS = 90  # a copy of an event that comes later than this is done again
FORGET_AT_ONCE = 1000  # rows; other processes wait so long
_SCHEMA = """
CREATE TABLE IF NOT EXISTS done (event_id BLOB PRIMARY KEY, done_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS started (event_id BLOB PRIMARY KEY, starts INTEGER NOT NULL) WITHOUT ROWID;
"""


class Ledger(StateFile):
    """One consumer's file, STATE_DIR/<consumer>.db, shared by all its processes.

    schema: the SQL of the consumer's own tables. Raises StateError.
    """

    def __init__(self, state_dir: Path, consumer: str, schema: str = ""):
        self.folder = state_dir
        self._forgot = b""  # how far the present round of forget_old() has come
        super().__init__(state_dir / f"{consumer}.db", _SCHEMA + schema, COMFORT)

    def once(self, event_id: str, effect: Callable[[], str]) -> str | None:
        """Run effect() and note the event as done, both or neither. None if it was done before."""
        key = key_of(event_id)
        with self.disk_problems():
            self.begin()
            self.db.execute("SAVEPOINT event")
            try:
                new = self.db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (key, int(time.time())))
                result = effect() if new.rowcount else None
            except BaseException:
                if self.db.in_transaction:  # a full disk has already rolled back all
                    self.db.execute("ROLLBACK TO event")
                    self.db.execute("RELEASE event")
                raise
            self.db.execute("RELEASE event")
            return result

    def once_elsewhere(self, event_id: str, effect: Callable[[], str]) -> str | None:
        """The same where effect() may take long: it runs first, and nothing is locked meanwhile.

        A crash between the two means that it is done again.
        """
        with self.disk_problems():
            if self.db.execute("SELECT 1 FROM done WHERE event_id = ?", (key_of(event_id),)).fetchone():
                return None
        result = effect()
        self.once(event_id, lambda: result)
        return result

    def forget_old(self) -> bool:
        """Drop some rows of events done over KEEP_DAYS ago; whether there may be more."""
        with self.disk_problems():
            old = self.db.execute("SELECT event_id FROM done WHERE event_id > ? AND done_at < ? ORDER BY event_id LIMIT ?",
                                  (self._forgot, int(time.time()) - KEEP_DAYS * 86_400, FORGET_AT_ONCE)).fetchall()
            if old:
                self.begin()
                self.db.executemany("DELETE FROM done WHERE event_id = ?", old)
        self.commit()
        self._forgot = old[-1][0] if old else b""
        return bool(old)

    def note_start(self, event_id: str) -> int:
        """Count, on disk, that an event is begun; how often it has been begun without an end."""
        with self.disk_problems():
            self.begin()
            row = self.db.execute(
                "INSERT INTO started VALUES (?, 1) ON CONFLICT DO UPDATE SET starts = starts + 1"
                " RETURNING starts", (key_of(event_id),)).fetchone()
        self.commit()
        return row[0]

    def forget_starts(self, event_id: str) -> None:
        with self.disk_problems():
            self.begin()
            self.db.execute("DELETE FROM started WHERE event_id = ?", (key_of(event_id),))
