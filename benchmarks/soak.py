"""Averías al azar durante unos minutos sin dejar de publicar y, al final, las cuentas de cada evento.

  python benchmarks/soak.py --minutes 5
  python benchmarks/soak.py --minutes 5 --seed 42     otra vez las mismas averías, en el mismo orden

Un broker privado, un publicador de nivel 3 y los tres consumidores, detrás de un proxy que estropea la
red (Linux y macOS). Verás una línea por segundo. Termina en 0 si las cuentas cuadran y en 1 si no.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from functools import partial
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

RATE = 100  # events a second
SLICE = 5 * RATE  # events of one publisher; then comes the next
SIMULATE_EVERY_S = 3
SIMULATIONS = ("flaky", "permanent", "duplicate", "crash", *("flaky", "permanent", "duplicate") * 2)
COUNTS = {"flaky": 20, "permanent": 3, "duplicate": 10, "crash": 1}  # one crash event kills six times
PATIENCE = ("--timeout", "300")  # of the publishers: longer than any fault
SETTLE_S = 2  # what was on its way when a fault began has come by then
RECOVERY_S = 90  # after a fault, until events are confirmed and done again
LAST_S = 30  # of the run, without new events and faults
DRAIN_S = 240  # the broker may try again only after 180 s (docs/facts.md, broker 2)
QUIET_S = 4  # the queues' counts are younger
STOP_S = 30
STOPPED_S = 2
KILLED = -signal.SIGKILL


class Soak:
    """A thread for each script, which starts the next when one ends; in `errors`, what went wrong."""

    def __init__(self, kit: Kit, proxy: Proxy, seed: int):
        self.kit, self.node, self.proxy, self.draw = kit, kit.node, proxy, random.Random(seed)
        self.scene = Scene(kit)
        self.scene.through(proxy.port)
        self.started_at = time.monotonic()
        self.ending = threading.Event()  # no new events, no new faults
        self.stopping = False  # no new consumers
        self.interrupted = False
        self.consumers: dict[str, Running] = {}
        self.publisher: Running | None = None
        self.expected: dict[Running, int] = {}  # the exit codes of those that a fault ends
        self.attempts: list[int] = []
        self.published: set[str] = set()  # confirmed to publishers that have ended
        self.simulated: set[str] = set()
        self.doomed: dict[str, set[str]] = {name: set() for name in CONSUMERS}  # what must end as dead letters
        self.queues: Counter = Counter()  # messages in each; empty while nobody knows
        self.fault, self.faults = "ninguna", Counter()
        self.errors: list[str] = []
        self.sources = [threading.Thread(target=loop) for loop in (self.publish, self.simulate, self.break_things)]
        self.sinks = [threading.Thread(target=self.consume, args=[name]) for name in CONSUMERS]

    def run(self, traffic_s: float) -> None:
        threading.excepthook = self.broke_down
        threading.Thread(target=self.count_queues, daemon=True).start()
        for thread in self.sinks + self.sources:
            thread.start()
        while not self.ending.wait(1):
            self.show()
            if self.elapsed() > traffic_s:
                self.ending.set()
        self.drain()
        self.stopping = True
        for consumer in self.consumers.values():
            self.end(consumer, signal.SIGINT, 0)
        for thread in self.sinks:
            thread.join(STOP_S)
            if thread.is_alive():
                self.wrong(f"un consumidor no terminó en {STOP_S} s con Ctrl-C")

    def drain(self) -> None:
        """Until the last fault and the publishers have ended, and retries and redeliveries have run dry."""
        busy_at, deadline = time.monotonic(), time.monotonic() + DRAIN_S
        while time.monotonic() - busy_at < QUIET_S:
            self.show()
            time.sleep(1)
            if any(thread.is_alive() for thread in self.sources) or not self.is_dry():
                busy_at = time.monotonic()
            if time.monotonic() > deadline:
                return self.wrong(f"tras {DRAIN_S} s sigue algo pendiente: {dict(self.queues)}")

    def is_dry(self) -> bool:
        left = self.queues.copy()
        letters = left.pop(DEAD_LETTER_QUEUE, 0)
        return bool(left) and not left.total() and all(
            len((self.published | self.simulated) - self.scene.done(name)) <= letters for name in CONSUMERS)

    def close(self) -> None:
        """Nothing is left running, whatever a thread was about to start."""
        self.ending.set()
        self.stopping = self.interrupted = True
        while any(thread.is_alive() for thread in self.sinks + self.sources):
            self.kit.close()
            time.sleep(0.1)

    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    def wrong(self, what: str) -> None:
        if not self.interrupted:
            self.errors.append(what)
            for line in f"ERROR a los {self.elapsed():.0f} s (avería: {self.fault}): {what}".splitlines():
                console.complain(line)

    # The scripts.

    def consume(self, name: str) -> None:
        while not self.stopping:
            self.consumers[name] = self.start(SCRIPTS[name])
            self.ended(self.consumers[name], CRASH_CODE)

    def publish(self) -> None:
        new = ("--level", "3", *USER, "--rate", str(RATE), "--count", str(SLICE))
        code = 0
        while code == KILLED and not self.interrupted or not self.ending.is_set():
            self.attempts.append(0 if code == KILLED else SLICE)
            flags = ("--resume",) if code == KILLED else new
            self.publisher = self.start("events_publisher_levels.py", *flags, *PATIENCE)
            code = self.ended(self.publisher, 0)
            self.published |= confirmed(self.publisher)

    def simulate(self) -> None:
        for mode, victim in zip(cycle(SIMULATIONS), cycle(CONSUMERS)):
            if self.ending.wait(SIMULATE_EVERY_S):
                return
            self.attempts.append(COUNTS[mode])
            script = self.start("simulate_fail_publisher.py", "--mode", mode, "--count", str(COUNTS[mode]),
                                "--consumer", "all" if mode == "duplicate" else victim, *PATIENCE)
            self.ended(script, 0)
            self.simulated |= confirmed(script)
            if mode in ("permanent", "crash"):
                self.doomed[victim] |= confirmed(script)

    def start(self, script: str, *flags: str) -> Running:
        return self.scene.under_fault.start(script, *flags, "--json")  # words go to stderr

    def ended(self, script: Running, fine: int) -> int:
        """Wait for a script's end, judge it and forget it; its exit code."""
        code = script.end(None)
        if code not in (fine, self.expected.pop(script, fine)) or "Traceback" in script.text():
            name = Path(script.process.args[1]).name
            self.wrong("\n".join([f"{name} terminó con {code}", *script.out[-3:], *script.err[-20:]]))
        self.kit.started.remove(script)
        return code

    # Counts.

    def progress(self) -> list[int]:
        """Confirmed to the publisher, done by each consumer."""
        publisher = self.publisher
        return [len(self.published | (confirmed(publisher) if publisher else set())),
                *(account.count_done(self.kit, name) for name in CONSUMERS)]

    def count_queues(self) -> None:
        """In a thread of its own, since a frozen broker does not answer."""
        while True:
            try:
                self.queues = Counter(account.totals(self.kit))
            except (OSError, HTTPException, ValueError):
                self.queues = Counter()
            time.sleep(1)

    def show(self) -> None:
        for consumer in list(self.consumers.values()):
            consumer.out.clear()
        minutes, seconds = divmod(int(self.elapsed()), 60)
        queues = self.queues.copy()
        letters = queues.pop(DEAD_LETTER_QUEUE, "?")
        sent, *done = self.progress()
        each = " ".join(f"{name} {count}" for name, count in zip(CONSUMERS, done))
        console.say(f"{minutes:02}:{seconds:02} pedidos {sum(self.attempts)} confirmados {sent + len(self.simulated)}"
                    f" · hechos {each} · cartas {letters} · en cola {queues.total() if queues else '?'}"
                    f" · avería: {self.fault}")

    # The faults, one after the other: each has to bite, and then all has to move again.

    def break_things(self) -> None:
        self.recover()
        while not self.ending.is_set():
            for name in self.draw.sample(list(FAULTS), len(FAULTS)):
                if self.ending.wait(self.draw.uniform(1, 3)):
                    return
                self.fault = name
                self.faults[name] += 1
                FAULTS[name](self)
                self.recover()
                self.fault = "ninguna"

    def broke_down(self, failure) -> None:
        """A thread ended with an exception: there is no more to learn, but for the account."""
        self.wrong(f"{failure.exc_type.__name__}: {failure.exc_value}")
        self.proxy.held.clear()
        self.ending.set()

    def recover(self) -> None:
        before = self.progress()
        self.wait(lambda: all(now > then for now, then in zip(self.progress(), before)),
                  "que se confirmen y se hagan eventos de nuevo")

    def wait(self, condition, what: str) -> None:
        """Until the condition holds, or the traffic ends."""
        deadline = time.monotonic() + RECOVERY_S
        while not (condition() or self.ending.wait(0.1)):
            if time.monotonic() > deadline:
                raise KitError(f"{RECOVERY_S} s sin lograr {what}")

    def cut(self, *actions) -> None:
        """A consumer that was there says that its connection broke."""
        before = {script: cuts(script) for script in self.consumers.values()}
        for action in actions:
            action()
        self.wait(lambda: any(cuts(script) > count for script, count in before.items()), "cortar una conexión")

    def silence(self, begin, end, seconds: float) -> None:
        """From begin() to end() the broker confirms nothing."""
        begin()
        self.ending.wait(SETTLE_S)
        before, *_ = self.progress()
        self.ending.wait(seconds - SETTLE_S)
        after, *_ = self.progress()
        end()
        if after > before:
            raise KitError("la avería no impidió confirmar")

    def hold(self, *directions: str, seconds: float) -> None:
        self.silence(partial(self.proxy.held.update, directions), self.proxy.held.clear, seconds)

    def watermark(self, share: str) -> None:
        self.node.ctl("set_vm_memory_high_watermark", share)

    def end(self, script: Running, number: int, code: int) -> None:
        self.expected[script] = code
        script.process.send_signal(number)

    def end_consumer(self, number: int, code: int) -> None:
        """Amid a batch, since its queue fills while it is stopped; from its first word on it hears Ctrl-C."""
        name = self.draw.choice(list(CONSUMERS))
        self.wait(lambda: self.consumers[name].err, f"arrancar {name}")
        script = self.consumers[name]
        script.process.send_signal(signal.SIGSTOP)
        self.ending.wait(STOPPED_S)
        script.process.send_signal(signal.SIGCONT)
        self.ending.wait(self.draw.uniform(0, 0.3))
        self.end(script, number, code)
        self.wait(lambda: self.consumers[name] is not script, f"terminar {name}")

    def kill_publisher(self) -> None:
        """With events under way, since their answers are held back once it has heard some."""
        self.wait(lambda: bool(self.publisher and confirmed(self.publisher)), "publicar")
        self.proxy.held.add("down")
        self.ending.wait(SETTLE_S)
        self.wait(lambda: Outbox(self.kit.state).count(), "publicar")
        script = self.publisher
        self.end(script, signal.SIGKILL, KILLED)
        self.wait(lambda: self.publisher is not script, "terminar el publicador")
        self.proxy.held.clear()


