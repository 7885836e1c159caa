"""Averías al azar durante unos minutos sin dejar de publicar y, al final, las cuentas de cada evento.

  python benchmarks/soak.py --minutes 5
  python benchmarks/soak.py --minutes 5 --seed 42     otra vez las mismas averías, en el mismo orden

Un broker privado, un publicador de nivel 3 y los tres consumidores, detrás de un proxy que estropea la
red. Verás una línea por segundo. Termina en 0 si las cuentas cuadran y en 1 si no.
"""

import argparse
import json
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import closing, suppress
from http.client import HTTPException
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli, console
from common.config import KitError
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE
from common.outbox import Outbox
from common.simulation import CRASH_CODE
from tests.conftest import Kit, Running
from tests.faults import account
from tests.faults.proxy import Proxy
from tests.faults.scene import SCRIPTS, USER, Scene, confirmed
from tools.node import Node

RATE = 200  # events a second
SLICE = 5 * RATE  # events of one publisher; then comes the next
SIMULATE_EVERY_S = 3
SIMULATIONS = ("flaky", "permanent", "duplicate", "crash", *("flaky", "permanent", "duplicate") * 2)
COUNTS = {"flaky": 20, "permanent": 3, "duplicate": 10, "crash": 1}  # one crash event kills six times
PATIENCE_S = 300  # of the publishers: longer than any fault
SETTLE_S = 2  # what was on its way when a fault began has come by then
RECOVERY_S = 90  # after a fault, until events are confirmed and done again
LAST_S = 30  # of the run, without new events and faults
DRAIN_S = 240  # the broker may try again only after 180 s (docs/facts.md, broker 2)
QUIET_S = 4  # the queues' counts are younger


class Stuck(Exception):
    """Something that had to happen did not."""


