"""Fallos al azar durante unos minutos sin dejar de publicar y, al final, el recuento de eventos.

  python benchmarks/soak.py --minutes 5
  python benchmarks/soak.py --minutes 5 --seed 42     otra vez los mismos fallos, en el mismo orden

Un broker privado, un publicador de nivel 3 y los tres consumidores, detrás de un proxy que
estropea la red (Linux y macOS). Verás una línea por segundo. Sale con código 0 si las cuentas
cuadran y con código 1 si no.
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
from collections.abc import Callable, Iterable
from functools import partial
from http.client import HTTPException
from itertools import cycle
from pathlib import Path
from typing import NoReturn

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

RATE = 100  # events per second
SLICE = 5 * RATE  # events of one publisher; then the next one starts
SIMULATE_EVERY_S = 3
SIMULATIONS = ("flaky", "permanent", "duplicate", "crash", *("flaky", "permanent", "duplicate") * 2)
COUNTS = {"flaky": 20, "permanent": 3, "duplicate": 10, "crash": 1}  # one crash event: six crashes
PUBLISHER_TIMEOUT = ("--timeout", "300")  # seconds: longer than any fault
SETTLE_S = 2  # what was in flight when a fault began has arrived by then
RECOVERY_S = 90  # after a fault, until events are confirmed and processed again
LAST_S = 30  # the end of the run, without new events and faults
DRAIN_S = 240  # the broker may retry only after 180 s (docs/facts.md, broker 2)
QUIET_S = 4  # longer than the maximum age of the queues' counts
STOP_S = 30
STOPPED_S = 2
POLL_S = 0.1
KILLED = -signal.SIGKILL
NO_FAULT = "ninguno"


class Soak:
    """One thread per script; it starts the next process when one ends. errors: what went wrong."""

    def __init__(self, kit: Kit, node: Node, proxy: Proxy, seed: int):
        self.kit, self.node, self.proxy, self.random = kit, node, proxy, random.Random(seed)
        self.scene = Scene(kit)
        self.scene.through(proxy.port)
        self.started_at = time.monotonic()
        self.ending = threading.Event()  # no new events, no new faults
        self.stopping = False  # no new consumers
        self.interrupted = False
        self.consumers: dict[str, Running] = {}
        self.publisher: Running | None = None
        self.expected_codes: dict[Running, int] = {}  # of the scripts that a fault ends
        self.attempts: list[int] = []
        self.published: set[str] = set()  # confirmed to publishers that have ended
        self.simulated: set[str] = set()
        self.expected_dead: dict[str, set[str]] = {name: set() for name in CONSUMERS}
        self.queues: Counter[str] = Counter()  # messages in each; empty while unknown
        self.fault = NO_FAULT
        self.faults: Counter[str] = Counter()
        self.errors: list[str] = []
        self.sources = [threading.Thread(target=loop)
                        for loop in (self.publish, self.simulate, self.inject_faults)]
        self.sinks = [threading.Thread(target=self.consume, args=[name]) for name in CONSUMERS]

    def run(self, traffic_s: float) -> None:
        threading.excepthook = self.thread_failed
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
                self.report_error(f"un consumidor no terminó en {STOP_S} s con Ctrl-C")

    def drain(self) -> None:
        """Wait until the last fault is over, the publishers have ended and the queues are empty."""
        busy_at, deadline = time.monotonic(), time.monotonic() + DRAIN_S
        while time.monotonic() - busy_at < QUIET_S:
            self.show()
            time.sleep(1)
            if any(thread.is_alive() for thread in self.sources) or not self.is_drained():
                busy_at = time.monotonic()
            if time.monotonic() > deadline:
                self.report_error(f"tras {DRAIN_S} s sigue algo pendiente: {dict(self.queues)}")
                return

    def is_drained(self) -> bool:
        """Whether only dead letters are left, and they explain every event without an effect."""
        queued = self.queues.copy()
        dead = queued.pop(DEAD_LETTER_QUEUE, 0)
        sent = self.published | self.simulated
        return bool(queued) and not queued.total() and all(
            len(sent - self.scene.done(name)) <= dead for name in CONSUMERS)

    def close(self) -> None:
        """Kill all scripts, also those that a thread is about to start."""
        self.ending.set()
        self.stopping = self.interrupted = True
        while any(thread.is_alive() for thread in self.sinks + self.sources):
            self.kit.close()
            time.sleep(POLL_S)

    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    def report_error(self, what: str) -> None:
        if not self.interrupted:
            self.errors.append(what)
            heading = f"ERROR a los {self.elapsed():.0f} s (fallo: {self.fault})"
            for line in f"{heading}: {what}".splitlines():
                console.print_error(line)

    # The scripts.

    def consume(self, name: str) -> None:
        while not self.stopping:
            self.consumers[name] = self.start(SCRIPTS[name])
            self.wait_for_exit(self.consumers[name], CRASH_CODE)

    def publish(self) -> None:
        new = ("--level", "3", *USER, "--rate", str(RATE), "--count", str(SLICE))
        code = 0
        while (code == KILLED and not self.interrupted) or not self.ending.is_set():
            self.attempts.append(0 if code == KILLED else SLICE)
            flags = ("--resume",) if code == KILLED else new
            publisher = self.start("events_publisher_levels.py", *flags, *PUBLISHER_TIMEOUT)
            self.publisher = publisher
            code = self.wait_for_exit(publisher, 0)
            self.published |= confirmed(publisher)

    def simulate(self) -> None:
        for mode, consumer in zip(cycle(SIMULATIONS), cycle(CONSUMERS)):
            if self.ending.wait(SIMULATE_EVERY_S):
                return
            self.attempts.append(COUNTS[mode])
            script = self.start(
                "simulate_fail_publisher.py", "--mode", mode, "--count", str(COUNTS[mode]),
                "--consumer", "all" if mode == "duplicate" else consumer, *PUBLISHER_TIMEOUT)
            self.wait_for_exit(script, 0)
            self.simulated |= confirmed(script)
            if mode in ("permanent", "crash"):
                self.expected_dead[consumer] |= confirmed(script)

    def start(self, script: str, *flags: str) -> Running:
        # With --json the lines for people go to stderr.
        return self.scene.under_fault.start(script, *flags, "--json")

    def wait_for_exit(self, script: Running, usual_code: int) -> int:
        """Wait until a script exits, check and return its exit code, and forget the script."""
        code = script.end(None)
        expected = self.expected_codes.pop(script, usual_code)
        if code not in (usual_code, expected) or "Traceback" in script.text():
            name = Path(script.process.args[1]).name
            self.report_error("\n".join([
                f"{name} salió con código {code}", *script.out[-3:], *script.err[-20:]]))
        self.kit.started.remove(script)
        return code

    # Counts.

    def progress(self) -> list[int]:
        """The events confirmed to the publishers, and those each consumer has processed."""
        publisher = self.publisher
        sent = self.published | (confirmed(publisher) if publisher else set())
        return [len(sent), *(account.count_done(self.kit, name) for name in CONSUMERS)]

    def count_queues(self) -> None:
        """In a thread of its own: a frozen broker does not answer."""
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
        dead = queues.pop(DEAD_LETTER_QUEUE, "?")
        sent, *done = self.progress()
        each = " ".join(f"{name} {count}" for name, count in zip(CONSUMERS, done))
        console.print_line(
            f"{minutes:02}:{seconds:02} pedidos {sum(self.attempts)}"
            f" confirmados {sent + len(self.simulated)} · procesados {each}"
            f" · mensajes fallidos {dead} · en cola {queues.total() if queues else '?'}"
            f" · fallo: {self.fault}")

    # The faults, one after the other. Each must have an effect, and then events must flow again.

    def inject_faults(self) -> None:
        self.recover()
        while not self.ending.is_set():
            for name in self.random.sample(list(FAULTS), len(FAULTS)):
                if self.ending.wait(self.random.uniform(1, 3)):
                    return
                self.fault = name
                self.faults[name] += 1
                FAULTS[name](self)
                self.recover()
                self.fault = NO_FAULT

    def thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """A thread ended with an exception: stop the traffic and take the account."""
        self.report_error(f"{failure.exc_type.__name__}: {failure.exc_value}")
        self.proxy.held.clear()
        self.ending.set()

    def recover(self) -> None:
        before = self.progress()
        self.wait(lambda: all(now > then for now, then in zip(self.progress(), before)),
                  "que se confirmen y se procesen eventos de nuevo")

    def wait(self, condition: Callable[[], object], goal: str) -> None:
        """Wait until the condition holds or the traffic ends."""
        deadline = time.monotonic() + RECOVERY_S
        while not (condition() or self.ending.wait(POLL_S)):
            if time.monotonic() > deadline:
                raise KitError(f"{RECOVERY_S} s sin lograr {goal}")

    def cut(self, *actions: Callable[[], object]) -> None:
        """Run the actions; then a running consumer must report that it lost its connection."""
        before = {script: cuts(script) for script in self.consumers.values()}
        for action in actions:
            action()
        self.wait(lambda: any(cuts(script) > count for script, count in before.items()),
                  "cortar una conexión")

    def block_confirms(self, begin: Callable[[], object], end: Callable[[], object],
                       seconds: float) -> None:
        """From begin() to end() the broker must confirm nothing."""
        begin()
        self.ending.wait(SETTLE_S)
        before, *_ = self.progress()
        self.ending.wait(seconds - SETTLE_S)
        after, *_ = self.progress()
        end()
        if after > before:
            raise KitError("el fallo no impidió confirmar")

    def hold(self, *directions: str, seconds: float) -> None:
        """Let the proxy hold back all data in these directions."""
        self.block_confirms(partial(self.proxy.held.update, directions), self.proxy.held.clear,
                            seconds)

    def reset_connections(self) -> None:
        for _ in range(3):
            self.proxy.reset()
            self.ending.wait(0.7)

    def watermark(self, share: str) -> None:
        self.node.ctl("set_vm_memory_high_watermark", share)

    def end(self, script: Running, number: int, code: int) -> None:
        """Send a signal to a script, which must then exit with this code."""
        self.expected_codes[script] = code
        script.process.send_signal(number)

    def end_consumer(self, number: int, code: int) -> None:
        """End a consumer within a batch: its queue fills while the process is suspended."""
        name = self.random.choice(list(CONSUMERS))
        # After its first line a script handles Ctrl-C.
        self.wait(lambda: self.consumers[name].err, f"arrancar {name}")
        script = self.consumers[name]
        script.process.send_signal(signal.SIGSTOP)
        self.ending.wait(STOPPED_S)
        script.process.send_signal(signal.SIGCONT)
        self.ending.wait(self.random.uniform(0, 0.3))
        self.end(script, number, code)
        self.wait(lambda: self.consumers[name] is not script, f"terminar {name}")

    def kill_publisher(self) -> None:
        """Kill the publisher with events in flight: the proxy holds back their confirms."""
        self.wait(lambda: self.publisher and confirmed(self.publisher), "publicar")
        self.proxy.held.add("down")
        self.ending.wait(SETTLE_S)
        self.wait(lambda: Outbox(self.kit.state).count(), "publicar")
        script = self.publisher
        assert script is not None
        self.end(script, signal.SIGKILL, KILLED)
        self.wait(lambda: self.publisher is not script, "terminar el publicador")
        self.proxy.held.clear()


FAULTS: dict[str, Callable[[Soak], None]] = {
    "broker matado": lambda soak: soak.cut(soak.node.kill, soak.node.start),
    "broker reiniciado": lambda soak: soak.cut(soak.node.stop, soak.node.start),
    "broker congelado": lambda soak: soak.block_confirms(
        soak.node.freeze, soak.node.thaw, soak.random.uniform(3, 15)),
    "alarma de memoria": lambda soak: soak.block_confirms(
        partial(soak.watermark, "0.00001"), partial(soak.watermark, "0.4"),
        soak.random.uniform(4, 10)),
    "conexiones cortadas": lambda soak: soak.cut(soak.reset_connections),
    "corte a media trama": lambda soak: soak.cut(
        partial(setattr, soak.proxy, "cut_after", soak.random.randrange(1, 5000))),
    "red muda": lambda soak: soak.hold("up", "down", seconds=soak.random.uniform(5, 25)),
    "confirmaciones retenidas": lambda soak: soak.hold("down", seconds=12),
    "consumidor matado": lambda soak: soak.end_consumer(signal.SIGKILL, KILLED),
    "consumidor parado": lambda soak: soak.end_consumer(signal.SIGINT, 0),
    "publicador matado": Soak.kill_publisher,
}


def cuts(script: Running) -> int:
    """How often a script has reported that it lost its connection."""
    return sum("Sin conexión con el broker" in line for line in script.err)


def check(soak: Soak) -> None:
    """Take and print the account; add what does not balance to soak.errors."""
    summary = soak.kit.run_ok("dead_letter_consumer.py", "--summary", "--json").stdout
    groups = [json.loads(line) for line in summary.splitlines()]
    try:
        taken = account.take(soak.kit, sum(soak.attempts), soak.published | soak.simulated)
    except AssertionError as error:
        assertion = traceback.extract_tb(error.__traceback__)[-1].line
        soak.report_error(f"un efecto no está una sola vez: {assertion}")
        return
    console.print_line(f"pedidos {taken.attempted}, confirmados {len(taken.confirmed)}")
    for line in table_of(taken):
        console.print_line(line)
    console.print_line("mensajes fallidos: "
                       + ", ".join("{consumer} {error} {count}".format(**one) for one in groups))
    console.print_line("fallos: "
                       + ", ".join(f"{name} {count}" for name, count in soak.faults.items()))
    for name in CONSUMERS:
        dead, expected_dead = set(taken.dead[name]), soak.expected_dead[name]
        report_ids(soak, name, "se perdieron", taken.lost().get(name, ()))
        report_ids(soak, name, "siguen en cola", taken.queued[name])
        report_ids(soak, name, "son mensajes fallidos sin motivo", dead - expected_dead)
        report_ids(soak, name, "debían ser mensajes fallidos", expected_dead - dead)
    if Outbox(soak.kit.state).count():
        soak.report_error("el publicador dejó eventos sin enviar")
    if "Falling back" in soak.node.log():
        soak.report_error("el broker no entrega sus mensajes fallidos con garantía"
                          " (Falling back en su registro)")


def table_of(taken: account.Account) -> list[str]:
    head = ("", "efectos", "mensajes fallidos", "de ellos, duplicados", "aún en cola", "perdidos")
    rows = [(name, len(taken.effects[name]), taken.dead[name].total(),
             taken.dead[name].total() - len(taken.dead[name]), taken.queued[name].total(),
             len(taken.lost().get(name, ()))) for name in CONSUMERS]
    return console.table([head, *rows], right=set(range(1, len(head))))


def report_ids(soak: Soak, consumer: str, what: str, ids: Iterable[str]) -> None:
    found = sorted(set(ids))
    if found:
        soak.report_error(f"{consumer}: {len(found)} eventos {what}: {', '.join(found[:5])}")


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    until = time.monotonic() + 60 * arguments.minutes
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    console.print_line(f"semilla {seed} (los mismos fallos: --seed {seed})")
    for number in (signal.SIGTERM, signal.SIGHUP):  # cancelled, or the terminal is closed
        signal.signal(number, signal.default_int_handler)
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        Node(Path(folder, "node")) as node,
    ):
        node.start()
        kit = Kit(node.url, Path(folder, "state"), "0.5,1,2", node=node)
        soak = Soak(kit, node, Proxy(node.port), seed)
        try:
            soak.run(until - LAST_S - time.monotonic())
            check(soak)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one Ctrl-C is enough
            soak.close()
    if soak.errors:
        console.print_line("Las cuentas no cuadran.", "error")
        return cli.EXIT_CHECK_FAILED
    console.print_line("Las cuentas cuadran.", "ok")
    return cli.EXIT_OK


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        cli.wrong_usage(message)


def parser() -> argparse.ArgumentParser:
    soak = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                  allow_abbrev=False)
    soak.add_argument("--minutes", type=cli.seconds(1, 24 * 60), required=True, metavar="M",
                      help="cuánto dura")
    soak.add_argument("--seed", type=cli.whole(0, 10**9), metavar="N",
                      help="de dónde sale el azar de los fallos")
    return soak


if __name__ == "__main__":
    cli.run(main)
