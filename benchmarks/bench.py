"""`kit.py bench`: the kit's speed, alone and beside other libraries, on a private broker.

The kit is measured through its own scripts, with its outbox, ledger, SQLite effect and fsync. The
time starts just before a program connects; the kit's consumer is timed from the start of its
process to its end, and `flow` from the start of the publisher's process. Rounds are interleaved, so
that other load on the machine affects all programs. The result is the median. A part is a function
of the bench; PARTS lists them.
"""

import json
import os
import platform
import re
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections import deque
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import race, report
from benchmarks.others import Peer, available, draw
from benchmarks.rig import (
    POLL_S,
    PUBLISHER,
    SCRIPTS,
    TIMEOUT_S,
    Bench,
    BenchError,
    consuming,
    effects,
    percentile,
    rated,
    seconds_of,
    took,
)
from common import cli, console
from common.config import ROOT, KitError
from common.confirms import WINDOW
from common.events import Event, encode, new_id, now, user_created
from common.exchange import CONSUMERS
from common.ledger import Ledger
from common.outbox import Outbox
from common.publishing import ConfirmedChannel, properties
from common.retry import failed_copy
from common.simulation import SimulatedFailure
from events_publisher_levels import level_3_confirmed
from tools import broker
from tools.node import Node, ask_management

EVENTS = 30_000  # per round: a script's start-up takes at most a tenth of the time
QUICK_EVENTS = 600
LETTERS = 100_000  # dead letters, for EVENTS
MANY = 10  # times EVENTS: no program's memory may depend on it
LATENCY_RATE = 100  # events per second
DEAD = "dead_letter_consumer.py"
DOCS = ROOT / "docs"
PAGE = "performance.md"


def latency(bench: Bench) -> dict:
    """From an event's creation to its third effect, at a hundred events a second."""
    latencies = latencies_ms(bench)
    return {"at_events_per_s": LATENCY_RATE, "p50_ms": percentile(latencies, 50),
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
        with ConfirmedChannel(bench.settings, TIMEOUT_S, outbox) as channel:
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
            bench.fill(bench.events)
            with consuming(bench, *["loyalty"] * processes) as files:
                times = [at for _, at in effects(files, bench.events)]
                shortest_s = 0.001  # the times are whole milliseconds
                each.append(bench.events / max(max(times) - min(times), shortest_s))
    return {str(processes): rated(each) for processes, each in rates.items()}


def memory(bench: Bench) -> dict:
    """Peak memory of a publisher and of a consumer with many events to process."""
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


def letters(bench: Bench) -> dict:
    """Many dead letters, while another terminal watches them: counted, exported, replayed."""
    count = max(LETTERS * bench.events // EVENTS, 100)
    bench.purge("loyalty_queue", "dead_letter_queue")
    fill_dead_letters(bench, count)
    view = bench.start(DEAD, "--json")
    out = bench.folder / "fallidos.jsonl"
    found: dict[str, object] = {"dead letters": count}
    for name, command in (("summary", ["--summary"]), ("export", ["--export", out]),
                          ("replay", ["--replay", "--max-replays", "9"])):
        started_at = time.monotonic()
        found[f"{name}, MB at most"] = peak_mb(bench, DEAD, *command)
        found[f"{name}, messages/s"] = round(count / (time.monotonic() - started_at))
    bench.expect(count, DEAD)
    if len(out.read_bytes().splitlines()) != count or view.poll() is not None:
        raise BenchError("La copia de los mensajes fallidos no está completa: la medida no vale.")
    view.kill()
    return found


def fill_dead_letters(bench: Bench, count: int) -> None:
    """As a consumer leaves them after its last attempt."""
    with ConfirmedChannel(bench.settings, TIMEOUT_S) as channel:
        channel.confirm_delivery()
        for _ in range(count):
            event = user_created("Juan", "juan@eco.com")
            copy = properties(event, 2)
            for delay in (*bench.settings.retry_delays, None):
                queue, copy = failed_copy(copy, SimulatedFailure("falla siempre"), delay,
                                          consumer="loyalty", source_queue="loyalty_queue",
                                          failed_at=now())
            channel.basic_publish("", queue, encode(event), copy, True)
            deque(channel.answers(WINDOW), 0)
        deque(channel.answers(0), 0)


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
    """How late each delay ends with many retries waiting, from one failure to the next."""
    count, delays = max(bench.events // 60, 20), bench.settings.retry_delays
    out = bench.folder / "retries.jsonl"
    bench.purge("dead_letter_queue")
    with consuming(bench, "loyalty") as files:
        bench.seconds("simulate_fail_publisher.py", "--consumer", "loyalty", "--count", count)
        effects(files, count * (len(delays) + 1))
    bench.seconds(DEAD, "--export", out)
    journeys = [[seconds_of(stop["failed_at"]) for stop in json.loads(line)["journey"]]
                for line in out.read_bytes().splitlines()]
    found: dict[str, object] = {"waiting": len(journeys)}
    for number, delay in enumerate(delays):
        late_ms = [1000 * (failed_at[number + 1] - failed_at[number] - delay)
                   for failed_at in journeys]
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
    race.publish, race.apart, race.consume, race.outbox, race.work, race.flow,
    letters, latency, scale, memory, ledger, retries, start_up)}


def main(parts: list[str], rounds: int, quick: bool, out: Path, yes: bool) -> int:
    """Measure and print the parts; write performance.md, .json and .svg to `out`."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        cli.wrong_usage(f"no se mide {', '.join(sorted(unknown))}; se mide {', '.join(PARTS)}")
    parts = parts or list(PARTS)
    beside_peers = any(hasattr(race, part) for part in parts)
    if beside_peers and sys.version_info < (3, 11):
        alone = ", ".join(part for part in PARTS if not hasattr(race, part))
        raise KitError("Las bibliotecas con las que se compara el kit piden Python 3.11 o más"
                       f" nuevo; sin ellas se mide {alone}.")
    broker.stop_it_on_signals()
    broker.require_server(yes)
    with (
        tempfile.TemporaryDirectory(prefix="kit-bench-") as name,
        Node(Path(name) / "node") as node,
    ):
        node.start()
        peers = available(Path(name), yes) if beside_peers else []
        with Bench(node, Path(name), peers, rounds, QUICK_EVENTS if quick else EVENTS) as bench:
            results = measure(bench, parts, out / "performance.json")
    for page in (DOCS / PAGE, *(ROOT.glob("README*.md") if out.resolve() == DOCS else ())):
        text = report.fill(page.read_text(encoding="utf-8"), results)
        (out / page.name if page.name == PAGE else page).write_text(text, encoding="utf-8")
    if beside_peers:
        draw(out)
    console.print_line(f"\nResultados en {out}.")
    return cli.EXIT_OK


def measure(bench: Bench, parts: list[str], figures: Path) -> dict[str, Any]:
    """Measure and print the parts, and write each into `figures` when it is done."""
    results = earlier_results(figures, bench)
    results["versions"] |= versions(bench.node, bench.peers)
    figures.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        console.print_line(f"\n{part}: {PARTS[part].__doc__}", "bold")
        bench.purge()
        results[part] = PARTS[part](bench)
        console.print_line("\n".join(report.table(results, part)))
        figures.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


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
