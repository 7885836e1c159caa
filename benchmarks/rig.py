"""What the parts of `kit.py bench` share: a private broker with the kit's queues, the programs
that run against it, and the figures they give."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import report
from benchmarks.others import Peer
from common import cli, config
from common.confirms import WINDOW
from common.connection import connect
from common.events import encode, user_created
from common.exchange import CONSUMERS, declare
from common.publishing import ConfirmedChannel, properties
from tools.node import Node

PUBLISHER = ("events_publisher_levels.py", "--level", 3, "--nombre", "Juan",
             "--email", "juan@eco.com", "--count")
SCRIPTS = {"email": "email_consumer_simple.py", "loyalty": "loyalty_consumer_simple.py",
           "analytics": "analytics_consumer.py"}
QUEUE = CONSUMERS["loyalty"]
TIMEOUT_S = 900
POLL_S = 0.05

T = TypeVar("T")


class BenchError(config.KitError):
    """A measurement that is not valid."""

    exit_code = cli.EXIT_CHECK_FAILED


class Bench:
    """A private broker with the kit's queues, and the programs that run against it."""

    def __init__(self, node: Node, folder: Path, peers: list[Peer], rounds: int, events: int):
        self.node, self.folder, self.peers = node, folder, peers
        self.rounds, self.events = rounds, events
        self.started: list[subprocess.Popen] = []
        self.environment = os.environ | {
            "RABBITMQ_URL": node.url, "STATE_DIR": str(folder / "state"), "QUEUE_TYPE": "quorum",
            "RETRY_DELAYS": "5,10,20"}
        self.settings = config.load({name: self.environment[name] for name in config.DEFAULTS
                                     if name in self.environment})
        self.log = folder / "log.txt"
        self.body = folder / "event.json"
        self.body.write_bytes(encode(user_created("Juan", "juan@eco.com")))
        self.on_channel(lambda channel: declare(channel, self.settings))

    def on_channel(self, work: Callable[[Any], T]) -> T:
        with connect(self.settings) as connection:
            return work(connection.channel())

    @contextmanager
    def state(self) -> Iterator[Path]:
        """A STATE_DIR of its own for what is started meanwhile."""
        kept = self.environment["STATE_DIR"]
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            self.environment["STATE_DIR"] = name
            try:
                yield Path(name)
            finally:
                self.environment["STATE_DIR"] = kept

    def start(self, *command: object, out: Path = Path(os.devnull)) -> subprocess.Popen:
        """Start a process, of Python unless it is a peer's, with its stdout in a file and its
        stderr in the log."""
        program = map(str, command if Path(str(command[0])).is_absolute()
                      else (sys.executable, *command))
        with out.open("wb") as target, self.log.open("ab") as log:
            self.started.append(subprocess.Popen(
                [*program], stdin=subprocess.DEVNULL, stdout=target, stderr=log,
                env=self.environment, cwd=config.ROOT))
        return self.started[-1]

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:  # those of a part that failed still run
            process.kill()
            process.wait()

    def seconds(self, *command: object) -> float:
        """Run a script of the kit; return how long its process took."""
        started_at = time.monotonic()
        self.check_exit_code(self.start(*command).wait(TIMEOUT_S), command[0])
        return time.monotonic() - started_at

    def output(self, who: object, *command: object) -> str:
        """Run a program; return what it printed."""
        out = self.folder / "out.txt"
        self.check_exit_code(self.start(*command, out=out).wait(TIMEOUT_S), who)
        return out.read_text(encoding="utf-8")

    def publish_rate(self) -> float:
        """Run the publisher; return its own rate, from just before it connects until it has closed
        the connection, as the peers."""
        found = re.search(r"(\d+) eventos/s", self.output(
            PUBLISHER[0], *PUBLISHER, self.events))
        if not found:
            raise BenchError(f"{PUBLISHER[0]} no dijo a cuántos eventos/s publicó.")
        return float(found[1])

    def peer_seconds(self, peer: Peer, role: str, *arguments: object) -> float:
        """Run a peer; return the time that it measured."""
        return float(self.output(peer.name, *peer.command, role, self.node.url, *arguments))

    def check_exit_code(self, code: int, program: object) -> None:
        if code:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise BenchError(f"{program} salió con código {code}: {' · '.join(lines)}")

    def purge(self, *queues: str) -> None:
        """Purge these queues; without arguments, the queues of all consumers."""
        self.on_channel(lambda channel: [channel.queue_purge(queue)
                                         for queue in queues or CONSUMERS.values()])

    def fill(self, count: int) -> None:
        """Put so many new events in the loyalty queue, and only there."""
        self.purge()
        with ConfirmedChannel(self.settings, TIMEOUT_S) as channel:
            channel.confirm_delivery()
            for _ in range(count):
                event = user_created("Juan", "juan@eco.com")
                channel.basic_publish("", QUEUE, encode(event), properties(event, 2), True)
                deque(channel.answers(WINDOW), 0)
            deque(channel.answers(0), 0)

    def expect(self, queued: int, who: str) -> None:
        """Raise BenchError unless exactly this many events are in the queue."""
        found = self.on_channel(lambda channel: channel.queue_declare(
            QUEUE, passive=True).method.message_count)
        if found != queued:
            raise BenchError(f"Con {who} quedan {found} eventos en {QUEUE}, y no {queued}:"
                             " la medida no vale.")


@contextmanager
def consuming(bench: Bench, *names: str) -> Iterator[list[Path]]:
    """Run these consumers; yield the files with their --json lines."""
    wait_for_consumers(bench)
    files = [bench.folder / f"{index}.jsonl" for index in range(len(names))]
    processes = [bench.start(SCRIPTS[name], "--json", out=file)
                 for name, file in zip(names, files)]
    try:
        wait_for_consumers(bench, *names)
        yield files
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(TIMEOUT_S)


def wait_for_consumers(bench: Bench, *names: str) -> None:
    """Wait until these consumers, and no others, are on their queues."""
    def are_there(channel) -> bool:
        return all(
            channel.queue_declare(queue, passive=True).method.consumer_count == names.count(name)
            for name, queue in CONSUMERS.items())
    bench.on_channel(lambda channel: wait_until(lambda: are_there(channel)))


def effects(files: list[Path], count: int) -> list[tuple[str, float]]:
    """(event id, time) of each line that the consumers print, once there are `count` lines."""
    wait_until(lambda: sum(file.read_bytes().count(b"\n") for file in files) >= count)
    records = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    return [(record["event_id"], seconds_of(record["time"])) for record in records]


def seconds_of(utc: str) -> float:
    return datetime.fromisoformat(utc.replace("Z", "+00:00")).timestamp()


def wait_until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S,
               poll_s: float = POLL_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"Tras {timeout_s} s no ha llegado lo que se esperaba.")
        time.sleep(poll_s)


def took(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def percentile(values: list[float], percent: int) -> float:
    return round(sorted(values)[min(len(values) * percent // 100, len(values) - 1)], 1)


def rated(rates: list[float]) -> dict:
    return {"events_per_s": round(statistics.median(rates)),
            "rounds": [round(rate) for rate in rates]}


def compared(rates: dict[str, list[float]]) -> dict:
    """Each program's rate. kit_is: the kit's rate divided by that of the program."""
    kit = statistics.median(rates[report.KIT])
    return {name: {**rated(each), "kit_is": round(kit / statistics.median(each), 2)}
            for name, each in rates.items()}
