"""One account for every fault: what was attempted and confirmed, and where each event is now."""

import sqlite3
import uuid
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass

from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, topology
from common.letters import read
from tools.node import ask_management


@dataclass(frozen=True)
class Account:
    """Event ids, per consumer where it says so; taking it takes the messages out of their queues."""

    attempted: int
    confirmed: set[str]
    effects: dict[str, set[str]]
    dead: dict[str, Counter]
    queued: dict[str, Counter]

    def lost(self) -> dict[str, set[str]]:
        """What was confirmed and is nowhere; only the consumers that miss something."""
        missing = {name: self.confirmed - self.effects[name] - set(self.dead[name]) - set(self.queued[name])
                   for name in CONSUMERS}
        return {name: ids for name, ids in missing.items() if ids}

    def __str__(self) -> str:
        def each(counts: dict) -> str:
            return " ".join(f"{name} {counts[name]}" for name in CONSUMERS)
        return (f"attempted {self.attempted}, confirmed {len(self.confirmed)}"
                f" | effects: {each({name: len(ids) for name, ids in self.effects.items()})}"
                f" | dead letters: {each({name: len(ids) for name, ids in self.dead.items()})}"
                f" | still queued: {each({name: ids.total() for name, ids in self.queued.items()})}"
                f" | lost: {sum(map(len, self.lost().values()))}")


def take(kit, attempted: int, confirmed: set[str]) -> Account:
    """The account of a vhost at rest: publisher and consumers have ended."""
    dead = {name: Counter() for name in CONSUMERS}
    for properties, body in kit.messages(DEAD_LETTER_QUEUE):
        dead[read(properties, body).consumer][properties.message_id] += 1
    queued = {name: Counter() for name in CONSUMERS}
    for name in CONSUMERS:
        for queue in topology(kit.settings, name)[1:]:
            queued[name].update(properties.message_id for properties, _ in kit.messages(queue.name))
    return Account(attempted, confirmed, {name: effects(kit, name) for name in CONSUMERS}, dead, queued)


def ledger(kit, consumer: str) -> set[str]:
    """The ids of the events that a consumer has noted as done."""
    if not (kit.state / f"{consumer}.db").exists():
        return set()
    with closing(sqlite3.connect(kit.state / f"{consumer}.db", timeout=10)) as db:
        return {str(uuid.UUID(bytes=row[0])) for row in db.execute("SELECT event_id FROM done")}


def count_done(kit, consumer: str) -> int:
    """How many these are: cheap enough to ask again and again, and nothing is made by asking."""
    with suppress(sqlite3.OperationalError), closing(  # not there yet
            sqlite3.connect(f"{(kit.state / consumer).as_uri()}.db?mode=ro", uri=True, timeout=10)) as db:
        return db.execute("SELECT count(*) FROM done").fetchone()[0]
    return 0


def effects(kit, consumer: str) -> set[str]:
    """The ids of the events done by a consumer, once it is checked that each has had its effect once.

    The effect is read where it is, not in the ledger: points, counters, files.
    """
    done = ledger(kit, consumer)
    if not done:
        return done
    with closing(sqlite3.connect(kit.state / f"{consumer}.db", timeout=10)) as db:
        if consumer == "loyalty":  # each event has a user of its own
            assert db.execute("SELECT count(*), total(points), max(points) FROM accounts").fetchone() == (
                len(done), 100 * len(done), 100)
        elif consumer == "analytics":
            assert db.execute("SELECT total(count) FROM counters WHERE kind = 'by_type'").fetchone() == (len(done),)
    if consumer == "email":
        files = Counter(path.name.partition(".")[0] for path in (kit.state / "outbox" / "new").glob("*"))
        assert files == Counter(done)
        assert not list((kit.state / "outbox" / "tmp").glob("*"))
    return done


def totals(kit) -> dict[str, int]:
    """Queue -> all its messages: ready, unacknowledged, expired and not yet moved on; up to 5 s old."""
    vhost = kit.url.rpartition("/")[2]
    return {queue["name"]: queue.get("messages", 0) for queue in ask_management(
        "GET", kit.node.management_url, "guest", "guest",
        f"queues/{vhost}?disable_stats=true&enable_queue_totals=true")}
