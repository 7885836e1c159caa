"""What one consumer has done, in SQLite: an event done once is never done again.

The row is written in the transaction of the effect itself, so there is no moment at which one is on
disk and the other is not. Source: https://www.sqlite.org/lang_transaction.html
"""

import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from common import console
from common.config import KitError

LOCK_TIMEOUT_S = 10

_SCHEMA = """
CREATE TABLE IF NOT EXISTS done (event_id BLOB PRIMARY KEY, done_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS started (event_id BLOB PRIMARY KEY, starts INTEGER NOT NULL) WITHOUT ROWID;
"""
_DISK_PROBLEMS = {
    "full": "el disco está lleno: libera espacio",
    "locked": "otro programa lo tiene bloqueado: ciérralo",
    "malformed": "está dañado: apártalo o bórralo",
    "not a database": "no es una base de datos: apártalo o bórralo",
    "readonly": "es de solo lectura: da permiso de escritura",
    "unable to open": "no se puede abrir: revisa los permisos de la carpeta",
    "disk i/o": "el disco falló: revísalo",
}


class StateError(KitError):
    """The state on disk cannot be used. Nothing is lost: the broker still has the events."""

    exit_code = 78


class Ledger:
    """One consumer's file, STATE_DIR/<consumer>.db, shared by all its processes.

    schema: the SQL of the consumer's own tables. Raises StateError.
    """

    def __init__(self, state_dir: Path, consumer: str, schema: str = ""):
        self.folder = state_dir
        self.path = state_dir / f"{consumer}.db"
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from None
        with self.disk_problems():
            self.db = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")  # a commit has reached the disk
            self.db.executescript(_SCHEMA + schema)

    def begin(self) -> None:
        if not self.db.in_transaction:
            self.db.execute("BEGIN IMMEDIATE")  # other processes of this consumer wait here

    def commit(self) -> None:
        with self.disk_problems():
            if self.db.in_transaction:
                self.db.execute("COMMIT")

    def once(self, event_id: str, effect: Callable[[], str]) -> str | None:
        """Run effect() and note the event as done, both or neither. None if it was done before."""
        key = _key(event_id)
        with self.disk_problems():
            self.begin()
            self.db.execute("SAVEPOINT event")
            try:
                new = self.db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (key, int(time.time())))
                result = effect() if new.rowcount else None
                self.db.execute("DELETE FROM started WHERE event_id = ?", (key,))
            except BaseException:
                if self.db.in_transaction:  # a full disk has already rolled back all
                    self.db.execute("ROLLBACK TO event")
                    self.db.execute("RELEASE event")
                raise
            self.db.execute("RELEASE event")
            return result

    def note_start(self, event_id: str) -> int:
        """Count, on disk, that an event is begun; how often it has been begun without an end."""
        with self.disk_problems():
            self.begin()
            row = self.db.execute(
                "INSERT INTO started VALUES (?, 1) ON CONFLICT DO UPDATE SET starts = starts + 1"
                " RETURNING starts", (_key(event_id),)).fetchone()
        self.commit()
        return row[0]

    def forget_starts(self, event_id: str) -> None:
        with self.disk_problems():
            self.begin()
            self.db.execute("DELETE FROM started WHERE event_id = ?", (_key(event_id),))

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def disk_problems(self):
        """Turn the disk's own errors into a StateError; a handler's mistakes in SQL pass through."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            for sign, advice in _DISK_PROBLEMS.items():
                if sign in str(error).lower():
                    raise StateError(f"No se puede usar {self.path}: {advice} y arranca de nuevo. No se pierde"
                                     " nada: el broker guarda los eventos.") from None
            raise


def unwritable(path: Path, error: OSError) -> StateError:
    """The words for a file or folder that cannot be written."""
    return StateError(f"No se puede escribir en {path} ({console.reason(error)}): revisa STATE_DIR, sus"
                      " permisos y el espacio libre, y arranca de nuevo. No se pierde nada: el broker"
                      " guarda los eventos.")


def _key(event_id: str) -> bytes:
    return uuid.UUID(event_id).bytes
