"""`kit.py bench`: compare the kit with other libraries, in one run on a private broker.

The kit is measured through its own scripts, with its outbox, ledger, SQLite effect and fsync. Each
peer (peers/) does the minimum that has the same effect on the broker. The time starts just before a
program connects; only the kit's consumer is timed from the start of its process to its end. Rounds
are interleaved, so that other load on the machine affects all programs. The result is the median.
"""

import json
import os
import platform
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import date, datetime
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import report
from benchmarks.others import Peer, available, draw
from common import cli, config, console
from common.connection import connect
from common.events import Event, encode, new_id, user_created
from common.exchange import CONSUMERS, declare
from common.ledger import Ledger
from common.outbox import Outbox
from common.publishing import confirmed_channel
from events_publisher_levels import level_3_confirmed
from tools import broker
from tools.node import Node, ask_management

PUBLISHER = ("events_publisher_levels.py", "--level", 3, "--nombre", "Juan",
             "--email", "juan@eco.com", "--count")
SCRIPTS = {"email": "email_consumer_simple.py", "loyalty": "loyalty_consumer_simple.py",
           "analytics": "analytics_consumer.py"}
QUEUE = CONSUMERS["loyalty"]
EVENTS = 60_000  # per round: a script's start-up takes at most a tenth of the time
QUICK_EVENTS = 600
MANY = 17  # times EVENTS: about a million
SLOW_SHARE = 60  # a peer that waits for every confirm publishes this fraction of a round
FLOW_SHARE = 6  # the flow, with its three consumers, gets this fraction of a round
LATENCY_RATE = 100  # events per second
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
        self.environment = os.environ | {
            "RABBITMQ_URL": node.url, "STATE_DIR": str(folder / "state"), "QUEUE_TYPE": "quorum",
            "RETRY_DELAYS": "5,30,120"}
        self.settings = config.load({name: self.environment[name] for name in config.DEFAULTS
                                     if name in self.environment})
        self.log = folder / "log.txt"
        self.body = folder / "event.json"
        self.body.write_bytes(encode(user_created("Juan", "juan@eco.com")))
        self.on_channel(lambda channel: declare(channel, self.settings))

    def on_channel(self, work: Callable[[Any], T]) -> T:
        with connect(self.settings) as connection:
            return work(connection.channel())

    def start(self, *command: object, out: Path = Path(os.devnull)) -> subprocess.Popen:
        """Start a Python process with its stdout in a file and its stderr in the log."""
        with out.open("wb") as target, self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *map(str, command)], stdin=subprocess.DEVNULL, stdout=target,
                stderr=log, env=self.environment, cwd=config.ROOT)

    def seconds(self, *command: object) -> float:
        """Run a script of the kit; return how long its process took."""
        started_at = time.monotonic()
        self.check_exit_code(self.start(*command).wait(TIMEOUT_S), command[0])
        return time.monotonic() - started_at

    def publish_rate(self) -> float:
        """Run the publisher; return its own rate, from just before connecting to the last confirm.

        The peers measure the same interval.
        """
        out = self.folder / "publisher.txt"
        process = self.start(*PUBLISHER, self.events, out=out)
        self.check_exit_code(process.wait(TIMEOUT_S), PUBLISHER[0])
        found = re.search(r"(\d+) eventos/s", out.read_text(encoding="utf-8"))
        if not found:
            raise BenchError(f"{PUBLISHER[0]} no dijo a cuántos eventos/s publicó.")
        return float(found[1])

    def peer_seconds(self, peer: Peer, role: str, *arguments: object) -> float:
        """Run a peer; return the time that it measured."""
        with self.log.open("ab") as log:
            ended = subprocess.run([*peer.command, role, self.node.url, *map(str, arguments)],
                                   stdout=subprocess.PIPE, stderr=log, timeout=TIMEOUT_S)
        self.check_exit_code(ended.returncode, peer.name)
        return float(ended.stdout)

    def check_exit_code(self, code: int, program: object) -> None:
        if code:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise BenchError(f"{program} salió con código {code}: {' · '.join(lines)}")

    def purge(self, *queues: str) -> None:
        """Purge these queues; without arguments, the queues of all consumers."""
        self.on_channel(lambda channel: [channel.queue_purge(queue)
                                         for queue in queues or CONSUMERS.values()])

    def fill(self) -> None:
        """Put a round's events in the loyalty queue, and only there."""
        self.purge()
        self.seconds(*PUBLISHER, self.events)
        self.purge(*set(CONSUMERS.values()) - {QUEUE})

    def expect(self, queued: int, who: str) -> None:
        """Raise BenchError unless exactly this many events are in the queue."""
        found = self.on_channel(lambda channel: channel.queue_declare(
            QUEUE, passive=True).method.message_count)
        if found != queued:
            raise BenchError(f"Con {who} quedan {found} eventos en {QUEUE}, y no {queued}:"
                             " la medida no vale.")


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
        bench.fill()
        seconds = bench.seconds(SCRIPTS["loyalty"], "--limit", bench.events)
        rates[report.KIT].append(bench.events / seconds)
        bench.expect(0, report.KIT)
        for peer, acks in product(bench.peers, ("each", "multiple")):
            bench.fill()
            seconds = bench.peer_seconds(peer, "consume", bench.events, acks)
            name = peer.name if acks == "each" else f"{peer.name}, multiple acks"
            rates[name].append(bench.events / seconds)
            bench.expect(0, peer.name)
    return compared(rates)


