"""`kit.py demo`: the class in five acts, played by the real scripts, every step checked."""

import json
import sys
import tempfile
from pathlib import Path

from common import cli, config, console
from common.config import Settings
from common.connection import connect
from common.views import status
from tools import broker
from tools.demo_runner import DemoRunner, Script

DELAYS = "1,2,4"
TRIES = 4  # the first attempt and one after each delay
CONSUMERS = ("email_consumer_simple", "loyalty_consumer_simple", "analytics_consumer")
OUTCOME = " · intento "  # in the line that a consumer prints for each event
NOTHING = "(?!)"  # matches no line


def main(yes: bool, full: bool) -> int:
    """Play the acts; at a terminal Enter leads from one to the next, with `yes` nothing does."""
    pauses = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    broker.stop_it_on_signals()
    with (
        broker.find_or_start(yes, DELAYS) as url,
        tempfile.TemporaryDirectory(prefix="kit-demo-", ignore_cleanup_errors=True) as folder,
        DemoRunner(url, Path(folder), DELAYS, full, pauses) as runner,
    ):
        run_all(runner, config.load({"RABBITMQ_URL": url}))
        failures = runner.failures
    console.print_line("")
    if failures:
        console.print_line(
            f"La demo no salió como se esperaba. Diferencias: {failures} (líneas con ✘).", "error")
        return cli.EXIT_CHECK_FAILED
    console.print_line("Todo salió como se esperaba. No queda nada en marcha.", "ok")
    return cli.EXIT_OK


def run_all(runner: DemoRunner, settings: Settings) -> None:
    consumers = one_event(runner, settings)
    retries(runner, settings)
    dead_letter(runner, settings)
    repair(runner, settings)
    consumers += [permanent(runner, settings)]
    for consumer in consumers:
        runner.check(f"{consumer.name}.py sale con código 0 tras Ctrl-C", 0, consumer.ctrl_c(),
                     shown=False)


def one_event(runner: DemoRunner, settings: Settings) -> list[Script]:
    runner.act("Un evento, dos consumidores",
               "el id. Los dos reciben el mismo evento, cada uno en su cola.")
    email = start_consumer(runner, settings, 0, OUTCOME)
    # Only what it does for this event: those of the next acts are about the consumer email.
    loyalty = start_consumer(runner, settings, 1, "para Ana ·")
    runner.run("events_publisher_levels", "--level", "1", "--nombre", "Ana",
               "--email", "ana@eco.com", words=" · id ")
    runner.check_soon("email lo recibió", True,
                      lambda: "correo enviado a ana@eco.com" in email.text(), shown=False)
    runner.check_soon("loyalty lo recibió", True,
                      lambda: "lealtad activada para Ana" in loyalty.text(), shown=False)
    runner.check("un evento publicado, dos trabajos hechos: 1 correo y 1 cuenta con puntos",
                 (1, 1), effects(runner)[:2])
    return [email, loyalty]


def retries(runner: DemoRunner, settings: Settings) -> None:
    runner.act("Un consumidor falla y lo vuelve a intentar",
               "el retardo crece, 1, 2 y 4 s. Por defecto son 5, 30 y 120 s.")
    runner.run("simulate_fail_publisher", "--consumer", "email", "--mode", "flaky",
               "--times", str(TRIES), words=" · id ")
    runner.check_soon("email falló cuatro veces; el evento espera en dead_letter_queue", 1,
                      lambda: depth(settings, "dead_letter_queue"))
    runner.check("loyalty ya lo procesó: el fallo de email no le afecta", (1, 2),
                 effects(runner)[:2])


def dead_letter(runner: DemoRunner, settings: Settings) -> None:
    runner.act("El mensaje fallido, con su historial",
               "quién falló, por qué, y cuánto esperó entre un intento y otro.")
    view = runner.start("dead_letter_consumer", "--full", words="^(?!Mirando)")
    runner.check_soon("la vista lo enseña, con sus cuatro intentos", TRIES,
                      lambda: sum("✘ intento" in line for line in view.lines), shown=False)
    runner.check("la vista sale con código 0 tras Ctrl-C", 0, view.ctrl_c(), shown=False)
    runner.check_soon("mirarlo no lo quita de la cola", 1,
                      lambda: depth(settings, "dead_letter_queue"))


def repair(runner: DemoRunner, settings: Settings) -> None:
    runner.act("Arreglado el fallo, se reenvía el mensaje",
               "el mismo id. Vuelve solo a email, y esta vez sale bien.")
    runner.run("dead_letter_consumer", "--replay", words=" · id ")
    runner.check_soon("el correo está enviado, y loyalty no repitió su trabajo", (2, 2),
                      lambda: effects(runner)[:2])
    runner.check_soon("dead_letter_queue queda vacía", 0,
                      lambda: depth(settings, "dead_letter_queue"))


def permanent(runner: DemoRunner, settings: Settings) -> Script:
    runner.act("Lo que no tiene arreglo no se reintenta",
               "intento 1, y ya es un mensaje fallido. 3 eventos × 3 consumidores = 9.")
    analytics = start_consumer(runner, settings, 2, NOTHING)
    runner.run("simulate_fail_publisher", "--mode", "permanent", "--count", "3", words=NOTHING)
    runner.check_soon("hay nueve", 9, lambda: depth(settings, "dead_letter_queue"), shown=False)
    runner.run("dead_letter_consumer", "--summary")
    runner.check_soon("siguen en la cola: contarlos no los quita", 9,
                      lambda: depth(settings, "dead_letter_queue"))
    runner.run("dead_letter_consumer", "--discard", "--yes", words=NOTHING)
    runner.check_soon("descartados: dead_letter_queue queda vacía", 0,
                      lambda: depth(settings, "dead_letter_queue"))
    # analytics counted the event of act 2, which waited in its queue, and none of these.
    runner.check("ninguno hizo su trabajo con ellos", (2, 2, 1), effects(runner), shown=False)
    return analytics


def start_consumer(runner: DemoRunner, settings: Settings, number: int, words: str) -> Script:
    script = runner.start(CONSUMERS[number], words=words)
    queue = f"{script.name.split('_')[0]}_queue"
    runner.check_soon(f"{queue} tiene un consumidor", 1, lambda: consumers_of(settings, queue),
                      shown=False)
    return script


def effects(runner: DemoRunner) -> tuple[int, int, int]:
    """(e-mails, accounts, analysed events) on disk, from each consumer's own --report."""
    email, loyalty, analytics = (
        json.loads(runner.output(name, "--report", "--json")) for name in CONSUMERS)
    return email["emails"], loyalty["accounts"], analytics["events"]


def depth(settings: Settings, queue: str) -> int | None:
    """Messages ready in a queue; None if the queue does not exist."""
    return _counts(settings, queue)[0]


def consumers_of(settings: Settings, queue: str) -> int | None:
    return _counts(settings, queue)[1]


def _counts(settings: Settings, queue: str) -> tuple[int | None, int | None]:
    """A connection for each look: one that waits for the scripts would miss its heartbeats."""
    with connect(settings) as opened:
        return status.depth(opened, queue) or (None, None)
