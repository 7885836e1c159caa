"""`kit.py bench`: the kit beside what a user would pick instead, in one run on a private broker.

The kit is measured through its own scripts, with its outbox, ledger, SQLite effect and fsync. Each peer
(peers/) does the least that has the same effect on the broker. A clock starts just before its program
connects; only the kit's consumer is timed from the start of its process to the end. Rounds are
interleaved, so that whatever else the machine does hits all; what counts is the median of the rounds.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing, contextmanager
from datetime import date, datetime
from pathlib import Path

from benchmarks import report
from benchmarks.others import Peer, available, draw
from common import cli, config, console
from common.connection import connect
from common.events import encode, new_id, user_created
from common.exchange import CONSUMERS, declare
from common.ledger import Ledger
from common.outbox import Outbox
from common.publishing import ConfirmedConnection
from events_publisher_levels import level_3_confirmed
from tools import broker
from tools.node import Node, ask_management

PUBLISHER = ("events_publisher_levels.py", "--level", 3, "--nombre", "Juan", "--email", "juan@eco.com", "--count")
SCRIPTS = {"email": "email_consumer_simple.py", "loyalty": "loyalty_consumer_simple.py",
           "analytics": "analytics_consumer.py"}
QUEUE = CONSUMERS["loyalty"]
EVENTS = 60_000  # in a round: a script's start-up is then a tenth of it at most
QUICK_EVENTS = 600
MANY = 17  # times EVENTS: about a million
LATENCY_RATE = 100  # events a second
PATIENCE_S = 900
POLL_S = 0.05


class BenchError(config.KitError):
    """A measurement that means nothing."""

    exit_code = cli.EXIT_CHECK_FAILED


class Bench:
    """A private broker with the kit's queues, and what is run against it."""

    def __init__(self, node: Node, folder: Path, peers: list[Peer], rounds: int, events: int):
        self.node, self.folder, self.peers, self.rounds, self.events = node, folder, peers, rounds, events
        self.environment = os.environ | {"RABBITMQ_URL": node.url, "STATE_DIR": str(folder / "state"),
                                         "QUEUE_TYPE": "quorum", "RETRY_DELAYS": "5,30,120"}
        self.settings = config.load({name: self.environment[name] for name in config.DEFAULTS if name in self.environment})
        self.log = folder / "log.txt"
        self.body = folder / "event.json"
        self.body.write_bytes(encode(user_created("Juan", "juan@eco.com")))
        self.on_channel(lambda channel: declare(channel, self.settings))

    def on_channel(self, work: Callable):
        with connect(self.settings) as connection:
            return work(connection.channel())

    def start(self, *command: object, out: Path = Path(os.devnull)) -> subprocess.Popen:
        """A Python process; its stdout goes to a file, or nowhere, and its stderr to the log."""
        with out.open("wb") as target, self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, *map(str, command)], stdin=subprocess.DEVNULL, stdout=target,
                                    stderr=log, env=self.environment, cwd=config.ROOT)

    def seconds(self, *command: object) -> float:
        """What a script of the kit takes, from its start to its end."""
        started_at = time.monotonic()
        self.succeeds(self.start(*command).wait(PATIENCE_S), command[0])
        return time.monotonic() - started_at

    def publish_rate(self) -> float:
        """What the publisher itself says: from just before it connects until all is confirmed, as the peers' clock."""
        out = self.folder / "publisher.txt"
        self.succeeds(self.start(*PUBLISHER, self.events, out=out).wait(PATIENCE_S), PUBLISHER[0])
        return float(re.search(r"(\d+) eventos/s", out.read_text(encoding="utf-8"))[1])

    def peer_seconds(self, peer: Peer, *arguments: object) -> float:
        with self.log.open("ab") as log:
            ended = subprocess.run([*peer.command, arguments[0], self.node.url, *map(str, arguments[1:])],
                                   stdout=subprocess.PIPE, stderr=log, timeout=PATIENCE_S)
        self.succeeds(ended.returncode, peer.name)
        return float(ended.stdout)

    def succeeds(self, code: int, what: object) -> None:
        if code:
            last_words = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise BenchError(f"{what} terminó en {code}: {' · '.join(last_words)}")

    def purge(self, *queues: str) -> None:
        self.on_channel(lambda channel: [channel.queue_purge(queue) for queue in queues or CONSUMERS.values()])

    def fill(self) -> None:
        """A round's events in the loyalty queue, and in no other."""
        self.purge()
        self.seconds(*PUBLISHER, self.events)
        self.purge(*set(CONSUMERS.values()) - {QUEUE})

    def expect(self, queued: int, who: str) -> None:
        """Whether so many events are really there, or really gone."""
        found = self.on_channel(lambda channel: channel.queue_declare(QUEUE, passive=True).method.message_count)
        if found != queued:
            raise BenchError(f"Con {who} quedan {found} eventos en {QUEUE}, y no {queued}: la medida no vale.")


