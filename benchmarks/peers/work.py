"""What a peer does beside its library, so that its own file shows only the library's part.

    with_pika.py publish URL COUNT each|multiple FOLDER            an outbox row before each send
    with_pika.py consume URL COUNT each|multiple FOLDER CONSUMER   the consumer's work, then the ack
    with_pika.py publish URL COUNT BODY                            the same without any work: a file
    with_pika.py consume URL COUNT each|multiple                   again and again, or only acks

The work is the kit's own: its event, its handlers and its tables, in SQLite with WAL and
synchronous=FULL. What the kit does beside it, a peer need not: no retry, no dead letter, no
reconnect, no savepoint, no line printed. It prints the seconds from just before it connects.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import analytics_consumer as analytics
import email_consumer_simple as email
import loyalty_consumer_simple as loyalty
from common import config, ledger
from common.database import open_database
from common.events import decode, encode, user_created
from common.exchange import work_arguments

PREFETCH, WINDOW = 200, 1000  # as the kit
BATCH = 100  # half of what is prefetched: the other half arrives meanwhile
HANDLERS = {"loyalty": loyalty.open_account, "analytics": analytics.count,
            "email": lambda event, db: email.record_email("", event, db)}
TABLES = ledger.TABLE + loyalty.TABLES + analytics.TABLES + email.TABLES
QUEUE_ARGUMENTS = work_arguments(config.load())
IDLE_S = 0.05  # a batch that does not fill is committed after this time without an event


class Acks:
    """A consumer that only acks. batch: events in a commit, which are acked together."""

    def __init__(self, count: int, batch: int, consumer: str = "loyalty"):
        self.queue, self.batch = f"{consumer}_queue", batch
        self.pending, self.left = 0, count

    @property
    def full(self) -> bool:
        return self.pending >= self.batch

    def do(self, body: bytes) -> None:
        self.pending, self.left = self.pending + 1, self.left - 1

    def commit(self) -> None:
        self.pending = 0


class Effects(Acks):
    """A consumer's effects, each of them once; left: until the ledger has `count` events."""

    def __init__(self, count: int, batch: int, folder: str, consumer: str):
        self.handler = HANDLERS[consumer]
        self.db = open_database(Path(folder, f"{consumer}.db"), TABLES)
        [done] = self.db.execute("SELECT count(*) FROM done").fetchone()
        super().__init__(count - done, batch, consumer)

    def do(self, body: bytes) -> None:
        event = decode(body)
        if not self.pending:
            self.db.execute("BEGIN IMMEDIATE")
        if self.db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)",
                           (UUID(event.id).bytes, int(time.time()))).rowcount:
            self.handler(event, self.db)
            self.left -= 1
        self.pending += 1

    def commit(self) -> None:
        self.db.execute("COMMIT")
        self.pending = 0


class Repeated:
    """A publisher without an outbox. window: how many events may wait for their confirms."""

    def __init__(self, count: int, window: int, body: bytes = b""):
        self.count, self.window, self.body = count, window, body

    def events(self) -> Iterator[tuple[str, bytes]]:
        return ((str(number), self.body) for number in range(self.count))

    def confirmed(self, event_id: str) -> None:
        pass

    def close(self) -> None:
        pass


class Outbox(Repeated):
    """New events, on disk from before they are sent until after their confirms."""

    def __init__(self, count: int, window: int, folder: str):
        super().__init__(count, window)
        self.batch = 200 if window > 1 else 1  # as the kit
        self.acked: list[tuple[str]] = []
        self.db = open_database(Path(folder, "publisher.db"), "CREATE TABLE IF NOT EXISTS"
                                " unconfirmed (event_id TEXT UNIQUE NOT NULL, body BLOB NOT NULL);")

    def events(self) -> Iterator[tuple[str, bytes]]:
        for first in range(0, self.count, self.batch):
            new = [user_created("Juan", "juan@eco.com")
                   for _ in range(first, min(first + self.batch, self.count))]
            rows = [(event.id, encode(event)) for event in new]
            self.write(rows)
            yield from rows

    def write(self, rows: list[tuple[str, bytes]]) -> None:
        """One commit for the new rows and for those that are confirmed meanwhile."""
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("DELETE FROM unconfirmed WHERE event_id = ?", self.acked)
        self.db.executemany("INSERT INTO unconfirmed VALUES (?, ?)", rows)
        self.db.execute("COMMIT")
        self.acked.clear()

    def confirmed(self, event_id: str) -> None:
        self.acked.append((event_id,))

    def close(self) -> None:
        self.write([])
        assert self.db.execute("SELECT count(*) FROM unconfirmed").fetchone() == (0,)


def main(publish: Callable, consume: Callable) -> None:
    """publish(url, outbox), consume(url, inbox): what they return is not counted, in seconds."""
    role, url, count, option, *rest = sys.argv[1:]
    many = option == "multiple"
    if role == "publish":
        outbox = (Outbox(int(count), WINDOW if many else 1, *rest) if rest else
                  Repeated(int(count), WINDOW, Path(option).read_bytes()))
        started = time.perf_counter()
        not_counted = publish(url, outbox) or 0
        outbox.close()
    else:
        inbox = (Effects if rest else Acks)(int(count), BATCH if many else 1, *rest)
        started = time.perf_counter()
        not_counted = consume(url, inbox) or 0
    print(time.perf_counter() - started - not_counted)