FAULTS = {
    "broker matado": lambda soak: soak.cut(soak.node.kill, soak.node.start),
    "broker reiniciado": lambda soak: soak.cut(soak.node.stop, soak.node.start),
    "broker congelado": lambda soak: soak.silence(soak.node.freeze, soak.node.thaw, soak.draw.uniform(3, 15)),
    "alarma de memoria": lambda soak: soak.silence(
        partial(soak.watermark, "0.00001"), partial(soak.watermark, "0.4"), soak.draw.uniform(4, 10)),
    "conexiones cortadas": lambda soak: soak.cut(*[soak.proxy.reset, partial(soak.ending.wait, 0.7)] * 3),
    "corte a media trama": lambda soak: soak.cut(
        partial(setattr, soak.proxy, "cut_after", soak.draw.randrange(1, 5000))),
    "red muda": lambda soak: soak.hold("up", "down", seconds=soak.draw.uniform(5, 25)),
    "confirmaciones retenidas": lambda soak: soak.hold("down", seconds=12),
    "consumidor matado": lambda soak: soak.end_consumer(signal.SIGKILL, KILLED),
    "consumidor parado": lambda soak: soak.end_consumer(signal.SIGINT, 0),
    "publicador matado": Soak.kill_publisher,
}


def cuts(script: Running) -> int:
    return sum("Sin conexión con el broker" in line for line in script.err)


