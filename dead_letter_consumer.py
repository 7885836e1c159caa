"""Muestra las cartas muertas: qué era, de quién, por qué, y su camino.

  python dead_letter_consumer.py              mira, en vivo; no quita nada
  python dead_letter_consumer.py --summary    cuántas por error y consumidor
  python dead_letter_consumer.py --export cartas.jsonl    guarda una copia
  python dead_letter_consumer.py --replay     las devuelve a su cola
  python dead_letter_consumer.py --discard    las borra (pregunta)

--consumer, --id y --error eligen cuáles. Con --dry-run, --replay y --discard
dicen qué harían.
"""

# How a letter is looked at without taking it away: look() in common/letters.py; the live view: common/watching.py.

import itertools
import json
import os
from collections import Counter
from pathlib import Path

from common import cli, console
from common.cli import EXIT_BAD_CONFIG, EXIT_CHECK_FAILED, EXIT_OK, EXIT_PARTLY
from common.events import moment
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE
from common.letters import Letter, declare_dead_letter_queue, look
from common.retry import replay_headers


def main(argv=None) -> int:
    arguments = parsed(argv)
    settings = cli.settings(arguments)
    from common.connection import connect  # imports pika: late, so that --help answers at once

    if arguments.live:
        return watch(settings, arguments)
    with connect(settings) as connection:
        declare_dead_letter_queue(connection, settings)
        if arguments.summary:
            return summary(connection, arguments)
        if arguments.export is not None:
            return export(connection, arguments)
        return replay(connection, arguments) if arguments.replay else discard(connection, arguments)


def letters(connection, arguments):
    """The wanted ones of those that are there now, as (channel, delivery tag, properties, letter)."""
    return (taken for taken in look(connection) if wanted(taken[-1], arguments))


def wanted(letter: Letter, arguments) -> bool:
    return (arguments.consumer in (None, letter.consumer)
            and (arguments.id in (None, letter.message_id) or is_end_of(letter.message_id, arguments.id))
            and (arguments.error or "").lower() in f"{letter.error_type}: {letter.error_message}".lower())


def is_end_of(message_id: str, shown: str) -> bool:
    """Whether that is how the screen shows it; a shorter end would choose others, too."""
    return len(shown) >= console.SHORT_ID and message_id.endswith(shown)


def watch(settings, arguments) -> int:
    """Show each letter once, as they come, until Ctrl-C; wait for a broker that is away."""
    from common.watching import Watcher

    watcher = Watcher(settings, tell, lambda letter: wanted(letter, arguments), arguments.limit, arguments.idle_timeout)
    console.say(f"Mirando {DEAD_LETTER_QUEUE}. Ctrl-C para terminar.")
    watcher.until_stopped()
    console.say(f"cartas vistas: {watcher.shown.total()}. Mirar no ha quitado ninguna.")
    return EXIT_OK


def tell(letter: Letter, number: int) -> None:
    if console.json_mode:
        return console.data(letter.as_json())
    for line in drawn(letter, number):
        console.say(line)


def drawn(letter: Letter, number: int) -> list[str]:
    """The letter for people, with its way as a timeline."""
    clean = console.clean
    lines = [console.paint(f"carta {number} · {letter.consumer} · {clean(letter.type)}", "bold")
             + f" · evento {console.short(letter.message_id)}"]
    if letter.user:
        lines.append(f"  de quién  {clean(letter.user)}")
    lines.append(f"  por qué   {console.paint(clean(f'{letter.error_type}: {letter.error_message}'), 'error')}")
    lines.append(f"  intentos  {letter.attempts}" + (f", repeticiones {letter.replays}" if letter.replays else ""))
    return lines + [f"  {'' if index else 'camino':8}  {line}" for index, line in enumerate(timeline(letter.journey))]


