"""Publica eventos UsuarioCreado con tres niveles de garantía.

  python events_publisher_levels.py --level 1 --nombre "Juan" --email "juan@eco.com"

  nivel 1, simple       se envía; nadie contesta
  nivel 2, persistente  se pide al broker que lo guarde; nadie contesta
  nivel 3, confirmado   el broker contesta; si no, se envía de nuevo

Lo que el nivel 3 no llegó a confirmar, aunque su proceso muriera, queda en
STATE_DIR y se envía con
  python events_publisher_levels.py --resume

Verás una línea por evento:
  enviado, sin confirmación · evento … · Juan <juan@eco.com>
"""

# What changes between the three levels is the lesson: read them one under the other.

import sys
import time
from collections import Counter

from common import cli, console
from common.cli import EXIT_NO_BROKER, EXIT_OK, EXIT_PARTLY
from common.events import check_user, encode, properties, user_created
from common.exchange import EXCHANGE, declare_exchange

LINES_AT_MOST = 20  # from here on a progress line stands for the line an event
PROGRESS_S = 0.2


def level_1_simple(connection, events):
    """Publish and hope."""
    channel = connection.channel()
    declare_exchange(channel)
    for event in events:
        channel.basic_publish(exchange=EXCHANGE, routing_key="", body=encode(event),
                              properties=properties(event, delivery_mode=1))
        yield event.id, "sent"


def level_2_persistent(connection, events):
    """Ask the broker to keep it on disk. Still nobody answers."""
    channel = connection.channel()
    declare_exchange(channel)
    for event in events:
        channel.basic_publish(exchange=EXCHANGE, routing_key="", body=encode(event),
                              properties=properties(event, delivery_mode=2))
        yield event.id, "sent"


def level_3_confirmed(connection, events):
    """On disk until the broker has answered for it; what it does not answer for is sent again, same id."""
    for event in events:
        connection.publish(exchange=EXCHANGE, routing_key="", body=encode(event),
                           properties=properties(event, delivery_mode=2))
        yield from connection.answers()
    yield from connection.last_answers()


LEVELS = {1: level_1_simple, 2: level_2_persistent, 3: level_3_confirmed}
WORDS = {
    "sent": ("enviado, sin confirmación", "ok"),
    "confirmed": ("confirmado por el broker", "ok"),
    "returned": ("DEVUELTO: ninguna cola lo recibe", "error"),
    "unconfirmed": ("SIN RESPUESTA: no se sabe si llegó", "error"),
}


def main(argv=None) -> int:
    arguments = parsed(argv)
    settings = cli.settings(arguments)
    from common.connection import BrokerUnavailable, connect  # imports pika: late, so that --help answers at once
    from common.outbox import Outbox
    from common.publishing import ConfirmedConnection

    outbox = Outbox(settings.state_dir) if arguments.level == 3 else None
    events = (user_created(arguments.nombre, arguments.email) for _ in range(arguments.count))
    if outbox and arguments.resume:
        arguments.count, events = outbox.count(), outbox.left()
        if not arguments.count:
            console.say("No queda nada por enviar.")
            return EXIT_OK
    tally = Tally(arguments)
    opened = ConfirmedConnection(settings, arguments.timeout, outbox) if outbox else connect(settings)
    try:
        with opened as connection:
            paced = cli.paced(events, arguments.rate, connection.sleep)
            for event_id, outcome in LEVELS[arguments.level](connection, paced):
                tally.add(event_id, outcome)
        tally.close()
        return tally.exit_code()
    except KeyboardInterrupt:
        tally.close()
        raise
    except BrokerUnavailable as error:
        if not tally.counts:
            raise
        tally.close()
        console.complain(f"{error} De lo enviado puede haberse perdido algo, y nadie sabe qué: el nivel 3 lo"
                         " habría enviado de nuevo.")
        return EXIT_PARTLY
    finally:
        left = outbox.count() if outbox else 0
        if left:
            console.complain(f"Eventos sin confirmar: {left}. Están en {outbox.path} y se envían con python"
                             " events_publisher_levels.py --resume.")