def flow(bench: Bench) -> dict:
    """Publisher and three consumers at once: events a second to their third effect, and latency."""
    rates = []
    count = bench.events // FLOW_SHARE
    for _ in range(bench.rounds):
        with consuming(bench, *CONSUMERS) as files:
            started_at = time.time()
            bench.seconds(*PUBLISHER, count)
            last_at = max(at for _, at in effects(files, 3 * count))
            rates.append(count / (last_at - started_at))
    latencies = latencies_ms(bench)
    return {**rated(rates), "at_events_per_s": LATENCY_RATE, "p50_ms": percentile(latencies, 50),
            "p99_ms": percentile(latencies, 99), "max_ms": percentile(latencies, 100)}


def latencies_ms(bench: Bench) -> list[float]:
    """Publish at LATENCY_RATE; for each event, the time from its creation to its third effect."""
    created_at: dict[str, float] = {}

    def new_events():
        for _ in cli.paced(range(max(bench.events // 30, 100)), LATENCY_RATE, time.sleep):
            event = user_created("Juan", "juan@eco.com")
            created_at[event.id] = time.time()
            yield event

    with consuming(bench, *CONSUMERS) as files:
        outbox = Outbox(bench.settings.state_dir)
        with confirmed_channel(bench.settings, TIMEOUT_S, outbox) as channel:
            list(level_3_confirmed(channel, new_events()))
        last_at: dict[str, float] = {}
        for event_id, at in effects(files, 3 * len(created_at)):
            last_at[event_id] = max(at, last_at.get(event_id, 0))
    return [1000 * (last_at[event_id] - at) for event_id, at in created_at.items()]


def scale(bench: Bench) -> dict:
    """One consumer in one, two and four processes: events a second, first to last effect."""
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(bench.rounds):
        for processes, each in rates.items():
            bench.fill()
            with consuming(bench, *["loyalty"] * processes) as files:
                times = [at for _, at in effects(files, bench.events)]
                shortest_s = 0.001  # the times are whole milliseconds
                each.append(bench.events / max(max(times) - min(times), shortest_s))
    return {str(processes): rated(each) for processes, each in rates.items()}


def memory(bench: Bench) -> dict:
    """Peak memory of a publisher and of a consumer with about a million events to process."""
    if not Path("/proc/self/status").exists():
        return {}
    count = MANY * bench.events
    publisher_mb = peak_mb(bench, *PUBLISHER, count)
    bench.expect(count, report.KIT)
    return {"events": count, "publisher_mb": publisher_mb,
            "consumer_mb": peak_mb(bench, SCRIPTS["loyalty"], "--limit", count)}


def peak_mb(bench: Bench, *command: object) -> float:
    """Run a script and read its peak memory from /proc.

    The value that wait4() returns would include this process's own memory at the fork.
    """
    process, peak_kb = bench.start(*command), 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        peak_kb = max(peak_kb, int(found[1]) if found else 0)
        time.sleep(POLL_S)
    bench.check_exit_code(process.returncode, command[0])
    return round(peak_kb * 1024 / 1e6, 1)


def ledger(bench: Bench) -> dict:
    """Time and disk space of the ledger's rows, and how long deleting the old ones takes."""
    count = MANY * bench.events
    book = Ledger(bench.folder, "age")
    with closing(book.db):
        rates = [fill_ledger(book, count // 10) for _ in range(10)]
        keys = book.db.execute(
            "SELECT event_id FROM done ORDER BY random() LIMIT 1000").fetchall()
        events = [event_of(str(uuid.UUID(bytes=key))) for key, in keys]
        lookup_s = took(lambda: [book.once(event, no_effect) for event in events]) / len(events)
        book.commit()
        book.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = book.path.stat().st_size
        nothing_old_s = took(book.forget_old)
        book.db.execute("UPDATE done SET done_at = 0")
        all_old_s = took(book.forget_old)
    return {"rows": 10 * (count // 10), "first_tenth_per_s": round(rates[0]),
            "last_tenth_per_s": round(rates[-1]), "repeated_us": round(lookup_s * 1e6),
            "bytes_per_row": round(size / count), "nothing_old_s": round(nothing_old_s, 2),
            "all_old_s": round(all_old_s, 1)}


def event_of(event_id: str) -> Event:
    """An event of which the ledger uses the id only."""
    return Event(event_id, "", "")


def no_effect(event: Event, db: sqlite3.Connection) -> str:
    return ""


def fill_ledger(book: Ledger, count: int) -> float:
    """Add this many rows, 200 in each transaction; return the rows per second."""
    def fill() -> None:
        for number in range(1, count + 1):
            book.once(event_of(new_id()), no_effect)
            if number % 200 == 0:
                book.commit()
        book.commit()
    return count / took(fill)


def retries(bench: Bench) -> dict:
    """How late each delay ends with many retries waiting, up to the end of the next attempt."""
    count, delays = max(bench.events // 60, 20), bench.settings.retry_delays
    attempts: dict[str, list[float]] = defaultdict(list)
    with consuming(bench, "loyalty") as files:
        bench.seconds("simulate_fail_publisher.py", "--mode", "flaky", "--times", len(delays),
                      "--consumer", "loyalty", "--count", count)
        for event_id, at in effects(files, count * (len(delays) + 1)):
            attempts[event_id].append(at)
    found: dict[str, object] = {"waiting": count}
    for number, delay in enumerate(delays):
        late_ms = [1000 * (times[number + 1] - times[number] - delay)
                   for times in attempts.values()]
        found[f"{delay:g}"] = {
            "p50_ms": percentile(late_ms, 50), "p99_ms": percentile(late_ms, 99),
            "least_ms": percentile(late_ms, 0)}
    return found


def start_up(bench: Bench) -> dict:
    """Milliseconds that --help takes, and that Python alone takes."""
    commands = {"python -c pass": ("-c", "pass"),
                **{f"{name} --help": (name, "--help")
                   for name in (str(PUBLISHER[0]), SCRIPTS["loyalty"])}}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(3 * bench.rounds):
        for name, command in commands.items():
            times[name].append(1000 * bench.seconds(*command))
    return {name: round(statistics.median(each)) for name, each in times.items()}


PARTS = {part.__name__: part for part in (
    publish, apart, consume, flow, scale, memory, ledger, retries, start_up)}


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


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"Tras {TIMEOUT_S} s no ha llegado lo que se esperaba.")
        time.sleep(POLL_S)


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


def main(parts: list[str], rounds: int, quick: bool, out: Path, yes: bool) -> int:
    """Measure and print the parts; write performance.json and performance.svg to `out`."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        cli.wrong_usage(f"no se mide {', '.join(sorted(unknown))}; se mide {', '.join(PARTS)}")
    parts = parts or list(PARTS)
    broker.require_server(yes)
    with (
        tempfile.TemporaryDirectory(prefix="kit-bench-") as name,
        Node(Path(name) / "node") as node,
    ):
        node.start()
        folder = Path(name)
        peers = available(folder, yes) if {"publish", "apart", "consume"} & set(parts) else []
        bench = Bench(node, folder, peers, rounds, QUICK_EVENTS if quick else EVENTS)
        figures = out / "performance.json"
        results = earlier_results(figures, bench)
        results["versions"] |= versions(node, peers)
        for part in parts:
            console.print_line(f"\n{part}: {PARTS[part].__doc__}", "bold")
            bench.purge()
            results[part] = PARTS[part](bench)
            console.print_line("\n".join(report.table(results, part)))
        out.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if {"publish", "consume"} <= results.keys():
            draw(out)
    console.print_line(f"\nResultados en {out}.")
    return cli.EXIT_OK


def earlier_results(figures: Path, bench: Bench) -> dict[str, Any]:
    """The parts measured earlier on the same day and machine with the same size, to add to."""
    run = {"when": date.today().isoformat(), "machine": machine(), "rounds": bench.rounds,
           "events": bench.events}
    earlier = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    if {name: earlier.get(name) for name in run} != run:
        earlier = {}
    return {**run, "versions": earlier.get("versions", {}),
            **{part: earlier[part] for part in PARTS if part in earlier}}


def machine() -> str:
    return (f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU,"
            f" Python {platform.python_version()}")


def versions(node: Node, peers: list[Peer]) -> dict[str, str]:
    overview = ask_management("GET", node.management_url, "guest", "guest", "overview")
    return {"RabbitMQ": overview["rabbitmq_version"],
            **{peer.name: peer.version for peer in peers}}
