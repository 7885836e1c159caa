"""Crea el exchange, las colas, los reintentos y dead_letter_queue.

  python setup_queues.py               crea lo que falte y muestra el árbol
  python setup_queues.py --show text   solo mira (también json y mermaid)
  python setup_queues.py --watch       mira sin parar, hasta Ctrl-C
  python setup_queues.py --check       compara; termina en 1 si algo difiere
  python setup_queues.py --reset       las borra y las crea de nuevo (pregunta)

Crear otra vez lo que ya está no cambia nada.
Verás cada cola con sus mensajes listos y sus consumidores.
"""

# The topology itself is data in common/exchange.py.

from common import cli, console
from common.cli import EXIT_CHECK_FAILED, EXIT_OK
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, EXCHANGE, declare, topology


def main(argv=None) -> int:
    arguments = parser().parse_args(argv)
    if (arguments.yes or arguments.force) and not arguments.reset:
        cli.wrong_usage("--yes y --force van con --reset")
    settings = cli.settings(arguments)
    if arguments.show == "mermaid":
        console.say(mermaid(settings))
        return EXIT_OK
    if arguments.watch:
        from common.flow import Flow

        Flow(settings).until_stopped()
        return EXIT_OK
    from common.connection import connect  # imports pika: late, so that --help answers at once

    with connect(settings) as connection:
        if arguments.check:
            return check(connection, settings)
        if arguments.dry_run:
            return dry_run(connection, settings)
        if arguments.reset and not reset(connection, settings, arguments):
            return EXIT_CHECK_FAILED
        if not arguments.show:
            declare(connection.channel(), settings)
        show(connection, settings, as_json=arguments.json or arguments.show == "json")
    return EXIT_OK


def check(connection, settings) -> int:
    from common.status import differences

    found = differences(connection, settings)
    for difference in found:
        if console.json_mode:
            console.data({"difference": difference})
        else:
            console.say(f"✘ {difference}", "error")
    if found:
        console.complain("Lo que falta lo crea python setup_queues.py; lo definido de otra manera,"
                         " python setup_queues.py --reset.")
        return EXIT_CHECK_FAILED
    console.say("✔ El exchange y todas las colas están como deben.", "ok")
    return EXIT_OK


def dry_run(connection, settings) -> int:
    from common.status import look

    for state in look(connection, settings):
        console.say(f"{'crearía' if state.ready is None else 'ya está'}  {state.queue.name}")
    return EXIT_OK


def reset(connection, settings, arguments) -> bool:
    """Delete everything; False if somebody or something said no."""
    from common.status import look

    there = [state for state in look(connection, settings) if state.ready is not None]
    busy = [state for state in there if state.ready or state.consumers]
    if busy and not arguments.force:
        for state in busy:
            console.say(f"{state.queue.name}: {state.ready} listos, consumidores: {state.consumers}", "warn")
        console.complain("No se borra nada: esas colas tienen mensajes o consumidores. Para borrarlas con todo,"
                         " añade --force.")
        return False
    messages = sum(state.ready for state in there)
    if not arguments.yes and not cli.confirm(f"Colas: {len(there)}, mensajes en ellas: {messages}. ¿Borrarlo todo?"):
        console.complain("No se borra nada. Para borrar sin pregunta: --yes.")
        return False
    channel = connection.channel()
    for state in there:
        channel.queue_delete(queue=state.queue.name)
    channel.exchange_delete(exchange=EXCHANGE)
    return True


def show(connection, settings, as_json: bool) -> None:
    from common.status import look

    states = look(connection, settings)
    if as_json:
        console.data({"exchange": EXCHANGE, "queues": [
            {"name": state.queue.name, "ready": state.ready, "consumers": state.consumers,
             "bound": state.queue.bound, "arguments": state.queue.arguments} for state in states]})
    else:
        for line in tree(states):
            console.say(line)


def tree(states) -> list[str]:
    """The fanout with its queues, their retries below them, and the dead letters."""
    rows = [(f"{EXCHANGE} (fanout)", "", "")]
    names = list(CONSUMERS.values())
    for name in names:
        last = name == names[-1]
        retries = [state for state in states if state.queue.name.startswith(f"{name}.")]
        rows += [_row("└─ " if last else "├─ ", state) for state in states if state.queue.name == name]
        for state in retries:
            branch = "└─ " if state is retries[-1] else "├─ "
            rows.append(_row(("   " if last else "│  ") + branch, state))
    rows += [_row("", state) for state in states if state.queue.name == DEAD_LETTER_QUEUE]
    return console.table(rows)


def _row(branch: str, state) -> tuple[str, str, str]:
    if state.ready is None:
        return f"{branch}{state.queue.name}", "no está", ""
    return f"{branch}{state.queue.name}", f"listos: {state.ready}", f"consumidores: {state.consumers}"


def mermaid(settings) -> str:
    """The picture of the README; needs no broker."""
    lines = ["flowchart LR", f"  publisher([events_publisher_levels.py]) --> {EXCHANGE}{{{{{EXCHANGE} · fanout}}}}"]
    for queue in topology(settings):
        target = queue.arguments.get("x-dead-letter-routing-key")
        if queue.bound:
            consumer = next(name for name, own in CONSUMERS.items() if own == queue.name)
            lines += [f"  {EXCHANGE} --> {queue.name}", f"  {queue.name} --> {consumer}([consumidor {consumer}])",
                      f"  {consumer} -. sin más intentos .-> {DEAD_LETTER_QUEUE}"]
        elif target:
            consumer = next(name for name, own in CONSUMERS.items() if own == target)
            delay = f"{queue.arguments['x-message-ttl'] / 1000:g} s"
            lines += [f"  {consumer} -. falla .-> {queue.name}", f"  {queue.name} -- {delay} --> {target}"]
    return "\n".join(lines)


def parser():
    wanted = cli.parser(__doc__)
    action = wanted.add_mutually_exclusive_group()
    action.add_argument("--show", choices=("text", "json", "mermaid"), help="solo mira, en este formato")
    action.add_argument("--watch", action="store_true", help="redibuja el flujo cada segundo, hasta Ctrl-C; solo mira")
    action.add_argument("--check", action="store_true", help="compara con lo que debe haber; 1 si algo difiere")
    action.add_argument("--dry-run", action="store_true", help="dice qué crearía, sin crear nada")
    action.add_argument("--reset", action="store_true", help="borra todo y lo crea de nuevo; pregunta antes")
    wanted.add_argument("--yes", action="store_true", help="con --reset: sin preguntar")
    wanted.add_argument("--force", action="store_true", help="con --reset: también colas con mensajes o consumidores")
    return wanted


if __name__ == "__main__":
    cli.run(main)
