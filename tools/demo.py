"""`kit.py demo`: run both demos of the class with the real scripts and check every step."""

import json
import signal
import sys
import tempfile
from pathlib import Path

from pika import BlockingConnection

from common import cli, config, console
from common.connection import parameters
from common.views import status
from tools import broker
from tools.demo_runner import DemoRunner, Script

DELAYS = "0.5,1,2"
TRIES = 4  # the first attempt and one after each delay
CONSUMERS = ("email_consumer_simple", "loyalty_consumer_simple", "analytics_consumer")
QUEUES = ("email_queue", "loyalty_queue", "analytics_queue")


def main(yes: bool) -> int:
    _exit_cleanly_on_signals()
    with (
        broker.find_or_start(yes, DELAYS) as url,
        tempfile.TemporaryDirectory(prefix="kit-demo-") as folder,
        # No heartbeat: this connection is not served while a step waits for a script.
        BlockingConnection(parameters(url, config.load().ca_file, heartbeat=0)) as opened,
        DemoRunner(url, Path(folder), DELAYS) as runner,
    ):
        run_all(runner, opened)
        failures = runner.failures
    console.print_line("")
    if failures:
        console.print_line(
            f"La demo no salió como se esperaba: {failures} diferencias (líneas con ✘).", "error")
        return cli.EXIT_CHECK_FAILED
    console.print_line("Todo salió como se esperaba. No queda nada en marcha.", "ok")
    return cli.EXIT_OK


def _exit_cleanly_on_signals() -> None:
    """A closed terminal or a cancelled CI job must not leave a broker running."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))


def run_all(runner: DemoRunner, opened: BlockingConnection) -> None:
    consumers = five_minutes(runner, opened)
    consumers += [retries(runner, opened)]
    inspect_and_discard(runner, opened)
    replay(runner, opened)
    stop(runner, consumers)


def five_minutes(runner: DemoRunner, opened: BlockingConnection) -> list[Script]:
    runner.title("1. Un evento, varios consumidores")
    email, loyalty = (runner.start(name) for name in CONSUMERS[:2])
    for queue in QUEUES[:2]:
        runner.check_soon(f"{queue} tiene un consumidor", 1, lambda: consumers_of(opened, queue))
    runner.run("events_publisher_levels", "--level", "1", "--nombre", "Juan",
               "--email", "juan@eco.com")
    runner.check_soon("el correo se envió", True,
                      lambda: "correo enviado a juan@eco.com" in email.text())
    runner.check_soon("los puntos se dieron", True,
                      lambda: "lealtad activada para" in loyalty.text())
    return [email, loyalty]


def retries(runner: DemoRunner, opened: BlockingConnection) -> Script:
    runner.title("2. Fallos, reintentos y mensajes fallidos")
    console.print_line(f"  Aquí los retardos de los reintentos son {DELAYS.replace(',', ', ')} s;"
                       " por defecto, 5, 30 y 120 s.")
    runner.run("setup_queues")
    analytics = runner.start(CONSUMERS[2])
    runner.check_soon("analytics_queue tiene un consumidor", 1,
                      lambda: consumers_of(opened, "analytics_queue"))
    view = runner.start("dead_letter_consumer")
    runner.run("simulate_fail_publisher", "--count", "3")
    runner.check_soon("3 eventos × 3 consumidores = 9 mensajes fallidos a la vista", 9,
                      lambda: dead_letters_in(view))
    runner.check("la vista sale con código 0 tras Ctrl-C", 0, view.ctrl_c())
    runner.check_soon("mirarlos no los destruye", 9, lambda: depth(opened, "dead_letter_queue"))
    return analytics


def inspect_and_discard(runner: DemoRunner, opened: BlockingConnection) -> None:
    runner.title("3. Mirar los mensajes fallidos y descartar los que no tienen arreglo")
    runner.run("dead_letter_consumer", "--summary")
    runner.check_soon("siguen ahí", 9, lambda: depth(opened, "dead_letter_queue"))
    runner.run("dead_letter_consumer", "--discard", "--yes")
    runner.check_soon("descartados", 0, lambda: depth(opened, "dead_letter_queue"))


def replay(runner: DemoRunner, opened: BlockingConnection) -> None:
    runner.title("4. Arreglado el fallo, reenviar los mensajes fallidos")
    console.print_line(f"  Este evento falla {TRIES} veces en cada consumidor."
                       " El siguiente intento sale bien.")
    before = effects(runner)
    runner.run("simulate_fail_publisher", "--mode", "flaky", "--times", str(TRIES))
    runner.check_soon("un mensaje fallido por consumidor", 3,
                      lambda: depth(opened, "dead_letter_queue"))
    runner.check("todavía no hay efecto", before, effects(runner))
    runner.run("dead_letter_consumer", "--replay")
    runner.check_soon("cada consumidor hizo su trabajo una vez",
                      tuple(count + 1 for count in before), lambda: effects(runner))
    runner.check_soon("dead_letter_queue queda vacía", 0,
                      lambda: depth(opened, "dead_letter_queue"))


def stop(runner: DemoRunner, consumers: list[Script]) -> None:
    runner.title("5. Ctrl-C en cada terminal")
    for consumer in consumers:
        runner.check(f"{consumer.name}.py sale con código 0", 0, consumer.ctrl_c())


def effects(runner: DemoRunner) -> tuple[int, int, int]:
    """(e-mails, accounts, analysed events) on disk, from each consumer's own --report."""
    email, loyalty, analytics = (
        json.loads(runner.output(name, "--report", "--json")) for name in CONSUMERS)
    return email["emails"], loyalty["accounts"], analytics["events"]


def dead_letters_in(view: Script) -> int:
    return sum("SimulatedFailure" in line for line in view.lines)


def depth(opened: BlockingConnection, queue: str) -> int | None:
    """Messages ready in a queue; None if the queue does not exist."""
    found = status.depth(opened, queue)
    return found and found[0]


def consumers_of(opened: BlockingConnection, queue: str) -> int | None:
    found = status.depth(opened, queue)
    return found and found[1]
