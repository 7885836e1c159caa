"""Crea el exchange, las colas, los reintentos y dead_letter_queue.

  python setup_queues.py               crea lo que falte y muestra el árbol
  python setup_queues.py --show text   solo mira (también json y mermaid)
  python setup_queues.py --watch       mira sin parar, hasta Ctrl-C
  python setup_queues.py --check       compara; código 1 si algo difiere
  python setup_queues.py --reset       las borra y las crea de nuevo (pregunta)

Crear otra vez lo que ya está no cambia nada.
Verás cada cola con sus mensajes listos y sus consumidores.
"""

from common import cli, console, exchange
from common.cli import EXIT_CHECK_FAILED
from common.config import KitError
from common.connection import connect
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, EXCHANGE
from common.views import status, topology
from common.views.flow import Flow
from common.views.live import keep_looking
from common.views.management import Management


def declare(channel, settings):
    """The whole topology, as exchange.declare(); why so: docs/topologia.md."""
    channel.exchange_declare(
        exchange=EXCHANGE, exchange_type="fanout", durable=True)
    channel.queue_declare(queue=DEAD_LETTER_QUEUE, durable=True,
                          arguments=exchange.dead_letter_arguments(settings))
    for queue in CONSUMERS.values():
        channel.queue_declare(queue=queue, durable=True,
                              arguments=exchange.work_arguments(settings))
        channel.queue_bind(queue=queue, exchange=EXCHANGE, routing_key="")
        for delay_s in settings.retry_delays:  # a TTL, then back to its queue
            channel.queue_declare(
                queue=exchange.retry_queue(queue, delay_s), durable=True,
                arguments=exchange.retry_arguments(settings, queue, delay_s))


def main(argv=None):
    options = parsed(argv)
    settings = options.settings
    if options.show == "mermaid":
        drawn = topology.mermaid(settings)
        if options.json:
            return console.print_json({"mermaid": drawn})
        return console.print_line(drawn)
    if options.watch:
        return keep_looking(Flow(settings))
    management = Management(settings)
    if options.reset:
        reset(settings, management, options)
    with connect(settings) as connection:
        if options.check:
            return check(connection, settings, management)
        if not (options.show or options.dry_run):
            declare(connection.channel(), settings)
        states = status.look(connection, settings, management)
    if options.json or options.show == "json":
        return console.print_json(topology.as_json(states))
    if options.dry_run:
        lines = [("crearía  " if state.ready is None else "ya está  ")
                 + state.queue.name for state in states]
    else:
        lines = [*topology.tree(states), management.problem]
    for line in filter(None, lines):
        console.print_line(line)


def check(connection, settings, management):
    found = status.differences(connection, settings, management)
    for difference in found:
        if console.json_mode:
            console.print_json({"difference": difference})
        else:
            console.print_line(f"✘ {difference}", "error")
    if found:
        console.print_error(
            "Lo que falta lo crea python setup_queues.py; lo definido de otra"
            " manera o de otro RETRY_DELAYS, python setup_queues.py --reset.")
        return EXIT_CHECK_FAILED
    console.print_line("✔ El exchange y las colas están como deben.", "ok")


def reset(settings, management, options):
    """Look, ask without a connection, which would not outlive a long silence;
    look again, and delete. With --yes, only the second look."""
    for last_look in (True,) if options.yes else (False, True):
        with connect(settings) as connection:
            there = [state for state in status.look(
                connection, settings, management) if state.ready is not None]
            busy = [state for state in there
                    if state.messages or state.consumers]
            if busy and not options.force:
                for state in busy:
                    name, *counts = filter(None, topology.row(state))
                    console.print_line(f"{name} · {', '.join(counts)}", "warn")
                raise KitError(
                    "No se borra nada: esas colas tienen mensajes o"
                    " consumidores. Para borrarlas con todo, --force.")
            messages = sum(state.messages for state in there)
            if last_look:
                channel = connection.channel()
                for state in there:
                    channel.queue_delete(queue=state.queue.name)
                channel.exchange_delete(exchange=EXCHANGE)
        if not last_look and not cli.confirm(
                f"Colas: {len(there)}, mensajes: {messages}. ¿Borrarlo todo?"):
            raise KitError("No se borra nada. Para no preguntar: --yes.")
    console.print_notice(f"Colas borradas: {len(there)}, mensajes: {messages}.")


def parsed(argv):
    parser = cli.Parser(__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--show", choices=("text", "json", "mermaid"),
                        help="solo mira, en este formato")
    for flag, words in (
            ("--watch", "redibuja el flujo cada segundo, hasta Ctrl-C"),
            ("--check", "compara con lo que debe haber; código 1 si difiere"),
            ("--dry-run", "dice qué crearía, sin crear nada"),
            ("--reset", "borra todo y lo crea de nuevo; pregunta antes")):
        action.add_argument(flag, action="store_true", help=words)
    parser.switch("--yes", "con --reset: sin preguntar")
    parser.switch("--force", "con --reset: también con mensajes o consumidores")
    options = parser.parse_args(argv)
    if (options.yes or options.force) and not options.reset:
        parser.error("--yes y --force van con --reset")
    return options


if __name__ == "__main__":
    cli.run(main)