def timeline(journey) -> list[str]:
    """A line for each failed try, and between two of them where the event waited, and how long."""
    lines = []
    for stop, following in itertools.zip_longest(journey, journey[1:]):
        failed_at, to = moment(stop["failed_at"]), console.clean(stop["to"])
        lines.append(f"{failed_at:%H:%M:%S}  {console.paint('✘', 'error')} intento {stop['attempt']}"
                     + ("" if following else f" → {to}"))
        if following:
            waited_s = (moment(following["failed_at"]) - failed_at).total_seconds()
            lines.append(f"   │      {waited_s:.1f} s en {to}")
    return lines


def summary(connection, arguments) -> int:
    found = some(letters(connection, arguments), arguments)
    counts = Counter((letter.error_type, letter.consumer) for *_, letter in found)
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if console.json_mode:
        for (error, consumer), count in most_first:
            console.data({"error": error, "consumer": consumer, "count": count})
        return EXIT_OK
    rows = [("error", "consumidor", "cartas")] + [(*key, count) for key, count in most_first]
    for line in console.table(rows, right={2}):
        console.say(line)
    console.say(f"total: {counts.total()}")
    return EXIT_OK


def export(connection, arguments) -> int:
    """Write all, or leave no file behind."""
    target = Path(arguments.export)
    draft = Path(f"{target}.tmp")
    if os.path.lexists(target):
        console.complain(f"{target} ya existe: elige otro nombre o apártalo.")
        return EXIT_CHECK_FAILED
    count = 0
    try:
        with draft.open("w", encoding="utf-8") as file:
            for *_, letter in some(letters(connection, arguments), arguments):
                file.write(json.dumps(letter.as_json(), default=str) + "\n")
                count += 1
        draft.replace(target)
    except OSError as error:
        console.complain(f"No se puede escribir {target} ({console.reason(error)}): elige otra carpeta o libera espacio.")
        return EXIT_BAD_CONFIG
    finally:
        if os.path.lexists(draft):
            draft.unlink()
    console.say(f"cartas copiadas en {target}: {count}; siguen en {DEAD_LETTER_QUEUE}.", "ok")
    return EXIT_OK


def some(found, arguments):
    """The letters, up to --limit."""
    return itertools.islice(found, arguments.limit)


def replay(connection, arguments) -> int:
    """Publish each letter to its own queue; when the broker has confirmed that, take it off."""
    from common.consuming import copied_properties

    publisher = connection.channel()
    publisher.confirm_delivery()
    counts: Counter = Counter()
    sent_back = set()
    chosen = cli.paced(some(letters(connection, arguments), arguments), arguments.rate, connection.sleep)
    for channel, tag, properties, letter in chosen:
        if (letter.message_id, letter.source_queue, letter.replays) in sent_back:
            continue  # it has died again, in a consumer whose clock lags behind ours
        outcome = "would_replay" if arguments.dry_run else "replayed"
        if not letter.source_queue:
            outcome = "unknown_queue"
        elif not arguments.dry_run:
            copy = copied_properties(properties, replay_headers(properties.headers))
            if publish(publisher, letter, copy):
                channel.basic_ack(tag)
                sent_back.add((letter.message_id, letter.source_queue, letter.replays + 1))
            else:
                outcome = "refused"
        counts[outcome] += 1
        tell_outcome(letter, outcome)
    return closing(counts)


def publish(channel, letter: Letter, properties) -> bool:
    """Whether the broker has it in the source queue now."""
    from pika.exceptions import NackError, UnroutableError

    try:
        channel.basic_publish("", letter.source_queue, letter.body, properties, mandatory=True)
        return True
    except (NackError, UnroutableError):
        return False