class Soak:
    """The scripts, each followed by the next; what they have told; in `errors`, what went wrong."""

    def __init__(self, kit: Kit, proxy: Proxy, seed: int):
        self.scene, self.node, self.proxy, self.draw = Scene(kit), kit.node, proxy, random.Random(seed)
        self.scene.through(proxy.port)
        self.started_at = self.shown_at = self.simulated_at = time.monotonic()
        self.ending = threading.Event()  # no new events, no new faults
        self.breaker = threading.Thread(target=self.break_things)
        self.fault, self.faults = "ninguna", Counter()
        self.consumers: dict[str, Running] = {}
        self.publisher: Running | None = None
        self.simulation: Running | None = None
        self.simulations = zip(cycle(SIMULATIONS), cycle(CONSUMERS))
        self.mode = self.victim = ""  # of the simulation
        self.doomed: dict[str, set[str]] = {name: set() for name in CONSUMERS}  # what must end as dead letters
        self.expected: dict[Running, int] = {}  # the exit codes of those that a fault ends
        self.attempted = self.cuts = 0
        self.published: set[str] = set()  # confirmed to the publisher
        self.simulated: set[str] = set()
        self.queues: Counter = Counter()  # messages in each; empty while nobody knows
        self.errors: list[str] = []

    def run(self, traffic_s: float) -> None:
        for name in CONSUMERS:
            self.start_consumer(name)
        threading.Thread(target=self.count_queues, daemon=True).start()
        self.breaker.start()
        while not self.ending.is_set():
            self.tick()
            if time.monotonic() - self.started_at > traffic_s:
                self.ending.set()
        self.drain()
        for consumer in self.consumers.values():
            consumer.process.send_signal(signal.SIGINT)
            self.ended(consumer, 0)

    def drain(self) -> None:
        """Until the last fault is over, the publishers have ended, and retries and redeliveries have run dry."""
        busy_at, deadline = time.monotonic(), time.monotonic() + DRAIN_S
        while time.monotonic() - busy_at < QUIET_S:
            self.tick()
            if self.breaker.is_alive() or self.publisher or self.simulation or not self.is_dry():
                busy_at = time.monotonic()
            if time.monotonic() > deadline:
                return self.wrong(f"tras {DRAIN_S} s sigue algo pendiente: {dict(self.queues)}")

    def is_dry(self) -> bool:
        left = self.queues.copy()
        letters = left.pop(DEAD_LETTER_QUEUE, 0)
        return bool(left) and not left.total() and all(
            len((self.published | self.simulated) - self.scene.done(name)) <= letters for name in CONSUMERS)

    def wrong(self, what: str) -> None:
        self.errors.append(what)
        for line in f"ERROR a los {self.elapsed():.0f} s (avería: {self.fault}): {what}".splitlines():
            console.complain(line)

    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    # The scripts: behind each that ends comes the next, as long as there is traffic.

    def tick(self) -> None:
        for name, consumer in self.consumers.items():
            consumer.out.clear()
            if consumer.process.poll() is not None:
                self.ended(consumer, CRASH_CODE)
                self.start_consumer(name)
        self.tend_publisher()
        self.tend_simulation()
        if time.monotonic() - self.shown_at > 1:
            self.shown_at += 1
            self.show()
        time.sleep(0.1)

    def start_consumer(self, name: str) -> None:
        self.consumers[name] = self.scene.under_fault.start(SCRIPTS[name], "--json")  # its words are on stderr

    def start_publisher(self, script: str, count: int, *flags: str) -> Running:
        self.attempted += count
        return self.scene.under_fault.start(script, *flags, "--json", "--timeout", str(PATIENCE_S))

    def tend_publisher(self) -> None:
        code = self.publisher.process.poll() if self.publisher else 0
        if self.publisher:
            if code is not None:
                self.ended(self.publisher, 0)
            self.published |= confirmed(self.publisher)
        if code == -signal.SIGKILL:
            self.publisher = self.start_publisher("events_publisher_levels.py", 0, "--resume")
        elif code is not None:
            self.publisher = None if self.ending.is_set() else self.start_publisher(
                "events_publisher_levels.py", SLICE, "--level", "3", *USER, "--rate", str(RATE), "--count", str(SLICE))

    def tend_simulation(self) -> None:
        if self.simulation and self.simulation.process.poll() is not None:
            self.ended(self.simulation, 0)
            self.simulated |= confirmed(self.simulation)
            if self.mode in ("permanent", "crash"):
                self.doomed[self.victim] |= confirmed(self.simulation)
            self.simulation = None
        if not (self.simulation or self.ending.is_set()) and time.monotonic() - self.simulated_at > SIMULATE_EVERY_S:
            self.simulated_at = time.monotonic()
            self.mode, self.victim = next(self.simulations)
            count, aim = COUNTS[self.mode], "all" if self.mode == "duplicate" else self.victim
            self.simulation = self.start_publisher("simulate_fail_publisher.py", count, "--count", str(count),
                                                   "--mode", self.mode, "--consumer", aim)

    def ended(self, script: Running, fine: int) -> None:
        """Read all that an ended script said, and forget it."""
        code = script.end()
        if code not in (fine, self.expected.pop(script, fine)) or "Traceback" in script.text():
            name = Path(script.process.args[1]).name
            self.wrong("\n".join([f"{name} terminó con {code}", *script.out[-3:], *script.err[-20:]]))
        self.cuts += cuts(script)
        self.scene.kit.started.remove(script)

    # Counts.

    def progress(self) -> list[int]:
        """Confirmed to the publisher, done by each consumer."""
        return [len(self.published), *map(self.count_done, CONSUMERS)]

    def count_done(self, name: str) -> int:
        path = self.scene.kit.state / f"{name}.db"
        with suppress(sqlite3.OperationalError):  # not there yet, and mode=ro does not make it
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as db:
                return db.execute("SELECT count(*) FROM done").fetchone()[0]
        return 0

    def count_queues(self) -> None:
        """In a thread of its own, since a frozen broker does not answer."""
        while True:
            try:
                self.queues = Counter(account.totals(self.scene.kit))
            except (OSError, HTTPException, ValueError):
                self.queues = Counter()
            time.sleep(1)

    def show(self) -> None:
        minutes, seconds = divmod(int(self.elapsed()), 60)
        queues = self.queues.copy()
        letters = queues.pop(DEAD_LETTER_QUEUE, "?")
        sent, *done = self.progress()
        each = " ".join(f"{name} {count}" for name, count in zip(CONSUMERS, done))
        console.say(f"{minutes:02}:{seconds:02} pedidos {self.attempted} confirmados {sent + len(self.simulated)}"
                    f" · hechos {each} · cartas {letters} · en cola {queues.total() if queues else '?'}"
                    f" · avería: {self.fault}")

    # Faults, in a thread of their own, one after the other; each has to bite, and then all has to move again.

    def break_things(self) -> None:
        try:
            self.recover()
            while not self.ending.is_set():
                for name in self.draw.sample(list(FAULTS), len(FAULTS)):
                    self.wait(self.draw.uniform(1, 3))
                    if self.ending.is_set():
                        return
                    self.fault = name
                    self.faults[name] += 1
                    FAULTS[name](self)
                    self.recover()
                    self.fault = "ninguna"
        except (Stuck, KitError, OSError) as error:
            self.wrong(str(error))
            self.ending.set()

    def recover(self) -> None:
        before = self.progress()
        self.wait(RECOVERY_S, lambda: all(now > then for now, then in zip(self.progress(), before)),
                  "confirmar y hacer eventos de nuevo")

    def wait(self, seconds: float, condition=lambda: False, what: str = "") -> None:
        """Until the condition holds or the traffic ends. With `what`, waiting in vain is an error."""
        deadline = time.monotonic() + seconds
        while not (condition() or self.ending.is_set()):
            if time.monotonic() > deadline:
                if what:
                    raise Stuck(f"en {seconds} s no se logró {what}")
                return
            time.sleep(0.1)

    def noticed(self) -> int:
        """How often a script has said that its connection broke."""
        return self.cuts + sum(map(cuts, filter(None, [*self.consumers.values(), self.publisher])))

    def cut(self, *actions) -> None:
        before = self.noticed()
        for action in actions:
            action()
        self.wait(RECOVERY_S, lambda: self.noticed() > before, "cortar una conexión")

    def silence(self, seconds: float) -> None:
        """The broker confirms nothing for so long."""
        self.wait(SETTLE_S)
        before = len(self.published)
        self.wait(seconds - SETTLE_S)
        if len(self.published) > before:
            raise Stuck("la avería no impidió confirmar")

    def hold(self, directions: set[str], seconds: float) -> None:
        self.proxy.held |= directions
        self.silence(seconds)
        self.proxy.held.clear()

    def freeze(self) -> None:
        self.node.freeze()
        self.silence(self.draw.uniform(3, 15))
        self.node.thaw()

    def raise_alarm(self) -> None:
        self.node.ctl("set_vm_memory_high_watermark", "0.00001")
        self.silence(self.draw.uniform(4, 10))
        self.node.ctl("set_vm_memory_high_watermark", "0.4")

    def end_consumer(self, number: int, code: int) -> None:
        """Once it has said a word: from then on it hears Ctrl-C. The next tick starts it again."""
        name = self.draw.choice(list(CONSUMERS))
        self.wait(RECOVERY_S, lambda: self.consumers[name].err, f"arrancar {name}")
        script = self.consumers[name]
        self.expected[script] = code
        script.process.send_signal(number)
        self.wait(RECOVERY_S, lambda: self.consumers[name] is not script, f"terminar {name}")

    def kill_publisher(self) -> None:
        """While events are under way. The next tick sends what it has left."""
        self.wait(RECOVERY_S, lambda: self.publisher and self.publisher.out, "publicar")
        script = self.publisher
        self.expected[script] = -signal.SIGKILL
        script.process.kill()
        self.wait(RECOVERY_S, lambda: self.publisher is not script, "terminar el publicador")