class Tally:
    """What has become of the events: a line for each, or progress and a closing line for many."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.user = "" if arguments.resume else f" · {arguments.nombre} <{arguments.email}>"
        self.counts = Counter()
        self.started_at = self.shown_at = time.monotonic()
        self.progress = arguments.count > LINES_AT_MOST

    def add(self, event_id: str, outcome: str) -> None:
        self.counts[outcome] += 1
        words, colour = WORDS[outcome]
        if console.json_mode:
            console.data({"id": event_id, "level": self.arguments.level, "outcome": outcome})
        elif not self.progress or outcome in ("returned", "unconfirmed") and self.counts[outcome] <= LINES_AT_MOST:
            console.say(f"{console.paint(words, colour)} · evento {console.short(event_id)}{self.user}")
        if self.progress and time.monotonic() - self.shown_at > PROGRESS_S and sys.stderr.isatty():
            self.shown_at = time.monotonic()
            print(f"\r{self.counts.total()} de {self.arguments.count} …", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.progress and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        total = self.counts.total()
        rate = total / max(time.monotonic() - self.started_at, 1e-6)
        if self.arguments.count > 1:
            answers = (f"confirmados {self.counts['confirmed']}, devueltos {self.counts['returned']}, sin respuesta"
                       f" {self.counts['unconfirmed']}" if self.arguments.level == 3 else "sin confirmación")
            console.say(f"enviados {total}, {answers} · {rate:.0f} eventos/s")

    def exit_code(self) -> int:
        if not self.counts["returned"] and not self.counts["unconfirmed"]:
            return EXIT_OK
        if self.counts["unconfirmed"]:
            console.complain(f"El broker no contestó durante {self.arguments.timeout:g} s: arráncalo con"
                             " python kit.py broker up o revisa RABBITMQ_URL.")
        if self.counts["returned"]:
            console.complain("Algún evento no llegó a ninguna cola: créalas con python setup_queues.py.")
        return EXIT_PARTLY if self.counts["confirmed"] or self.counts["returned"] else EXIT_NO_BROKER


def parsed(argv):
    """The arguments; --resume sends what is there already, at level 3."""
    wanted = parser()
    arguments = wanted.parse_args(argv)
    of_a_new_event = {"--level": arguments.level, "--nombre": arguments.nombre, "--email": arguments.email}
    if not arguments.resume:
        missing = [flag for flag, value in of_a_new_event.items() if value is None]
        if missing:
            wanted.error(f"falta {', '.join(missing)}")
        check_user(arguments.nombre, arguments.email)
    elif any(value is not None for value in of_a_new_event.values()) or arguments.count != 1:
        wanted.error("--resume envía lo que quedó, con el nivel 3: no va junto con --level, --nombre, --email ni --count")
    else:
        arguments.level = 3
    return arguments


def parser():
    wanted = cli.parser(__doc__)
    wanted.add_argument("--level", type=cli.whole(1, 3), metavar="{1,2,3}", help="el nivel de garantía")
    wanted.add_argument("--nombre", help="el nombre del usuario nuevo")
    wanted.add_argument("--email", help="su dirección de correo")
    wanted.add_argument("--resume", action="store_true",
                        help="envía, con el nivel 3 y el mismo id, lo que otra vez quedó sin confirmar")
    wanted.add_argument("--count", type=cli.whole(1, 10**9), default=1, metavar="N",
                        help="cuántos eventos, cada uno de un usuario nuevo (de fábrica, 1); con más de"
                             f" {LINES_AT_MOST}, un avance en vez de una línea por evento")
    wanted.add_argument("--rate", type=cli.seconds(0.01, 1e6), metavar="R", help="eventos por segundo, como mucho")
    wanted.add_argument("--timeout", type=cli.seconds(1, 86_400), default=60, metavar="S",
                        help="nivel 3: se rinde tras S segundos sin ninguna respuesta (de fábrica, 60)")
    return wanted


if __name__ == "__main__":
    cli.run(main)
