"""What a publisher has written down and the broker has not yet confirmed: its own crash loses nothing either.

A batch is on disk, in one transaction, before its first event is sent; each event is crossed out once it is
confirmed. What a dead publisher left is sent by --resume, under the same ids.
Source: https://microservices.io/patterns/data/transactional-outbox.html
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from common.events import Event, decode
from common.state import StateFile

COMFORT = "Ningún evento se envía sin estar antes ahí."
PAGE = 500
_SCHEMA = "CREATE TABLE IF NOT EXISTS unconfirmed (event_id TEXT UNIQUE NOT NULL, body BLOB NOT NULL);"


class Outbox(StateFile):
    """STATE_DIR/publisher.db, shared by all publishers. Raises StateError."""

    def __init__(self, state_dir: Path):
        super().__init__(state_dir / "publisher.db", _SCHEMA, COMFORT)

    def write(self, events: Iterable[tuple[str, bytes]], confirmed: Iterable[str] = ()) -> None:
        """Write down events, as (id, body), and cross out the ids that were confirmed: one transaction."""
        with self.disk_problems():
            self.begin()
            self.db.executemany("DELETE FROM unconfirmed WHERE event_id = ?", ((event_id,) for event_id in confirmed))
            self.db.executemany("INSERT OR IGNORE INTO unconfirmed VALUES (?, ?)", events)
        self.commit()

    def count(self) -> int:
        return self._ask("SELECT count(*) FROM unconfirmed")[0][0]

    def left(self) -> Iterator[Event]:
        """The events that are there now, oldest first; each may be crossed out meanwhile."""
        last, newest = 0, self._ask("SELECT coalesce(max(rowid), 0) FROM unconfirmed")[0][0]
        while page := self._ask("SELECT rowid, body FROM unconfirmed WHERE rowid > ? AND rowid <= ?"
                                " ORDER BY rowid LIMIT ?", last, newest, PAGE):
            for last, body in page:
                yield decode(body)

    def _ask(self, sql: str, *values) -> list[tuple]:
        with self.disk_problems():
            return self.db.execute(sql, values).fetchall()
