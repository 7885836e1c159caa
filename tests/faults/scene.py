"""The scripts of a fault test: publishers, consumers, and the account at the end."""

import json
import signal
import sys
import time
from pathlib import Path

from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, topology
from tests.conftest import Kit, Running, wait_until
from tests.faults import account
from tests.faults.account import Account
from tools.node import COUNTS_AT_MOST_MS

FAILPOINTS = Path(__file__).with_name("failpoints.py")
SCRIPTS = {"email": "email_consumer_simple.py", "loyalty": "loyalty_consumer_simple.py",
           "analytics": "analytics_consumer.py"}
USER = ("--nombre", "Juan", "--email", "juan@eco.com")
DRAIN_S = 200  # what expires while the broker starts may come 180 s late (facts.md, broker 2)
ENDLESS = 1_000_000  # events: until the end of the test


class Scene:
    """Runs publishers and consumers, and counts what they publish.

    `kit` connects to the broker directly. Scripts connect through `under_fault`, which may point
    to a proxy.
    """

    def __init__(self, kit: Kit):
        self.kit = self.under_fault = kit
        self.node = kit.node
        self.attempted = 0
        self.publishers: list[Running] = []
        self.endless: list[Running] = []
        self.consumers: list[Running] = []

    def through(self, port: int) -> None:
        url = self.kit.url.replace(f":{self.node.port}/", f":{port}/")
        self.under_fault = self.kit.using(url=url)

    def kill_broker(self) -> None:
        """Kill the broker after it has written the name of the newest queue to disk.

        This takes about a second. A quorum queue whose name is not on disk gets no leader after
        the restart (github.com/rabbitmq/rabbitmq-server/issues/15725).
        """
        vhost = self.kit.url.rpartition("/")[2]
        newest = f"{vhost}_{topology(self.kit.settings)[-1].name}".encode()
        wait_until(lambda: any(newest in names.read_bytes()
                               for names in self.node.folder.rglob("quorum/*/names.dets")),
                   "the broker to write the name of its newest queue")
        self.node.kill()

    def publish(self, count: int, *flags: str) -> Running:
        """Start a publisher at level 3. Its stdout is JSON.

        ENDLESS: it publishes for as long as the fault takes, however slow the machine is.
        """
        self.attempted += count
        running = self.under_fault.start("events_publisher_levels.py", "--level", "3", *USER,
                                         "--count", str(count), "--json", *flags)
        (self.endless if count == ENDLESS else self.publishers).append(running)
        return running

    def end_endless(self) -> None:
        """Kill the endless publishers, and send what they leave in the outbox."""
        for publisher in self.endless:
            assert publisher.process.poll() is None, publisher.text()[-2000:]
            publisher.kill()
        if self.endless:
            assert self.resume().end(DRAIN_S) == 0
        self.publishers += self.endless
        self.endless = []

    def resume(self) -> Running:
        """Start a publisher that sends the events in the outbox."""
        running = self.under_fault.start("events_publisher_levels.py", "--resume", "--json")
        self.publishers.append(running)
        return running

    def publish_all(self, count: int) -> set[str]:
        """Publish events, wait until all are confirmed, and return their ids."""
        running = self.publish(count)
        assert running.end(DRAIN_S) == 0, running.text()[-2000:]
        assert len(confirmed(running)) == count
        return confirmed(running)

    def publish_failing(self, mode: str, count: int, *flags: str) -> Running:
        """Start simulate_fail_publisher.py. Its stdout is JSON."""
        self.attempted += count
        running = self.under_fault.start("simulate_fail_publisher.py", "--mode", mode,
                                         "--count", str(count), "--json", *flags)
        self.publishers.append(running)
        return running

    def consume(self, *names: str) -> list[Running]:
        """Start the named consumers, or all three, and wait until they consume."""
        started = [self.under_fault.start_consumer(name) for name in names or CONSUMERS]
        self.consumers += started
        return started

    def start_with_failpoint(self, failpoint: str, script: str, *arguments: str) -> Running:
        """Start a script that kills itself at a point of failpoints.py."""
        running = Running([sys.executable, str(FAILPOINTS), failpoint, script, *arguments],
                          self.under_fault.environment(), self.kit.state.parent)
        self.kit.started.append(running)
        return running

    def wait_until_done(self, ids: set[str], *names: str, timeout: float = DRAIN_S) -> None:
        """Wait until the named consumers, or all three, have these ids in their ledgers."""
        for name in names or CONSUMERS:
            wait_until(lambda: ids <= self.done(name), f"{name} to be done with {len(ids)}",
                       lambda: (f"{name} has done {len(self.done(name))};"
                                f" queues: {account.totals(self.kit)}"), timeout)

    def done(self, name: str) -> set[str]:
        return account.ledger(self.kit, name)

    def balance(self, dead: dict[str, int] | None = None) -> Account:
        """Wait until all events are handled, stop the consumers, and check the account.

        dead: the expected number of dead letters per consumer.
        """
        self.end_endless()
        for publisher in self.publishers:
            assert publisher.end(DRAIN_S) in (0, -signal.SIGKILL), publisher.text()[-2000:]
        dead = dead or {}
        sent = set().union(*map(confirmed, self.publishers))
        if not any(publisher.process.returncode for publisher in self.publishers):
            assert len(sent) == self.attempted, "a publisher reported too few events"
        busy_at = time.monotonic()

        def drained() -> bool:
            """Whether nothing is left, for longer than the counts may be out of date."""
            nonlocal busy_at
            left = account.totals(self.kit)
            dead_letters = left.pop(DEAD_LETTER_QUEUE, 0)
            if any(left.values()) or dead_letters != sum(dead.values()) or any(
                    len(sent - self.done(name)) > dead.get(name, 0) for name in CONSUMERS):
                busy_at = time.monotonic()
            return time.monotonic() - busy_at > 2 * COUNTS_AT_MOST_MS / 1000

        wait_until(drained, "empty queues",
                   lambda: (f"done: {[len(self.done(name)) for name in CONSUMERS]} of {len(sent)};"
                            f" queues: {account.totals(self.kit)}"), DRAIN_S)
        for consumer in self.consumers:
            assert consumer.interrupt() == 0, consumer.text()[-2000:]
        for script in self.kit.started:
            assert "Traceback" not in script.text(), script.text()[-2000:]
        final = account.take(self.kit, self.attempted, sent)
        print(final)
        assert not final.lost(), final
        assert {name: len(ids) for name, ids in final.dead.items() if ids} == dead, final
        assert all(ids.total() == len(ids) for ids in final.dead.values()), "a double dead letter"
        assert not any(final.queued.values()), final
        assert "Falling back" not in self.node.log()
        return final


def confirmed(publisher: Running) -> set[str]:
    """Return the ids of the confirmed events in a publisher's output.

    The last line of a killed process may be incomplete.
    """
    answers = (json.loads(line) for line in publisher.out if line.endswith("}"))
    return {answer["id"] for answer in answers if answer["outcome"] == "confirmed"}
