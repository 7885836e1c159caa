"""The parts of `kit.py bench` in which the kit runs beside other libraries.

In `publish`, `apart` and `consume` the peers do the minimum that has the same effect on the broker.
In `outbox`, `work` and `flow` they do what the kit does (peers/work.py).
"""

import os
import sqlite3
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks import report
from benchmarks.others import Peer
from benchmarks.rig import (
    PUBLISHER,
    SCRIPTS,
    TIMEOUT_S,
    Bench,
    BenchError,
    compared,
    wait_for_consumers,
    wait_until,
)
from common.exchange import CONSUMERS
from tools.node import Node

EACH, MULTIPLE = "each", "multiple"  # what the programs in peers/ call them
SLOW_SHARE = 60  # what waits for the disk or the broker at each event gets this fraction of a round
FLOW_SHARE = 6  # the flow, with its three consumers, gets this fraction of a round
FLOW_PEERS = ("aio-pika", "kombu")
AGAIN_S = 60  # what has not been done so long after a kill is lost
KILL_TRIES = 5  # a consumer may end before it is killed


def publish(bench: Bench) -> dict:
    """Confirmed events a second to a fanout exchange with three quorum queues."""
    return publish_rates(bench, bench.peers)


def apart(bench: Bench) -> dict:
    """The same, with broker and publisher on one CPU each, as on two machines."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        return {}
    first, second, *_ = all_cpus = sorted(os.sched_getaffinity(0))

    def pin(broker_cpus: Iterable[int], own_cpus: Iterable[int]) -> None:
        for thread in Path(f"/proc/{bench.node.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), broker_cpus)
        os.sched_setaffinity(0, own_cpus)  # processes started later inherit it

    pin({first}, {second})
    try:
        return publish_rates(bench, [peer for peer in bench.peers if peer.window])
    finally:
        pin(all_cpus, all_cpus)


def publish_rates(bench: Bench, peers: list[Peer]) -> dict:
    """Publish with the kit and these peers in turn; for each, the rate and the CPU time."""
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[list[float]]] = defaultdict(list)
    for _ in range(bench.rounds):
        for peer in (None, *peers):
            name = peer.name if peer else report.KIT
            count = bench.events if not peer or peer.window else bench.events // SLOW_SHARE
            bench.purge()
            before = cpu_us(bench.node)
            if peer:
                rate = count / bench.peer_seconds(peer, "publish", count, bench.body)
            else:
                rate = bench.publish_rate()
            after = cpu_us(bench.node)
            rates[name].append(rate)
            costs[name].append([(end - start) / count for end, start in zip(after, before)])
            bench.expect(count, name)
    found = compared(rates)
    for name, each in costs.items():
        medians = (round(statistics.median(cost)) for cost in zip(*each))
        found[name] |= dict(zip(("broker_us", "client_us"), medians))
    return found


def cpu_us(node: Node) -> tuple[float, float]:
    """CPU time in microseconds: the broker's (Linux only), and that of all ended children."""
    stat, broker_us = Path(f"/proc/{node.pid}/stat"), 0.0
    if stat.exists():
        ticks = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        broker_us = sum(map(int, ticks)) * 1e6 / os.sysconf("SC_CLK_TCK")
    times = os.times()
    return broker_us, 1e6 * (times.children_user + times.children_system)


def consume(bench: Bench) -> dict:
    """Events a second from a quorum queue, prefetch 200: the kit does its work, peers only ack."""
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.rounds):
        bench.fill(bench.events)
        seconds = bench.seconds(SCRIPTS["loyalty"], "--limit", bench.events)
        rates[report.KIT].append(bench.events / seconds)
        bench.expect(0, report.KIT)
        for peer, acks in product(bench.peers, (EACH, MULTIPLE)):
            if acks == MULTIPLE and not peer.multiple:
                continue
            bench.fill(bench.events)
            seconds = bench.peer_seconds(peer, "consume", bench.events, acks)
            name = peer.name if acks == EACH else f"{peer.name}, multiple acks"
            rates[name].append(bench.events / seconds)
            bench.expect(0, peer.name)
    return compared(rates)


@dataclass(frozen=True)
class Racer:
    """The kit, or a peer that does the same work: each event by itself, or in batches."""

    name: str
    peer: Peer | None = None
    mode: str = MULTIPLE

    def consumer(self, bench: Bench, folder: Path, consumer: str, count: int) -> tuple:
        if not self.peer:
            return SCRIPTS[consumer], "--limit", count
        return *self.peer.command, "consume", bench.node.url, count, self.mode, folder, consumer

    def publisher(self, bench: Bench, folder: Path, count: int) -> tuple:
        if not self.peer:
            return *PUBLISHER, count
        return *self.peer.command, "publish", bench.node.url, count, self.mode, folder


