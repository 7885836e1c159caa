"""Publica eventos que fallan a propósito, para ver reintentos y cartas muertas.

  python simulate_fail_publisher.py --count 3

  --mode transient      falla siempre (de fábrica): al final, dead_letter_queue
  --mode flaky          falla --times veces y luego va bien
  --mode permanent      no tiene arreglo: dead_letter_queue sin esperas
  --mode malformed      el cuerpo no es un evento: dead_letter_queue sin esperas
  --mode crash          el proceso del consumidor muere; arráncalo otra vez
  --mode slow           el consumidor tarda --seconds
  --mode duplicate      el mismo evento llega dos veces
  --mode unroutable     no hay cola que lo reciba: el broker lo devuelve
"""

# The wish travels in a header (common/simulation.py); the event itself is an ordinary one.

from collections import Counter

from common import cli, console
from common.cli import EXIT_NO_BROKER, EXIT_OK, EXIT_PARTLY
from common.events import encode, properties, user_created
from common.exchange import CONSUMERS, EXCHANGE
from common.simulation import HEADER

MODES = ("transient", "flaky", "permanent", "malformed", "crash", "slow", "duplicate", "unroutable")
MALFORMED = '{"nombre": "Juan", esto no es JSON'.encode()
TIMES, SECONDS = 1, 5  # unless said otherwise
NO_QUEUE = "cola_que_no_existe"
WORDS = {"confirmed": "confirmado por el broker", "returned": "devuelto: ninguna cola lo recibe",
         "unconfirmed": "sin respuesta: no se sabe si llegó"}


def main(argv=None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.times != TIMES and arguments.mode != "flaky" or arguments.seconds != SECONDS and arguments.mode != "slow":
        cli.wrong_usage("--times va con --mode flaky, y --seconds con --mode slow")
    settings = cli.settings(arguments)
    from common.publishing import ConfirmedConnection  # imports pika: late, so that --help answers at once

    wanted = "returned" if arguments.mode == "unroutable" else "confirmed"
    outcomes = Counter()
    with ConfirmedConnection(settings, arguments.timeout) as connection:
        for event_id, outcome in publish(connection, arguments):
            outcomes[outcome] += 1
            tell(event_id, outcome, arguments.mode, "ok" if outcome == wanted else "error")
    if outcomes.total() == outcomes[wanted]:
        return EXIT_OK
    if outcomes.total() == outcomes["unconfirmed"]:
        console.complain(f"El broker no contestó durante {arguments.timeout:g} s: arráncalo con python kit.py broker up"
                         " o revisa RABBITMQ_URL, y publica otra vez.")
        return EXIT_NO_BROKER
    console.complain("Algo no salió como se pedía: mira las líneas de arriba y que el broker esté en marcha"
                     " (python kit.py broker status).")
    return EXIT_PARTLY


def publish(connection, arguments):
    """Publish, confirmed, and yield (event_id, outcome) for each message."""
    for number in range(1, arguments.count + 1):
        event = user_created(f"Prueba {number}", f"prueba{number}@eco.com")
        body = MALFORMED if arguments.mode == "malformed" else encode(event)
        for _ in range(2 if arguments.mode == "duplicate" else 1):
            connection.publish(**address(arguments), body=body,
                               properties=properties(event, 2, {HEADER: wish(arguments)}))
            yield from connection.answers()
    yield from connection.last_answers()


def address(arguments) -> dict:
    """Where it goes: to all, but for what no header can aim at one consumer."""
    if arguments.mode == "unroutable":
        return {"exchange": "", "routing_key": NO_QUEUE}
    if arguments.mode in ("malformed", "duplicate") and arguments.consumer != "all":
        return {"exchange": "", "routing_key": CONSUMERS[arguments.consumer]}
    return {"exchange": EXCHANGE, "routing_key": ""}


def wish(arguments) -> dict:
    """The header's value; common/simulation.py obeys it."""
    number = {"flaky": arguments.times, "slow": round(arguments.seconds * 1000)}.get(arguments.mode, 0)
    return {"consumer": arguments.consumer, "mode": arguments.mode, "number": number}


def tell(event_id: str, outcome: str, mode: str, colour: str) -> None:
    if console.json_mode:
        return console.data({"id": event_id, "mode": mode, "outcome": outcome})
    console.say(f"{console.paint(WORDS[outcome], colour)} · {mode} · evento {console.short(event_id)}")


def parser():
    wanted = cli.parser(__doc__)
    wanted.add_argument("--count", type=cli.whole(1, 10**6), default=1, metavar="N", help="cuántos eventos (de fábrica, 1)")
    wanted.add_argument("--consumer", choices=(*CONSUMERS, "all"), default="all", help="quién falla (de fábrica, all)")
    wanted.add_argument("--mode", choices=MODES, default="transient", help="cómo falla (de fábrica, transient)")
    wanted.add_argument("--times", type=cli.whole(1, 1000), default=TIMES, metavar="K", help="flaky: cuántas veces falla")
    wanted.add_argument("--seconds", type=cli.seconds(0, 3600), default=SECONDS, metavar="S", help="slow: cuánto tarda")
    wanted.add_argument("--timeout", type=cli.seconds(1, 86_400), default=60, metavar="S",
                        help="se rinde tras S segundos sin ninguna respuesta (de fábrica, 60)")
    return wanted


if __name__ == "__main__":
    cli.run(main)
