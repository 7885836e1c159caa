"""`kit.py demo`: both demos of the class, with the real scripts, compared step by step."""

import json
import signal
import sys
import tempfile
from pathlib import Path

from pika import BlockingConnection

from common import cli, config, console
from common.connection import parameters
from common.status import depth as found_in
from tools import broker
from tools.stage import Stage

DELAYS = "0.5,1,2"
TRIES = 4  # the first one and one after each delay
CONSUMERS = ("email_consumer_simple", "loyalty_consumer_simple", "analytics_consumer")
QUEUES = ("email_queue", "loyalty_queue", "analytics_queue")


def main(yes: bool) -> int:
    _end_politely_when_told()
    with broker.found(yes, DELAYS) as url, tempfile.TemporaryDirectory(prefix="kit-demo-") as folder:
        # No heartbeat: nobody serves this connection while a step waits for a script.
        with BlockingConnection(parameters(url, config.load().ca_file, heartbeat=0)) as opened, \
                Stage(url, Path(folder), DELAYS) as stage:
            play(stage, opened)
            failures = stage.failures
    console.say("")
    if failures:
        console.say(f"La demo no salió como se esperaba: {failures} diferencias (líneas con ✘).", "error")
        return cli.EXIT_CHECK_FAILED
    console.say("Todo salió como se esperaba. No queda nada en marcha.", "ok")
    return cli.EXIT_OK


def _end_politely_when_told() -> None:
    """A closed terminal or a CI that gives up must not leave a broker running either."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))


def play(stage: Stage, opened) -> None:
    consumers = five_minutes(stage, opened)
    consumers += [retries(stage, opened)]
    look(stage, opened)
    replay(stage, opened)
    farewell(stage, consumers)


def five_minutes(stage: Stage, opened) -> list:
    stage.title("1. Un evento, varios consumidores")
    email, loyalty = (stage.start(name) for name in CONSUMERS[:2])
    for queue in QUEUES[:2]:
        stage.check_soon(f"{queue} tiene un consumidor", 1, lambda: consumers_of(opened, queue))
    stage.run("events_publisher_levels", "--level", "1", "--nombre", "Juan", "--email", "juan@eco.com")
    stage.check_soon("el correo se envió", True, lambda: "email enviado a juan@eco.com" in email.text())
    stage.check_soon("los puntos se dieron", True, lambda: "lealtad activada para" in loyalty.text())
    return [email, loyalty]


def retries(stage: Stage, opened):
    stage.title("2. Fallos, reintentos y cartas muertas")
    console.say(f"  Aquí los reintentos esperan {DELAYS.replace(',', ', ')} s; de fábrica son 5, 30 y 120 s.")
    stage.run("setup_queues")
    analytics = stage.start(CONSUMERS[2])
    stage.check_soon("analytics_queue tiene un consumidor", 1, lambda: consumers_of(opened, "analytics_queue"))
    view = stage.start("dead_letter_consumer")
    stage.run("simulate_fail_publisher", "--count", "3")
    stage.check_soon("3 eventos × 3 consumidores = 9 cartas muertas a la vista", 9, lambda: letters_in(view))
    stage.check("la vista termina con Ctrl-C", 0, view.ctrl_c())
    stage.check_soon("mirarlas no las destruye", 9, lambda: depth(opened, "dead_letter_queue"))
    return analytics


def look(stage: Stage, opened) -> None:
    stage.title("3. Mirar las cartas muertas y descartar las que no tienen arreglo")
    stage.run("dead_letter_consumer", "--summary")
    stage.check_soon("siguen ahí", 9, lambda: depth(opened, "dead_letter_queue"))
    stage.run("dead_letter_consumer", "--discard", "--yes")
    stage.check_soon("descartadas", 0, lambda: depth(opened, "dead_letter_queue"))


def replay(stage: Stage, opened) -> None:
    stage.title("4. Arreglado el fallo, repetir las cartas muertas")
    console.say(f"  Este evento falla {TRIES} veces en cada consumidor. El siguiente intento sale bien.")
    before = effects(stage)
    stage.run("simulate_fail_publisher", "--mode", "flaky", "--times", str(TRIES))
    stage.check_soon("una carta muerta por consumidor", 3, lambda: depth(opened, "dead_letter_queue"))
    stage.check("todavía no hay efecto", before, effects(stage))
    stage.run("dead_letter_consumer", "--replay")
    stage.check_soon("cada consumidor hizo su trabajo una vez", tuple(count + 1 for count in before),
                     lambda: effects(stage))
    stage.check_soon("dead_letter_queue queda vacía", 0, lambda: depth(opened, "dead_letter_queue"))


def farewell(stage: Stage, consumers: list) -> None:
    stage.title("5. Ctrl-C en cada terminal")
    for consumer in consumers:
        stage.check(f"{consumer.name}.py termina con 0", 0, consumer.ctrl_c())


def effects(stage: Stage) -> tuple:
    """(e-mails, accounts, analysed events) on disk, from the consumers' own --report."""
    reports = [json.loads(stage.ask(name, "--report", "--json")) for name in CONSUMERS]
    return reports[0]["emails"], reports[1]["accounts"], reports[2]["events"]


def letters_in(view) -> int:
    return sum("SimulatedFailure" in line for line in view.lines)


def depth(opened, queue: str) -> "int | None":
    found = found_in(opened, queue)
    return found and found[0]


def consumers_of(opened, queue: str) -> "int | None":
    found = found_in(opened, queue)
    return found and found[1]
