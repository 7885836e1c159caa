"""A script dies at any line that it executes and is started again: the account must balance.

KIT_LINES=all kills at every line, at its first execution and at a later one drawn at random;
without it, a few of them are drawn. KIT_SEED repeats a draw. An account is drawn after some deaths
at lines that follow each other; a death that an earlier one prevented gets an account of its own.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import pika
import pytest

from common.cli import EXIT_BAD_CONFIG, EXIT_NO_BROKER
from common.events import encode, now, user_created
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, declare, topology
from common.outbox import Outbox
from common.publishing import properties
from common.retry import failed_copy
from tests.conftest import ROOT, Kit
from tests.faults import account
from tests.faults.scene import SCRIPTS, USER
from tools.node import create_vhost, delete_vhost

LINES = Path(__file__).with_name("lines.py")
PUBLISHER, DEAD_LETTERS = "events_publisher_levels.py", "dead_letter_consumer.py"
IMPORTED_AT_ONCE = 25  # lines that run on import: so many deaths before one account
AT_ONCE = 3  # deaths at other lines; MAX_STARTS in common/crash_loop.py allows no more
WORKERS = 3 * (os.cpu_count() or 1)
PAUSE_S = 0.2
EVENTS = 60  # three windows
DRAINS_AT_MOST = 15
IDLE_S = "2"
STOP_S = 26  # the broker closes a connection after two heartbeats and a bit
DISK_ERRORS = ["database or disk is full", "disk I/O error"]
CALLS, PAGES = 90, 30
BEFORE_THE_CONNECTION = ("common/cli.py", "common/config.py")

# ---------------------------------------------------------------- the scenarios
# run(script, …) runs the script under tests/faults/lines.py, and `kit` in the ordinary way.


def consumer(kit, run, name: str) -> None:
    queue = CONSUMERS[name]
    with kit.channel() as channel:
        declare(channel, kit.settings, queue)
        good = [kit.publish_event(event())]
        channel.basic_nack(channel.basic_get(queue)[0].delivery_tag)  # it will be redelivered
    good.append(kit.publish_event(event()))
    fails = kit.publish_event(event(), headers={
        "x-simulate": {"consumer": name, "mode": "transient", "number": 0}})
    good += [kit.publish_event(event()), kit.publish_event(event())]
    kit.publish_event(good[-1])
    kit.publish(b"no event", properties=pika.BasicProperties(message_id="malformed"))
    run(SCRIPTS[name], "--idle-timeout", kit.idle)
    drain(kit, name, ids(good), {fails.id, "malformed"})


def level_3(kit, run) -> None:
    first = run(PUBLISHER, "--level", "3", *USER, "--count", str(EVENTS), "--json")
    resume_and_drain(kit, confirmed(first))


def resume(kit, run) -> None:
    with closing(Outbox(kit.state).db) as db, db:
        db.executemany("INSERT INTO unconfirmed VALUES (?, ?)",
                       [(one.id, encode(one)) for one in (event() for _ in range(EVENTS))])
    left = outbox_ids(kit)
    run(PUBLISHER, "--resume", "--json")
    resume_and_drain(kit, left - outbox_ids(kit))


def replay(kit, run) -> None:
    with kit.channel() as channel:
        declare(channel, kit.settings, CONSUMERS["loyalty"])
        good = [bury(kit, event()) for _ in range(3)]
        bury(kit, event(), body=b"no event", message_id="malformed")
        bury(kit, event(), source="of_nobody", message_id="unknown queue")
    run(DEAD_LETTERS, "--replay", "--json")
    assert kit.run(DEAD_LETTERS, "--replay").returncode == 3  # one has no queue to return to
    drain(kit, "loyalty", ids(good), {"malformed", "unknown queue"})


def discard(kit, run) -> None:
    with kit.channel() as channel:
        declare(channel, kit.settings, CONSUMERS["loyalty"])
        kept = ids(bury(kit, event(), source=CONSUMERS["email"]) for _ in range(3))
        chosen = ids(bury(kit, event()) for _ in range(4))
    command = DEAD_LETTERS, "--discard", "--yes", "--consumer", "loyalty", "--json"
    told = {answer["id"] for answer in answers(run(*command))}
    told |= {answer["id"] for answer in answers(kit.run_ok(*command))}
    assert told <= chosen
    assert dead_letters(kit) == Counter(kept)


SCENARIOS = {**{name: partial(consumer, name=name) for name in ("loyalty", "email", "analytics")},
             "level 3": level_3, "resume": resume, "replay": replay, "discard": discard}


def event():
    return user_created("Juan", "juan@eco.com")


def ids(events) -> set[str]:
    return {one.id for one in events}


def bury(kit, one, source: str = CONSUMERS["loyalty"], body: bytes = b"", message_id: str = ""):
    """Publish a dead letter of this event."""
    original = properties(one, 2)
    original.message_id = message_id or one.id
    _, copied = failed_copy(original, ValueError("x"), None, consumer="loyalty",
                            source_queue=source, failed_at=now())
    kit.publish(body or encode(one), queue=DEAD_LETTER_QUEUE, properties=copied)
    return one


def answers(result) -> list[dict]:
    """Return what a script with --json has printed. The last line of a killed one may be cut."""
    return [json.loads(line) for line in result.stdout.splitlines() if line.endswith("}")]


def confirmed(result) -> set[str]:
    return {answer["id"] for answer in answers(result) if answer["outcome"] == "confirmed"}


def outbox_ids(kit) -> set[str]:
    outbox = Outbox(kit.state)
    with closing(outbox.db):
        return ids(outbox.left())


def dead_letters(kit) -> Counter:
    return Counter(found.message_id for found, _ in kit.messages(DEAD_LETTER_QUEUE))


def resume_and_drain(kit, known: set[str]) -> None:
    """Send the rest. Each queue then has all that was confirmed or written down, and no more."""
    left = outbox_ids(kit)
    resumed = kit.run_ok(PUBLISHER, "--resume", "--json")
    assert confirmed(resumed) == left
    assert outbox_ids(kit) == set()
    with kit.channel() as channel:
        declare(channel, kit.settings)
    email, analytics = ({found.message_id for found, _ in kit.messages(CONSUMERS[name])}
                        for name in ("email", "analytics"))
    assert known | left <= email == analytics
    drain(kit, "loyalty", email, set())


def drain(kit, name: str, done: set[str], dead: set[str]) -> None:
    """Start the consumer again until nothing is left, and check the account.

    Each death may double a dead letter: between the confirm of a copy and the ack of its original
    (docs/reliability.md, known limits).
    """
    queues = [queue.name for queue in topology(kit.settings, CONSUMERS[name])[1:]]
    found: Counter = Counter()
    for _ in range(DRAINS_AT_MOST):  # a connection or a retry may take a second on a busy machine
        result = kit.run(SCRIPTS[name], "--idle-timeout", "1")
        assert result.returncode in (0, EXIT_NO_BROKER), result
        found += dead_letters(kit)
        if account.effects(kit, name) >= done and set(found) >= dead:
            break
    assert account.effects(kit, name) == done
    assert set(found) == dead
    assert max(found.values(), default=0) <= 2 ** len(kit.ends), found
    assert {queue: kit.depth(queue) for queue in queues} == dict.fromkeys(queues, 0)
    kit.doubled = max(found.values(), default=0) > 1


# ---------------------------------------------------------------- the search


@pytest.fixture(scope="module")
def lines_of(mortal_node, tmp_path_factory):
    """Return a function of a scenario: its lines, and how often each is executed.

    Other scenarios do not repeat the lines of the first that are executed on import, and other
    consumers none of its lines.
    """
    @cache
    def executed(name: str) -> list[tuple[list, int]]:
        mortal_node.start()
        folder = tmp_path_factory.mktemp("lines")
        with OneChannel.new(mortal_node, folder) as kit:
            SCENARIOS[name](kit, partial(run_one, kit, {"list": str(folder / "lines.json")}))
        lines = json.loads((folder / "lines.json").read_text(encoding="utf-8"))
        repeated = [] if name == "loyalty" else [
            line for line, _ in executed("loyalty") if line[-1] or name in CONSUMERS]
        # Those of each thread as they were first executed.
        return sorted(([line, n] for line, n in lines if line not in repeated),
                      key=lambda found: found[0][2])

    return executed


@pytest.fixture
def search(mortal_node, tmp_path, capsys):
    """Return a function that takes the account after each of some orders, and counts exit codes.

    find(name, rng): lists of orders; each list has one account. sample: how many of them are drawn.
    """
    def in_parallel(names, find, codes: set[int], sample: int, idle: str = IDLE_S) -> Counter:
        mortal_node.start()
        seed = int(os.environ.get("KIT_SEED") or random.randrange(2**32))
        rng, wanted = random.Random(seed), os.environ.get("KIT_LINES", sample)
        found = [(name, orders) for name in names for orders in find(name, rng)]
        drawn = found if wanted == "all" else rng.sample(found, min(int(wanted), len(found)))
        ends, doubled, failures, started_at = Counter(), [], [], time.monotonic()

        def take(name: str, orders: list[dict]) -> None:
            try:
                with OneChannel.new(mortal_node, tmp_path / uuid.uuid4().hex, idle) as kit:
                    SCENARIOS[name](kit, partial(run_each, kit, orders))
                missed = [order for order, code in zip(orders, kit.ends)
                          if "at" in order and code != -signal.SIGKILL and len(orders) > 1]
                doubled.extend([name] * kit.doubled)
                assert set(kit.ends) <= codes
                ends.update(code for code in kit.ends if code == -signal.SIGKILL or not missed)
                for order in missed:
                    take(name, [order])
            except BaseException as error:  # pytest.fail() too
                failures.append(f"{name}, {orders}: {error!r}"[:2000])
                with capsys.disabled():
                    print(f"\nFAILED {failures[-1]}", flush=True)

        with ThreadPoolExecutor(WORKERS) as pool:
            for name, orders in drawn:
                pool.submit(take, name, orders)
        with capsys.disabled():
            print(f"\n{', '.join(names)}: KIT_SEED={seed}, {len(drawn)} accounts of {len(found)},"
                  f" exit codes {dict(ends)}, {len(doubled)} with a dead letter twice,"
                  f" {len(failures)} failures, {time.monotonic() - started_at:.0f} s", flush=True)
        assert not failures, "\n".join(failures)
        return ends

    return in_parallel


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_script_killed_at_any_line_and_started_again_loses_and_doubles_nothing(
        search, lines_of, name):
    ends = search([name], lambda name, rng: deaths(lines_of(name), rng),
                  {0, 3, EXIT_NO_BROKER, -signal.SIGKILL}, sample=4)
    assert ends[-signal.SIGKILL] > ends.total() / 2


def test_a_script_frozen_at_any_line_for_longer_than_the_heartbeat_loses_and_doubles_nothing(
        search, lines_of):
    search(["loyalty", "level 3"], lambda name, _: [
        [{"at": line, "nth": 1, "stop_s": STOP_S}] for line, _ in lines_of(name)
        if not line[-1] and line[0] not in BEFORE_THE_CONNECTION],
        {0, EXIT_NO_BROKER}, sample=WORKERS, idle="5")


def test_a_disk_that_fails_at_any_call_ends_the_script_and_loses_and_doubles_nothing(search):
    """SQLite fails once or for good; and files that may not grow, where SQLite fails by itself."""
    ends = search([*CONSUMERS, "level 3"], lambda _, rng: [
        *([{"call": call, "error": rng.choice(DISK_ERRORS), "calls": rng.choice((1, 10**9))}]
          for call in range(1, CALLS)),
        *([{"file_size": pages * 4096}] for pages in range(PAGES))],
        {0, EXIT_NO_BROKER, EXIT_BAD_CONFIG}, sample=16)
    assert ends[EXIT_BAD_CONFIG]


def test_signals_and_a_clock_that_jumps_an_hour_change_nothing(search):
    search(SCENARIOS, lambda _, rng: [[{"signals": 1}], [{"clock": rng.randrange(2**32)}]],
           {0, 3}, sample=2 * len(SCENARIOS), idle="10")


@dataclass
class OneChannel(Kit):
    """A Kit in a vhost of its own, whose helpers share one channel."""

    idle: str = IDLE_S
    ends: list = field(default_factory=list)  # the exit codes of the scripts that should die
    doubled: bool = False

    @classmethod
    @contextmanager
    def new(cls, node, folder: Path, idle: str = IDLE_S):
        vhost = f"line-{uuid.uuid4().hex[:8]}"
        create_vhost(node.management_url, "guest", "guest", vhost)
        kit = cls(node.url.replace("%2F", vhost), folder / "state", "0.1,0.2", idle=idle)
        kit.state.mkdir(parents=True)
        connection = pika.BlockingConnection(pika.URLParameters(f"{kit.url}?heartbeat=0"))
        kit.shared = connection.channel()
        yield kit
        connection.close()
        delete_vhost(node.management_url, "guest", "guest", vhost)

    def channel(self):
        return nullcontext(self.shared)


def deaths(lines: list[tuple[list, int]], rng: random.Random) -> list[list[dict]]:
    """Return the deaths, in groups that get an account each.

    At the first execution of its line a process pauses: what another thread has to send is sent.
    """
    imported = [{"at": line, "nth": 1, "pause_s": 0} for line, _ in lines if line[-1]]
    others = [(line, executions) for line, executions in lines if not line[-1]]
    first = [{"at": line, "nth": 1, "pause_s": PAUSE_S} for line, _ in others]
    later = [{"at": line, "nth": rng.randint(2, executions), "pause_s": 0}
             for line, executions in others if executions > 1]
    return [*groups(imported, IMPORTED_AT_ONCE), *groups(first, AT_ONCE), *groups(later, AT_ONCE)]


def groups(orders: list[dict], size: int) -> list[list[dict]]:
    return [orders[at:at + size] for at in range(0, len(orders), size)]


def run_each(kit, orders: list[dict], script: str, *arguments: str):
    """Run a script once for each order and return the last result."""
    for order in orders:
        result = run_one(kit, order, script, *arguments)
        kit.ends.append(result.returncode)
    return result


def run_one(kit, order: dict, script: str, *arguments: str):
    result = subprocess.run([sys.executable, str(LINES), json.dumps(order), script, *arguments],
                            env=kit.environment(), cwd=ROOT, stdin=subprocess.DEVNULL,
                            capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert "Traceback" not in result.stderr, result.stderr
    return result
