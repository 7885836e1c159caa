"""An SQLite file in STATE_DIR that several processes share: what is committed has reached the disk.

Source: https://www.sqlite.org/pragma.html#pragma_synchronous
"""

import sqlite3
from contextlib import contextmanager
from pathlib import Path

from common import console
from common.config import KitError

LOCK_TIMEOUT_S = 10

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
    """The state on disk cannot be used."""

    exit_code = 78


class StateFile:
    """schema: the SQL of its tables. comfort: what people are told when the disk fails. Raises StateError."""

    def __init__(self, path: Path, schema: str, comfort: str):
        self.path, self.comfort = path, comfort
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error, comfort) from None
        with self.disk_problems():
            self.db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")  # a commit has reached the disk
            self.db.executescript(schema)

    def begin(self) -> None:
        if not self.db.in_transaction:
            self.db.execute("BEGIN IMMEDIATE")  # other processes wait here

    def commit(self) -> None:
        with self.disk_problems():
            if self.db.in_transaction:
                self.db.execute("COMMIT")

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
                    raise StateError(f"No se puede usar {self.path}: {advice} y arranca de nuevo."
                                     f" {self.comfort}") from None
            raise


def unwritable(path: Path, error: OSError, comfort: str) -> StateError:
    """The words for a file or folder that cannot be written."""
    return StateError(f"No se puede escribir en {path} ({console.reason(error)}): revisa STATE_DIR, sus"
                      f" permisos y el espacio libre, y arranca de nuevo. {comfort}")


def key_of(event_id: str) -> bytes:
    """An event's id as it is kept: 16 bytes, however its UUID was written."""
    return bytes.fromhex(event_id.replace("-", ""))
