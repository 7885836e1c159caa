"""The account at the end of every fault: what was confirmed, and where each event is now."""

import sqlite3
import uuid
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass

from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, topology
from common.views.dead_letters import DeadLetter
from tools.node import ask_management


@dataclass(frozen=True)
class Account:
    """Event ids. `effects`, `dead` and `queued` have one entry per consumer."""

    attempted: int
    confirmed: set[str]
    effects: dict[str, set[str]]
    dead: dict[str, Counter]
    queued: dict[str, Counter]

    def lost(self) -> dict[str, set[str]]:
        """Return the confirmed events that are nowhere, per consumer that misses any."""
        missing = {name: self.confirmed - self.effects[name] - set(self.dead[name])
                   - set(self.queued[name])
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
    """Take the account of a vhost without running scripts. This consumes all its messages."""
    dead = {name: Counter() for name in CONSUMERS}
    for properties, body in kit.messages(DEAD_LETTER_QUEUE):
        dead[DeadLetter(properties, body).consumer][properties.message_id] += 1
    queued = {name: Counter() for name in CONSUMERS}
    for name in CONSUMERS:
        for queue in topology(kit.settings, CONSUMERS[name])[1:]:
            queued[name].update(properties.message_id for properties, _ in kit.messages(queue.name))
    return Account(attempted, confirmed, {name: effects(kit, name) for name in CONSUMERS},
                   dead, queued)


def ledger(kit, consumer: str) -> set[str]:
    """Return the ids of the events in a consumer's ledger."""
    if not (kit.state / f"{consumer}.db").exists():
        return set()
    with closing(sqlite3.connect(kit.state / f"{consumer}.db", timeout=10)) as db:
        return {str(uuid.UUID(bytes=row[0])) for row in db.execute("SELECT event_id FROM done")}


def count_done(kit, consumer: str) -> int:
    """Count the events in a consumer's ledger. This is cheap and creates no file."""
    with suppress(sqlite3.OperationalError), closing(  # no such file yet
            sqlite3.connect(f"{(kit.state / consumer).as_uri()}.db?mode=ro", uri=True,
                            timeout=10)) as db:
        return db.execute("SELECT count(*) FROM done").fetchone()[0]
    return 0


def effects(kit, consumer: str) -> set[str]:
    """Check that each event in a consumer's ledger has had one effect, and return the ids.

    The effects are points, counters and e-mails, not the rows of the ledger itself.
    """
    done = ledger(kit, consumer)
    if not done:
        return done
    with closing(sqlite3.connect(kit.state / f"{consumer}.db", timeout=10)) as db:
        if consumer == "loyalty":  # each event has its own user
            assert db.execute("SELECT count(*), total(points), max(points)"
                              " FROM accounts").fetchone() == (len(done), 100 * len(done), 100)
        elif consumer == "analytics":
            assert db.execute("SELECT total(count) FROM counters"
                              " WHERE kind = 'by_type'").fetchone() == (len(done),)
        else:
            assert Counter(event_id for [event_id] in db.execute(
                "SELECT event_id FROM outbox")) == Counter(done)
    return done


def totals(kit) -> dict[str, int]:
    """Return queue -> number of messages, at most COUNTS_AT_MOST_MS old.

    The number includes unacked messages, and expired ones that are not dead-lettered yet.
    """
    vhost = kit.url.rpartition("/")[2]
    return {queue["name"]: queue.get("messages", 0) for queue in ask_management(
        "GET", kit.node.management_url, "guest", "guest",
        f"queues/{vhost}?disable_stats=true&enable_queue_totals=true")}