def judge(soak: Soak) -> None:
    """Draw the account and print it; what does not balance goes to soak.errors."""
    told = soak.kit.done("dead_letter_consumer.py", "--summary", "--json").stdout
    letters = [json.loads(line) for line in told.splitlines()]
    drafts = list((soak.kit.state / "outbox" / "tmp").glob("*"))  # a killed e-mail consumer leaves what it wrote at
    for draft in drafts:
        draft.unlink()
    try:
        drawn = account.take(soak.kit, sum(soak.attempts), soak.published | soak.simulated)
    except AssertionError as error:
        return soak.wrong(f"un efecto no está una sola vez: {traceback.extract_tb(error.__traceback__)[-1].line}")
    lost = {name: drawn.lost().get(name, set()) for name in CONSUMERS}
    console.say(f"pedidos {drawn.attempted}, confirmados {len(drawn.confirmed)}")
    rows = [("", "efectos", "cartas muertas", "de ellas, repetidas", "aún en cola", "perdidos")] + [
        (name, len(drawn.effects[name]), drawn.dead[name].total(), drawn.dead[name].total() - len(drawn.dead[name]),
         drawn.queued[name].total(), len(lost[name])) for name in CONSUMERS]
    for line in console.table(rows, right=set(range(1, 6))):
        console.say(line)
    console.say("cartas: " + ", ".join("{consumer} {error} {count}".format(**letter) for letter in letters))
    console.say("averías: " + ", ".join(f"{name} {count}" for name, count in soak.faults.items()))
    for name in CONSUMERS:
        dead, doomed = set(drawn.dead[name]), soak.doomed[name]
        for what, ids in {"se perdieron": lost[name], "siguen en cola": set(drawn.queued[name]),
                          "son cartas sin motivo": dead - doomed, "debían ser cartas": doomed - dead}.items():
            if ids:
                soak.wrong(f"{name}: {len(ids)} eventos {what}: {', '.join(sorted(ids)[:5])}")
    if len(drafts) > soak.faults["consumidor matado"]:
        soak.wrong(f"quedan {len(drafts)} correos a medio escribir")
    if Outbox(soak.kit.state).count():
        soak.wrong("el publicador dejó eventos sin enviar")
    if "Falling back" in soak.node.log():
        soak.wrong("el broker no da sus cartas muertas con garantía (Falling back en su registro)")


def main(argv=None) -> int:
    arguments = parser().parse_args(argv)
    until = time.monotonic() + 60 * arguments.minutes
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    console.say(f"semilla {seed} (las mismas averías: --seed {seed})")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Node(Path(folder, "node")) as node:
        node.start()
        soak = Soak(Kit(node.url, Path(folder, "state"), "0.5,1,2", node=node), Proxy(node.port), seed)
        try:
            soak.run(until - LAST_S - time.monotonic())
            judge(soak)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one Ctrl-C is enough
            soak.close()
    console.say("Las cuentas no cuadran." if soak.errors else "Las cuentas cuadran.", "error" if soak.errors else "ok")
    return cli.EXIT_CHECK_FAILED if soak.errors else cli.EXIT_OK


def parser() -> argparse.ArgumentParser:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    wanted.error = cli.wrong_usage  # type: ignore[method-assign]
    wanted.add_argument("--minutes", type=cli.seconds(1, 24 * 60), required=True, metavar="M", help="cuánto dura")
    wanted.add_argument("--seed", type=cli.whole(0, 10**9), metavar="N", help="de dónde sale el azar de las averías")
    return wanted


if __name__ == "__main__":
    cli.run(main)
