"""A publisher at level 3 and the three consumers, something that goes wrong, and the account of it."""

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
DRAIN_S = 90


class Scene:
    """kit looks at the broker; scripts start through `under_fault`, which a proxy may stand in front of."""

    def __init__(self, kit: Kit):
        self.kit = self.under_fault = kit
        self.node = kit.node
        self.attempted = 0
        self.publishers: list[Running] = []
        self.consumers: list[Running] = []

    def through(self, port: int) -> None:
        self.under_fault = self.kit.using(url=self.kit.url.replace(f":{self.node.port}/", f":{port}/"))

    def kill_broker(self) -> None:
        """Once the newest queue's name is on disk, about a second after it was declared: killed before that,
        a broker gives it no leader again (github.com/rabbitmq/rabbitmq-server/issues/15725)."""
        newest = f"{self.kit.url.rpartition('/')[2]}_{topology(self.kit.settings)[-1].name}".encode()
        wait_until(lambda: any(newest in names.read_bytes() for names in self.node.folder.rglob("quorum/*/names.dets")),
                   "the broker to write down its newest queue")
        self.node.kill()

    def publish(self, count: int, *flags: str) -> Running:
        """Start publishing at level 3; stdout is JSON."""
        self.attempted += count
        running = self.under_fault.start("events_publisher_levels.py", "--level", "3", *USER,
                                         "--count", str(count), "--json", *flags)
        self.publishers.append(running)
        return running

    def resume(self) -> Running:
        """Start sending what dead publishers have left."""
        running = self.under_fault.start("events_publisher_levels.py", "--resume", "--json")
        self.publishers.append(running)
        return running

    def publish_all(self, count: int) -> set[str]:
        """Publish to the end; the ids, all confirmed."""
        running = self.publish(count)
        assert running.end(DRAIN_S) == 0, running.text()[-2000:]
        assert len(confirmed(running)) == count
        return confirmed(running)

    def publish_failing(self, mode: str, count: int, *flags: str) -> Running:
        """Start publishing events whose handlers are to fail (simulate_fail_publisher.py); stdout is JSON."""
        self.attempted += count
        running = self.under_fault.start("simulate_fail_publisher.py", "--mode", mode, "--count", str(count),
                                         "--json", *flags)
        self.publishers.append(running)
        return running

    def consume(self, *names: str) -> list[Running]:
        """Start consumers, all three if none is named, and wait until they consume."""
        started = []
        for name in names or CONSUMERS:
            had = self.kit.consumers(CONSUMERS[name])
            started.append(self.under_fault.start(SCRIPTS[name]))
            wait_until(lambda: self.kit.consumers(CONSUMERS[name]) > had, f"{name} to consume", started[-1].text)
        self.consumers += started
        return started

    def start_with_failpoint(self, failpoint: str, script: str, *arguments: str) -> Running:
        """Start a script that kills itself at a point (failpoints.py): -SIGKILL is its exit code."""
        running = Running([sys.executable, str(FAILPOINTS), failpoint, script, *arguments],
                          self.under_fault.environment(), self.kit.state.parent)
        self.kit.started.append(running)
        return running

    def wait_until_done(self, ids: set[str], *names: str, timeout: float = DRAIN_S) -> None:
        """Wait until the consumers, all three if none is named, have done or dead-lettered all of it."""
        for name in names or CONSUMERS:
            wait_until(lambda: ids <= self.done(name), f"{name} to be done with {len(ids)}",
                       lambda: f"{name} has done {len(self.done(name))}; queues: {account.totals(self.kit)}", timeout)

    def done(self, name: str) -> set[str]:
        return account.ledger(self.kit, name)

    def balance(self, dead: dict[str, int] | None = None) -> Account:
        """Wait for the publishers' end and until all is drained, stop the consumers, draw the account.

        dead: how many dead letters each consumer is to have; none if it is not said.
        """
        for publisher in self.publishers:
            assert publisher.end(DRAIN_S) in (0, -signal.SIGKILL), publisher.text()[-2000:]
        dead = dead or {}
        sent = set().union(*map(confirmed, self.publishers))
        if not any(publisher.process.returncode for publisher in self.publishers):
            assert len(sent) == self.attempted, "a publisher forgot some"
        busy_at = time.monotonic()

        def drained() -> bool:
            """Nothing is on its way, and counts that may be a second old have said so for longer."""
            nonlocal busy_at
            left = account.totals(self.kit)
            letters = left.pop(DEAD_LETTER_QUEUE, 0)
            if any(left.values()) or letters != sum(dead.values()) or any(
                    len(sent - self.done(name)) > dead.get(name, 0) for name in CONSUMERS):
                busy_at = time.monotonic()
            return time.monotonic() - busy_at > 2 * COUNTS_AT_MOST_MS / 1000

        wait_until(drained, "empty queues", lambda: f"done: {[len(self.done(name)) for name in CONSUMERS]} of {len(sent)};"
                   f" queues: {account.totals(self.kit)}", DRAIN_S)
        for consumer in self.consumers:
            assert consumer.interrupt() == 0, consumer.text()[-2000:]
        for script in self.kit.started:
            assert "Traceback" not in script.text(), script.text()[-2000:]
        drawn = account.take(self.kit, self.attempted, sent)
        print(drawn)
        assert not drawn.lost(), drawn
        assert {name: len(ids) for name, ids in drawn.dead.items() if ids} == dead, drawn
        assert all(ids.total() == len(ids) for ids in drawn.dead.values()), "a letter that is there twice"
        assert not any(drawn.queued.values()), drawn
        assert "Falling back" not in self.node.log()
        return drawn


def confirmed(publisher: Running) -> set[str]:
    """The ids that the broker has answered for; the last line of a killed process may be cut."""
    answers = (json.loads(line) for line in publisher.out if line.endswith("}"))
    return {answer["id"] for answer in answers if answer["outcome"] == "confirmed"}