def publish(bench: Bench) -> dict:
    """Confirmed events a second to a fanout exchange with three quorum queues."""
    return published(bench, bench.peers)


def apart(bench: Bench) -> dict:
    """The same, with broker and publisher on one CPU each, as on two machines: neither takes the other's time."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        return {}
    first, second, *_ = all_of_them = sorted(os.sched_getaffinity(0))

    def place(broker_on, rest_on) -> None:
        for thread in Path(f"/proc/{bench.node.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), broker_on)
        os.sched_setaffinity(0, rest_on)  # what is started from here on has it too

    place({first}, {second})
    try:
        return published(bench, [peer for peer in bench.peers if peer.window])
    finally:
        place(all_of_them, all_of_them)


def published(bench: Bench, peers: list[Peer]) -> dict:
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[list[float]]] = {}
    for _ in range(bench.rounds):
        for peer in (None, *peers):
            name = peer.name if peer else report.KIT
            count = bench.events if not peer or peer.window else bench.events // 60  # one at a time takes its time
            bench.purge()
            before = cpu_us(bench.node)
            rate = count / bench.peer_seconds(peer, "publish", count, bench.body) if peer else bench.publish_rate()
            costs.setdefault(name, []).append([(now - then) / count for now, then in zip(cpu_us(bench.node), before)])
            rates.setdefault(name, []).append(rate)
            bench.expect(count, name)
    found = compared(rates)
    for name, each in costs.items():
        found[name] |= {who: round(statistics.median(cost)) for who, cost in zip(("broker_us", "client_us"), zip(*each))}
    return found


def cpu_us(node: Node) -> tuple[float, float]:
    """CPU time in microseconds, where the system tells: the broker's, and that of the processes that have ended."""
    stat, broker_us = Path(f"/proc/{node.pid}/stat"), 0.0
    if stat.exists():
        ticks = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        broker_us = sum(map(int, ticks)) * 1e6 / os.sysconf("SC_CLK_TCK")
    times = os.times()
    return broker_us, 1e6 * (times.children_user + times.children_system)


def consume(bench: Bench) -> dict:
    """Events a second from one quorum queue, prefetch 200: the kit does its work, the others only ack."""
    rates: dict[str, list[float]] = {}
    for _ in range(bench.rounds):
        bench.fill()
        seconds = bench.seconds(SCRIPTS["loyalty"], "--limit", bench.events)
        rates.setdefault(report.KIT, []).append(bench.events / seconds)
        bench.expect(0, report.KIT)
        for peer, acks in ((peer, acks) for peer in bench.peers for acks in ("each", "multiple")):
            bench.fill()
            seconds = bench.peer_seconds(peer, "consume", bench.events, acks)
            rates.setdefault(peer.name if acks == "each" else f"{peer.name}, multiple acks", []).append(
                bench.events / seconds)
            bench.expect(0, peer.name)
    return compared(rates)


