"""Muestra los mensajes fallidos: su usuario, el error y su historial.

  python dead_letter_consumer.py              mira, en vivo; no quita nada
  python dead_letter_consumer.py --full       lo mismo, con su historial
  python dead_letter_consumer.py --summary    cuántos por error y consumidor
  python dead_letter_consumer.py --export fallidos.jsonl    guarda una copia
  python dead_letter_consumer.py --replay     los reenvía a su cola
  python dead_letter_consumer.py --discard    los borra (pregunta)

--consumer, --id y --error eligen cuáles. Con --dry-run, --replay y --discard
dicen qué harían.
"""

import itertools
import json
import os
from collections import Counter
from pathlib import Path

from common import cli, console
from common.cli import EXIT_BAD_CONFIG, EXIT_CHECK_FAILED, EXIT_OK, EXIT_PARTLY
from common.connection import connect
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE
from common.problems import NOT_TAKEN
from common.retry import copied_properties, replay_headers
from common.simulation import ALWAYS
from common.views.dead_letters import declare_dead_letter_queue, look
from common.views.live import HEADING, Watcher, show

OUTCOMES = {
    "replayed": ("reenviado a su cola", "ok"),
    "would_replay": ("se reenviaría a su cola", None),
    "discarded": ("borrado", "warn"),
    "would_discard": ("se borraría", None),
    "unknown_queue": ("sigue aquí: no se sabe de qué cola vino", "error"),
    "refused": ("sigue aquí: falta su cola; setup_queues.py la crea", "error"),
}


def replay(connection, options):
    """Publish each to its source queue; after the confirm, ack the original."""
    publisher = connection.channel()
    publisher.confirm_delivery()
    counts, replayed, hopeless = Counter[str](), set(), 0
    for channel, tag, properties, found in cli.paced(
            chosen(connection, options), options.rate, connection.sleep):
        key = found.message_id, found.source_queue, found.replays
        if key in replayed:
            continue  # it failed again, at a consumer whose clock is late
        outcome = "would_replay" if options.dry_run else "replayed"
        if not found.source_queue:
            outcome = "unknown_queue"
        elif not options.dry_run:
            try:
                headers = replay_headers(properties.headers)
                publisher.basic_publish(  # returns when the confirm is there
                    exchange="", routing_key=found.source_queue,
                    properties=copied_properties(properties, headers),
                    body=found.body, mandatory=True)
                channel.basic_ack(tag)
                replayed.add((*key[:2], found.replays + 1))
            except NOT_TAKEN:
                outcome = "refused"
        count(counts, found, outcome)
        hopeless += found.error_message.startswith(ALWAYS)
    code = closing(counts)
    if hopeless:
        console.print_line(
            f"Fallan siempre, y volverán aquí: {hopeless}. Bórralos con"
            f' --discard --error "{ALWAYS}", o reenvía uno con --id.', "warn")
    return code


def discard(connection, options):
    """Ack without a copy: only what the question was about."""
    counts, asked = Counter[str](), None
    if not (options.dry_run or options.yes):
        asked = Counter(
            found.digest for *_, found in chosen(connection, options))
        if asked and not cli.confirm("Mensajes fallidos que se borrarían para"
                                     f" siempre: {asked.total()}. ¿Borrarlos?"):
            console.print_error("No se borra nada. Sin pregunta: --yes.")
            return EXIT_CHECK_FAILED
    for channel, tag, _, found in chosen(connection, options, asked):
        if not options.dry_run:
            channel.basic_ack(tag)
        count(counts, found,
              "would_discard" if options.dry_run else "discarded")
    return closing(counts)


def chosen(connection, options, asked=None):
    """Those there now that the flags choose, as (channel, tag, properties, dead
    letter); with `asked`, no others than these digests."""
    def is_chosen(taken):
        found = taken[-1]
        if asked is None or not wanted(found, options):
            return wanted(found, options)
        asked[found.digest] -= 1
        return asked[found.digest] >= 0

    return itertools.islice(filter(is_chosen, look(connection)), options.limit)


def wanted(found, options):
    by_id = options.id in (None, found.message_id) or (
        len(options.id) >= console.SHORT_ID
        and found.message_id.endswith(options.id))
    error = f"{found.error_type}: {found.error_message}".lower()
    return (by_id and options.consumer in (None, found.consumer)
            and (options.error or "").lower() in error)


def watch(settings, options):
    """Show each once, as they come; wait for a broker that is away."""
    full = options.full or bool(options.id)
    watcher = Watcher(settings, lambda found, n: show(found, n, full),
                      lambda found: wanted(found, options), options.limit,
                      options.idle_timeout)
    console.print_line(f"Mirando {DEAD_LETTER_QUEUE}. Ctrl-C para terminar."
                       + HEADING * (not full))
    watcher.until_stopped()
    console.print_line(f"mensajes fallidos vistos: {watcher.shown.total()}."
                       " Mirar no ha quitado ninguno.")
    return EXIT_OK


def summary(connection, options):
    counts = Counter((found.error_type, found.consumer)
                     for *_, found in chosen(connection, options))
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if console.json_mode:
        for (error, consumer), number in most_first:
            console.print_json(
                {"error": error, "consumer": consumer, "count": number})
        return EXIT_OK
    rows = [("error", "consumidor", "mensajes"),
            *((*key, number) for key, number in most_first)]
    for line in [*console.table(rows, right={2}), f"total: {counts.total()}"]:
        console.print_line(line)
    return EXIT_OK


def export(connection, options):
    """Write all, or leave no file behind."""
    target, number = Path(options.export), 0
    draft = Path(f"{target}.tmp")
    if os.path.lexists(target):
        console.print_error(f"{target} ya existe: elige otro nombre.")
        return EXIT_CHECK_FAILED
    try:
        with draft.open("w", encoding="utf-8") as file:
            for *_, found in chosen(connection, options):
                file.write(json.dumps(found.as_json(), default=str) + "\n")
                number += 1
        draft.replace(target)
    except OSError as error:
        console.print_error(
            f"No se puede escribir {target} ({console.reason(error)}):"
            " elige otra carpeta o libera espacio.")
        return EXIT_BAD_CONFIG
    finally:
        if os.path.lexists(draft):
            draft.unlink()
    console.print_line(f"mensajes fallidos copiados en {target}: {number};"
                       f" siguen en {DEAD_LETTER_QUEUE}.", "ok")
    return EXIT_OK


def count(counts, found, outcome):
    counts[outcome] += 1
    if console.json_mode:
        return console.print_json({"id": found.message_id, "outcome": outcome,
                                   "consumer": found.consumer})
    console.print_line(f"{console.paint(*OUTCOMES[outcome])} · {found.consumer}"
                       f" · id {console.short(found.message_id)}")


def closing(counts):
    console.print_line(f"mensajes fallidos: {counts.total()}" + "".join(
        f" · {OUTCOMES[outcome][0]}: {number}"
        for outcome, number in counts.items()))
    kept = counts["unknown_queue"] or counts["refused"]
    return EXIT_PARTLY if kept else EXIT_OK


def main(argv=None):
    options = cli.dead_letter_options(__doc__, argv, tuple(CONSUMERS))
    settings = cli.settings(options)
    if options.live:
        return watch(settings, options)
    act = (summary if options.summary else replay if options.replay
           else discard if options.discard else export)
    with connect(settings) as connection:
        declare_dead_letter_queue(connection, settings)
        return act(connection, options)


if __name__ == "__main__":
    cli.run(main)