def discard(connection, arguments) -> int:
    counts: Counter = Counter()
    if not (arguments.dry_run or arguments.yes):
        chosen = sum(1 for _ in some(letters(connection, arguments), arguments))
        if chosen == 0:
            return closing(counts)
        if not cli.confirm(f"Cartas que se borrarían para siempre: {chosen}. ¿Borrarlas?"):
            console.complain("No se borra nada. Para borrar sin pregunta: --yes.")
            return EXIT_CHECK_FAILED
    for channel, tag, _, letter in some(letters(connection, arguments), arguments):
        outcome = "would_discard" if arguments.dry_run else "discarded"
        if not arguments.dry_run:
            channel.basic_ack(tag)
        counts[outcome] += 1
        tell_outcome(letter, outcome)
    return closing(counts)


OUTCOMES = {
    "replayed": ("devuelta a su cola", "ok"), "would_replay": ("se devolvería a su cola", None),
    "discarded": ("borrada", "warn"), "would_discard": ("se borraría", None),
    "unknown_queue": ("sigue aquí: no se sabe de qué cola vino", "error"),
    "refused": ("sigue aquí: su cola no está (python setup_queues.py la crea)", "error"),
}


def tell_outcome(letter: Letter, outcome: str) -> None:
    if console.json_mode:
        return console.data({"id": letter.message_id, "consumer": letter.consumer, "outcome": outcome})
    words, colour = OUTCOMES[outcome]
    console.say(f"{console.paint(words, colour)} · {letter.consumer} · evento {console.short(letter.message_id)}")


def closing(counts: Counter) -> int:
    console.say(f"cartas: {counts.total()}" + "".join(f" · {OUTCOMES[outcome][0]}: {count}" for outcome, count in counts.items()))
    return EXIT_PARTLY if counts["unknown_queue"] or counts["refused"] else EXIT_OK


def parsed(argv):
    """The arguments; none that the wanted action would ignore."""
    arguments = parser().parse_args(argv)
    arguments.live = not (arguments.summary or arguments.export is not None or arguments.replay or arguments.discard)
    if "" in (arguments.id, arguments.error):
        cli.wrong_usage("--id y --error no pueden estar vacíos: elegirían todas las cartas, o las que no tienen id")
    for flag, given, fits in (("--rate va con --replay", arguments.rate, arguments.replay),
                              ("--yes va con --discard", arguments.yes, arguments.discard),
                              ("--dry-run va con --replay o --discard", arguments.dry_run,
                               arguments.replay or arguments.discard),
                              ("--idle-timeout es de la vista en vivo", arguments.idle_timeout, arguments.live)):
        if given and not fits:
            cli.wrong_usage(flag)
    return arguments


def parser():
    wanted = cli.parser(__doc__)
    action = wanted.add_mutually_exclusive_group()
    action.add_argument("--summary", action="store_true", help="cuántas cartas por error y consumidor")
    action.add_argument("--export", metavar="ARCHIVO", help="copia las cartas, una línea JSON por carta")
    action.add_argument("--replay", action="store_true", help="devuelve cada carta a la cola de la que vino")
    action.add_argument("--discard", action="store_true", help="borra las cartas; pregunta antes")
    wanted.add_argument("--limit", type=cli.whole(1, 10**9), metavar="N", help="N cartas, como mucho")
    wanted.add_argument("--idle-timeout", type=cli.seconds(0.1, 86_400), metavar="S",
                        help="en vivo: termina tras S segundos sin cartas nuevas")
    wanted.add_argument("--consumer", choices=tuple(CONSUMERS), help="solo las de este consumidor")
    wanted.add_argument("--id", metavar="ID", help="solo las de este evento; vale el final del id, como sale en pantalla")
    wanted.add_argument("--error", metavar="TEXTO", help="solo aquellas cuyo error contiene este texto")
    wanted.add_argument("--rate", type=cli.seconds(0.01, 1e6), metavar="R", help="--replay: cartas por segundo, como mucho")
    wanted.add_argument("--dry-run", action="store_true", help="dice qué harían --replay o --discard, sin hacerlo")
    wanted.add_argument("--yes", action="store_true", help="--discard: sin preguntar")
    return wanted


if __name__ == "__main__":
    cli.run(main)
