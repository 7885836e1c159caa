"""An SQLite file in STATE_DIR: how it is opened, and what goes wrong with it, as one sentence.

Source: https://www.sqlite.org/pragma.html#pragma_synchronous
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import console
from common.config import KitError
from common.retry import PermanentError

LOCK_POLL_S = 0.1  # how soon a stop is noticed while another process writes
COMFORT = "Lo que ya estaba en el broker o en STATE_DIR no se pierde."
_ADVICE = {
    "disk is full": "el disco está lleno: libera espacio",
    "image is malformed": "está dañado: apártalo, sin borrarlo,",
    "not a database": "no es una base de datos: apártalo, sin borrarlo,",
    "readonly database": "es de solo lectura: da permiso de escritura",
    "unable to open database": "no se puede abrir: revisa los permisos de la carpeta",
    "disk i/o error": "el disco falló: revísalo",
    "is locked": "otro programa lo tiene bloqueado: ciérralo",
    "(undone)": "el trabajo de un evento deshizo la transacción: quita de él OR ROLLBACK",
    "statements in progress": "el trabajo de un evento dejó un RETURNING sin leer: usa fetchall()",
}


class StateError(KitError):
    """The state on disk cannot be used."""
    exit_code = 78


class Stopped(KitError):
    """Ctrl-C, while another process has the file or a copy has no confirm."""
    exit_code = 0


def open_database(path: Path, tables: str, stop_wanted=lambda: False) -> sqlite3.Connection:
    """Open or create a file that several processes share, as soon as they let it; a commit is on
    disk. tables: SQL, CREATE … IF NOT EXISTS. Raises StateError, Stopped."""
    tries = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(path, timeout=LOCK_POLL_S, isolation_level=None)
            db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {tables}")
            return db
        except OSError as error:
            raise StateError(f"No se puede escribir en {path} ({console.reason(error)}): revisa"
                             f" STATE_DIR, sus permisos y el espacio libre. {COMFORT}") from None
        except sqlite3.Error as error:
            tries += 1
            wait_longer(path, error, tries, stop_wanted())


def problem(path: Path, error: BaseException) -> BaseException:
    """A StateError for what the disk, or OR ROLLBACK, did; any other error stays what it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    if "not authorized" in str(error):  # Ledger.once()
        return PermanentError("el trabajo de un evento no hace commit ni rollback: los hace el kit")
    for sign, advice in _ADVICE.items():
        if sign in str(error).lower():
            return StateError(f"No se puede usar {path}: {advice} y arranca de nuevo. {COMFORT}")
    return error


@contextmanager
def state_errors(path: Path) -> Iterator[None]:
    """Raise a StateError for what SQLite raises."""
    try:
        yield
    except sqlite3.Error as error:
        raise problem(path, error) from None


def wait_longer(path: Path, error: sqlite3.Error, tries: int, stop_wanted: bool) -> None:
    """Another process writes: return to try again, unless there is a reason not to."""
    if "locked" not in str(error):
        raise problem(path, error)
    if stop_wanted:
        raise Stopped("Terminado.")
    if tries == 20:
        console.print_line(f"{console.clock()} Otro proceso está usando {path.name}:"
                           " se espera a que termine.", "warn")
    time.sleep(LOCK_POLL_S / 10)  # two that create the file: SQLite fails without a wait
