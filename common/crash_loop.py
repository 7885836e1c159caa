"""An event at which the process dies again and again becomes a dead letter.

A redelivered event may have killed a process. So its start is counted on disk before its handler
runs, and the count is deleted at its end, a success or a failure.
"""

from common.ledger import Ledger
from common.retry import PermanentError

MAX_STARTS = 5  # without an end
TABLE = "CREATE TABLE IF NOT EXISTS started (event_id TEXT PRIMARY KEY, starts INTEGER);"


class CrashLoop(PermanentError):
    """More than MAX_STARTS starts without an end."""


def note_start(ledger: Ledger, event_id: str) -> None:
    """Count a start, on disk when this returns. Raises CrashLoop."""
    ledger.begin()
    [starts] = ledger.execute(
        "INSERT INTO started VALUES (?, 1) ON CONFLICT DO UPDATE SET starts = starts + 1"
        " RETURNING starts", event_id).fetchone()
    ledger.commit()  # of this alone: a redelivered event is a batch of its own
    if starts > MAX_STARTS:
        raise CrashLoop(f"el proceso ha muerto más de {MAX_STARTS} veces con este evento")


def forget(ledger: Ledger, event_id: str) -> None:
    """In the transaction of the event."""
    ledger.begin()
    ledger.execute("DELETE FROM started WHERE event_id = ?", event_id)