def racers(bench: Bench, *names: str) -> list[Racer]:
    """The kit and each Python peer (or those named), twice."""
    return [Racer(report.KIT), *(
        Racer(f"{peer.name}, {how}", peer, mode)
        for peer, (mode, how) in product(
            bench.peers, ((EACH, report.ONE_BY_ONE), (MULTIPLE, report.BATCHES)))
        if peer.same_work and peer.name in (names or peer.name))]


def outbox(bench: Bench) -> dict:
    """Confirmed events a second, each on disk before it is sent and until its confirm."""
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.rounds):
        for racer in racers(bench):
            peer, count = racer.peer, bench.events
            bench.purge()
            with bench.state() as folder:
                if not peer:
                    rate = bench.publish_rate()
                else:
                    if racer.mode == EACH or not peer.window:
                        count //= SLOW_SHARE
                    rate = count / bench.peer_seconds(peer, "publish", count, racer.mode, folder)
            bench.expect(count, racer.name)
            rates[racer.name].append(rate)
    return compared(rates)


def work(bench: Bench) -> dict:
    """Events a second with the same effects in SQLite; then once more, killed in mid-run."""
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.rounds):
        for racer in racers(bench):
            count = bench.events // (SLOW_SHARE if racer.mode == EACH else 1)
            bench.fill(count)
            with bench.state() as folder:
                seconds = (bench.peer_seconds(racer.peer, "consume", count, racer.mode, folder,
                                              "loyalty") if racer.peer
                           else bench.seconds(*racer.consumer(bench, folder, "loyalty", count)))
                if accounts(folder) != (count, count):
                    raise BenchError(f"{racer.name} no hizo su trabajo: la medida no vale.")
            bench.expect(0, racer.name)
            rates[racer.name].append(count / seconds)
    found = compared(rates)
    for racer in racers(bench):
        found[racer.name] |= killed(bench, racer)
    return found


def killed(bench: Bench, racer: Racer) -> dict:
    """Kill the consumer when a third is done, and start it again: effects lost and doubled."""
    count = 300 if racer.mode == EACH else 6000  # many commits, also in a quick run
    for _ in range(KILL_TRIES):
        wait_for_consumers(bench)  # none: the queue has what a killed one held
        bench.fill(count)
        with bench.state() as folder:
            command = racer.consumer(bench, folder, "loyalty", count)
            first = bench.start(*command)
            wait_until(lambda: accounts(folder)[0] > count // 3 or first.poll() is not None,
                       poll_s=0.002)
            first.kill()
            first.wait()
            if not count // 3 < accounts(folder)[0] < count:
                continue
            second = bench.start(*command)
            with suppress(BenchError):
                wait_until(lambda: accounts(folder)[0] == count, timeout_s=AGAIN_S)
            second.terminate()
            second.wait(TIMEOUT_S)
            users, effects = accounts(folder)
            return {"lost": count - users, "doubled": effects - users}
    raise BenchError(f"{racer.name} acabó antes de que se le matara: la medida no vale.")


def accounts(folder: Path) -> tuple[int, int]:
    """How many events, each with its own user, have an account; how often one was opened."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(
            f"{(folder / 'loyalty.db').as_uri()}?mode=ro", uri=True)) as db:
        return db.execute(
            "SELECT count(*), coalesce(sum(points), 0) / 100 FROM accounts").fetchone()
    return 0, 0  # there is no file yet, or no table


def flow(bench: Bench) -> dict:
    """Publisher and three consumers at once, until the last of the four ends: events a second."""
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.rounds):
        for racer in racers(bench, *FLOW_PEERS):
            count = bench.events // (SLOW_SHARE if racer.mode == EACH else FLOW_SHARE)
            bench.purge()
            with bench.state() as folder:
                consumers = [bench.start(*racer.consumer(bench, folder, name, count))
                             for name in CONSUMERS]
                wait_for_consumers(bench, *CONSUMERS)
                started_at = time.monotonic()
                for process in (bench.start(*racer.publisher(bench, folder, count)), *consumers):
                    bench.check_exit_code(process.wait(TIMEOUT_S), racer.name)
                rates[racer.name].append(count / (time.monotonic() - started_at))
                if accounts(folder) != (count, count):
                    raise BenchError(f"{racer.name} no hizo su trabajo: la medida no vale.")
    return compared(rates)
