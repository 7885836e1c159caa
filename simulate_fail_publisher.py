"""Publica eventos que fallan a propósito: reintentos, mensajes fallidos.

  python simulate_fail_publisher.py --count 3

  --mode transient      falla siempre (por defecto): al final, dead_letter_queue
  --mode flaky          falla --times veces y luego va bien
  --mode permanent      falla siempre: dead_letter_queue sin reintentos
  --mode malformed      el cuerpo no es un evento: dead_letter_queue
  --mode crash          el proceso del consumidor muere; arráncalo otra vez
  --mode slow           el consumidor tarda --seconds
  --mode duplicate      el mismo evento llega dos veces
  --mode unroutable     no hay cola que lo reciba: el broker lo devuelve
"""

import random

from common import cli, console
from common.confirms import WINDOW
from common.events import encode, user_created
from common.exchange import CONSUMERS, EXCHANGE
from common.publishing import ConfirmedChannel, properties
from common.simulation import HEADER
from common.views.tally import Tally
from events_publisher_levels import answered

MODES = ("transient", "flaky", "permanent", "malformed", "crash", "slow",
         "duplicate", "unroutable")
MALFORMED = b'{"nombre": "Juan", esto no es JSON'
NAMES = "Ana", "Eva", "Leo", "Luz", "Noa", "Pol", "Sol", "Teo"


def publish(channel, options, names):
    """Ordinary events, confirmed. The instruction to fail travels in a header;
    the consumer obeys it (common/simulation.py). names: filled, by event id."""
    numbers = {"flaky": options.times, "slow": round(options.seconds * 1000)}
    instruction = {"consumer": options.consumer, "mode": options.mode,
                   "number": numbers.get(options.mode, 0)}
    channel.confirm_delivery()
    first = random.randrange(1000, 9000)  # two runs have different users
    for number in range(first, first + options.count):
        name = NAMES[number % len(NAMES)]
        event = user_created(
            f"{name} Prueba {number}", f"{name.lower()}{number}@eco.com")
        names[event.id] = event.nombre
        body = MALFORMED if options.mode == "malformed" else encode(event)
        for _ in range(2 if options.mode == "duplicate" else 1):
            channel.basic_publish(
                **address(options), body=body, mandatory=True,
                properties=properties(event, 2, headers={HEADER: instruction}))
            yield from answered(channel, most_unanswered=WINDOW)
    yield from answered(channel, most_unanswered=0)


def address(options):
    """To all, except for what no header can limit to one consumer."""
    if options.mode == "unroutable":
        return {"exchange": "", "routing_key": "cola_que_no_existe"}
    if options.mode in ("malformed", "duplicate") and options.consumer != "all":
        return {"exchange": "", "routing_key": CONSUMERS[options.consumer]}
    return {"exchange": EXCHANGE, "routing_key": ""}


def main(argv=None):
    options = parsed(argv)
    names: dict[str, str] = {}
    tally = Tally(options)
    with (tally,
          ConfirmedChannel(options.settings, options.timeout) as channel):
        tally.channel = channel
        for event_id, outcome in publish(channel, options, names):
            tally.add(event_id, outcome, options.mode, names[event_id])
    if options.mode in ("transient", "permanent"):
        console.print_notice(
            "Al final, bórralos:"
            " python dead_letter_consumer.py --discard --error siempre")
    return tally.exit_code()


def parsed(argv):
    parser = cli.Parser(__doc__)
    parser.value("--count", cli.whole(1, 10**6), "N", "cuántos eventos", 1)
    parser.add_argument("--consumer", choices=(*CONSUMERS, "all"),
                        default="all", help="quién falla (por defecto, all)")
    parser.add_argument("--mode", choices=MODES, default="transient",
                        help="cómo falla (por defecto, transient)")
    parser.value("--times", cli.whole(1, 1000), "K",
                 "flaky: cuántas veces falla (por defecto, 1)")
    parser.value("--seconds", cli.seconds(0, 3600), "S",
                 "slow: cuánto tarda (por defecto, 5)")
    parser.value("--timeout", cli.seconds(1, 86_400), "S",
                 "se rinde tras S segundos sin respuesta", 60)
    options = parser.parse_args(argv)
    if options.times and options.mode != "flaky":
        parser.error("--times va con --mode flaky")
    if options.seconds is not None and options.mode != "slow":
        parser.error("--seconds va con --mode slow")
    options.times = options.times or 1
    options.seconds = 5 if options.seconds is None else options.seconds
    return options


if __name__ == "__main__":
    cli.run(main)