FAULTS = {
    "broker matado": lambda soak: soak.cut(soak.node.kill, soak.node.start),
    "broker reiniciado": lambda soak: soak.cut(soak.node.stop, soak.node.start),
    "broker congelado": Soak.freeze,
    "conexiones cortadas": lambda soak: soak.cut(soak.proxy.reset),
    "corte a media trama": lambda soak: soak.cut(lambda: setattr(soak.proxy, "cut_after", soak.draw.randrange(1, 5000))),
    "red muda": lambda soak: soak.hold({"up", "down"}, soak.draw.uniform(5, 25)),
    "confirmaciones retenidas": lambda soak: soak.hold({"down"}, 12),
    "alarma de memoria": Soak.raise_alarm,
    "consumidor matado": lambda soak: soak.end_consumer(signal.SIGKILL, -signal.SIGKILL),
    "consumidor parado": lambda soak: soak.end_consumer(signal.SIGINT, 0),
    "publicador matado": Soak.kill_publisher,
}


def cuts(script: Running) -> int:
    return sum("Sin conexión con el broker" in line for line in script.err)


def judge(soak: Soak) -> None:
    """Draw the account and print it; what does not balance goes to soak.errors."""
    kit = soak.scene.kit
    letters = [json.loads(line) for line in kit.run("dead_letter_consumer.py", "--summary", "--json").stdout.splitlines()]
    for draft in (kit.state / "outbox" / "tmp").glob("*"):
        draft.unlink()  # of an e-mail consumer killed while it wrote
    try:
        drawn = account.take(kit, soak.attempted, soak.published | soak.simulated)
    except AssertionError as error:
        return soak.wrong(f"un efecto no está una sola vez: {traceback.extract_tb(error.__traceback__)[-1].line}")
    lost = drawn.lost()
    console.say(f"pedidos {drawn.attempted}, confirmados {len(drawn.confirmed)}")
    rows = [("", "efectos", "cartas muertas", "aún en cola", "perdidos")] + [
        (name, len(drawn.effects[name]), drawn.dead[name].total(), drawn.queued[name].total(), len(lost.get(name, ())))
        for name in CONSUMERS]
    for line in console.table(rows, right={1, 2, 3, 4}):
        console.say(line)
    console.say("cartas: " + ", ".join(f"{letter['consumer']} {letter['error']} {letter['count']}" for letter in letters))
    console.say("averías: " + ", ".join(f"{name} {count}" for name, count in soak.faults.items()))
    for name in CONSUMERS:
        dead, doomed = set(drawn.dead[name]), soak.doomed[name]
        for what, ids in {"se perdieron": lost.get(name, set()), "siguen en cola": set(drawn.queued[name]),
                          "son cartas sin motivo": dead - doomed, "debían ser cartas": doomed - dead}.items():
            if ids:
                soak.wrong(f"{name}: {len(ids)} eventos {what}: {', '.join(sorted(ids)[:5])}")
    if Outbox(kit.state).count():
        soak.wrong("el publicador dejó eventos sin enviar")
    if "Falling back" in soak.node.log():
        soak.wrong("el broker no da sus cartas muertas con garantía (Falling back en su registro)")


def main(argv=None) -> int:
    arguments = parser().parse_args(argv)
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    console.say(f"semilla {seed}: para las mismas averías, --seed {seed}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Node(Path(folder, "node")) as node:
        node.start()
        kit, proxy = Kit(node.url, Path(folder, "state"), "0.5,1,2", node=node), Proxy(node.port)
        soak = Soak(kit, proxy, seed)
        try:
            soak.run(deadline - LAST_S - time.monotonic())
            judge(soak)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            soak.ending.set()
            soak.breaker.join()
            kit.close()
            proxy.close()
    console.say("Las cuentas no cuadran." if soak.errors else "Las cuentas cuadran.", "error" if soak.errors else "ok")
    return cli.EXIT_CHECK_FAILED if soak.errors else cli.EXIT_OK


def parser() -> argparse.ArgumentParser:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    wanted.error = cli.wrong_usage  # type: ignore[method-assign]
    wanted.add_argument("--minutes", type=cli.seconds(1, 24 * 60), required=True, metavar="M", help="cuánto dura")
    wanted.add_argument("--seed", type=cli.whole(0, 10**9), metavar="N", help="de qué azar salen las averías")
    return wanted


if __name__ == "__main__":
    cli.run(main)