def flow(bench: Bench) -> dict:
    """Publisher and three consumers at once: events a second to their third effect, and how long one takes."""
    rates = []
    count = bench.events // 6  # an e-mail is a file, written and synced by itself
    for _ in range(bench.rounds):
        with consuming(bench, *CONSUMERS) as files:
            started_at = time.time()
            bench.seconds(*PUBLISHER, count)
            rates.append(count / (max(at for _, at in effects(files, 3 * count)) - started_at))
    born: dict[str, float] = {}

    def new_events(sleep):
        for _ in cli.paced(range(max(bench.events // 30, 100)), LATENCY_RATE, sleep):
            event = user_created("Juan", "juan@eco.com")
            born[event.id] = time.time()
            yield event

    with consuming(bench, *CONSUMERS) as files:
        with ConfirmedConnection(bench.settings, outbox=Outbox(bench.settings.state_dir)) as connection:
            list(level_3_confirmed(connection, new_events(connection.sleep)))
        last: dict[str, float] = {}
        for event_id, at in effects(files, 3 * len(born)):
            last[event_id] = max(at, last.get(event_id, 0))
    waits_ms = [1000 * (last[event_id] - at) for event_id, at in born.items()]
    return {**rated(rates), "at_events_per_s": LATENCY_RATE, "p50_ms": percentile(waits_ms, 50),
            "p99_ms": percentile(waits_ms, 99), "max_ms": percentile(waits_ms, 100)}


def scale(bench: Bench) -> dict:
    """One consumer in one, two and four processes: events a second from the first effect to the last."""
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(bench.rounds):
        for processes, each in rates.items():
            bench.fill()
            with consuming(bench, *["loyalty"] * processes) as files:
                times = [at for _, at in effects(files, bench.events)]
                each.append(bench.events / max(max(times) - min(times), 0.001))  # times are whole milliseconds
    return {str(processes): rated(each) for processes, each in rates.items()}


def memory(bench: Bench) -> dict:
    """Peak memory of a publisher and of a consumer that have very many events before them."""
    if not Path("/proc/self/status").exists():
        return {}
    count = MANY * bench.events
    publisher_mb = peak_mb(bench, *PUBLISHER, count)
    bench.expect(count, report.KIT)
    return {"events": count, "publisher_mb": publisher_mb,
            "consumer_mb": peak_mb(bench, SCRIPTS["loyalty"], "--limit", count)}


def peak_mb(bench: Bench, *command: object) -> float:
    """Read from Linux while it runs: what wait4() tells at the end counts the bench's own memory at the fork, too."""
    process, peak_kb = bench.start(*command), 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
        peak_kb = max(peak_kb, int(found[1]) if found else 0)
        time.sleep(POLL_S)
    bench.succeeds(process.returncode, command[0])
    return round(peak_kb * 1024 / 1e6, 1)


def ledger(bench: Bench) -> dict:
    """What a row for each event done costs in time and on disk, and how long old rows take to leave."""
    count = MANY * bench.events
    with closing(Ledger(bench.folder, "age")) as book:
        rates = [fill_ledger(book, count // 10) for _ in range(10)]
        keys = book.db.execute("SELECT event_id FROM done ORDER BY random() LIMIT 1000").fetchall()
        lookup_s = took(lambda: [book.once(str(uuid.UUID(bytes=key)), str) for key, in keys]) / len(keys)
        book.commit()
        book.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = book.path.stat().st_size
        nothing_old_s = took(book.forget_old)
        book.db.execute("UPDATE done SET done_at = 0")
        all_old_s = took(lambda: all(iter(book.forget_old, False)))
    return {"rows": 10 * (count // 10), "first_tenth_per_s": round(rates[0]), "last_tenth_per_s": round(rates[-1]),
            "repeated_us": round(lookup_s * 1e6), "bytes_per_row": round(size / count),
            "nothing_old_s": round(nothing_old_s, 2), "all_old_s": round(all_old_s, 1)}


def fill_ledger(book: Ledger, count: int) -> float:
    def fill():
        for number in range(1, count + 1):
            book.once(new_id(), str)
            if number % 200 == 0:
                book.commit()
        book.commit()
    return count / took(fill)


def retries(bench: Bench) -> dict:
    """How late each delay ends with many retries waiting, up to the end of the handler's next try."""
    count, delays = max(bench.events // 60, 20), bench.settings.retry_delays
    tries: dict[str, list[float]] = {}
    with consuming(bench, "loyalty") as files:
        bench.seconds("simulate_fail_publisher.py", "--mode", "flaky", "--times", len(delays), "--consumer", "loyalty",
                      "--count", count)
        for event_id, at in effects(files, count * (len(delays) + 1)):
            tries.setdefault(event_id, []).append(at)
    late_ms = {delay: [1000 * (times[number + 1] - times[number] - delay) for times in tries.values()]
               for number, delay in enumerate(delays)}
    return {"waiting": count, **{f"{delay:g}": {"p50_ms": percentile(each, 50), "p99_ms": percentile(each, 99),
                                                "least_ms": percentile(each, 0)} for delay, each in late_ms.items()}}


def start_up(bench: Bench) -> dict:
    """Milliseconds until --help has answered, and until Python itself has."""
    commands = {"python -c pass": ("-c", "pass"),
                **{f"{name} --help": (name, "--help") for name in (PUBLISHER[0], SCRIPTS["loyalty"])}}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(3 * bench.rounds):
        for name, command in commands.items():
            times[name].append(1000 * bench.seconds(*command))
    return {name: round(statistics.median(each)) for name, each in times.items()}


PARTS = {part.__name__: part for part in (publish, apart, consume, flow, scale, memory, ledger, retries, start_up)}


@contextmanager
def consuming(bench: Bench, *names: str):
    """These consumers at work; yields the files that their --json lines go to."""
    def wait_for_consumers(wanted: tuple[str, ...]) -> None:
        bench.on_channel(lambda channel: wait_until(lambda: all(
            channel.queue_declare(queue, passive=True).method.consumer_count == wanted.count(name)
            for name, queue in CONSUMERS.items())))

    wait_for_consumers(())
    files = [bench.folder / f"{index}.jsonl" for index in range(len(names))]
    processes = [bench.start(SCRIPTS[name], "--json", out=file) for name, file in zip(names, files)]
    try:
        wait_for_consumers(names)
        yield files
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(PATIENCE_S)


def effects(files: list[Path], count: int) -> list[tuple[str, float]]:
    """(event id, when) of each line that the consumers have printed, as soon as there are `count`."""
    wait_until(lambda: sum(file.read_bytes().count(b"\n") for file in files) >= count)
    records = (json.loads(line) for file in files for line in file.read_bytes().splitlines())
    return [(record["event_id"], datetime.fromisoformat(record["time"].replace("Z", "+00:00")).timestamp())
            for record in records]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"Tras {PATIENCE_S} s no ha llegado lo que se esperaba.")
        time.sleep(POLL_S)


def took(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def percentile(values: list[float], percent: int) -> float:
    return round(sorted(values)[min(len(values) * percent // 100, len(values) - 1)], 1)


def rated(rates: list[float]) -> dict:
    return {"events_per_s": round(statistics.median(rates)), "rounds": [round(rate) for rate in rates]}


def compared(rates: dict[str, list[float]]) -> dict:
    """kit_is: how many times as many events a second the kit does."""
    kit = statistics.median(rates[report.KIT])
    return {name: {**rated(each), "kit_is": round(kit / statistics.median(each), 2)} for name, each in rates.items()}


def main(parts: list[str], rounds: int, quick: bool, out: Path, yes: bool) -> int:
    """Measure, print, and write performance.json (parts of today stay there) and performance.svg into `out`; the exit code."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        cli.wrong_usage(f"no se mide {', '.join(sorted(unknown))}; se mide {', '.join(PARTS)}")
    parts = parts or list(PARTS)
    broker.require_server(yes)
    with tempfile.TemporaryDirectory(prefix="kit-bench-") as name, Node(Path(name) / "node") as node:
        node.start()
        folder = Path(name)
        peers = available(folder, yes) if {"publish", "apart", "consume"} & set(parts) else []
        bench = Bench(node, folder, peers, rounds, QUICK_EVENTS if quick else EVENTS)
        figures = out / "performance.json"
        results = {"when": date.today().isoformat(), "machine": machine(), "rounds": rounds, "events": bench.events}
        earlier = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
        if {name: earlier.get(name) for name in results} != results:
            earlier = {}  # of another day, machine or size: nothing to add to
        results |= {"versions": earlier.get("versions", {}) | versions(node, peers), **{
            part: earlier[part] for part in PARTS if part in earlier}}
        for part in parts:
            console.say(f"\n{part}: {PARTS[part].__doc__}", "bold")
            bench.purge()
            results[part] = PARTS[part](bench)
            console.say("\n".join(report.table(results, part)))
        out.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if {"publish", "consume"} <= results.keys():
            draw(out)
    console.say(f"\nResultados en {out}.")
    return cli.EXIT_OK


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, Python {platform.python_version()}"


def versions(node: Node, peers: list[Peer]) -> dict[str, str]:
    overview = ask_management("GET", node.management_url, "guest", "guest", "overview")
    return {"RabbitMQ": overview["rabbitmq_version"], **{peer.name: peer.version for peer in peers}}
