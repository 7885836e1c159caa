"""Muestra los mensajes fallidos: su usuario, el error y su historial.

  python dead_letter_consumer.py              mira, en vivo; no quita nada
  python dead_letter_consumer.py --full       lo mismo, con su historial
  python dead_letter_consumer.py --summary    cuántos por error y consumidor
  python dead_letter_consumer.py --export fallidos.jsonl    guarda una copia
  python dead_letter_consumer.py --replay     los reenvía a su cola
  python dead_letter_consumer.py --replay --from fallidos.jsonl    corregidos
  python dead_letter_consumer.py --discard    los borra (pregunta)

--consumer, --id, --error y --since eligen cuáles. --replay y --discard, con
--dry-run, solo dicen qué harían.
"""

import itertools
import os
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from common import cli, console
from common.config import KitError
from common.confirms import ACK, TIMEOUT, WINDOW
from common.connection import connect
from common.events import now
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE
from common.publishing import ConfirmedChannel
from common.retry import EDITED, copied_properties, replay_headers
from common.simulation import ALWAYS
from common.views import export as exported
from common.views.dead_letters import DeadLetters
from common.views.live import HEADING, Watcher, keep_looking
from common.views.outcomes import Outcomes, came_later

GIVE_UP_S = 10
ANSWERS = {ACK: "replayed", TIMEOUT: "unconfirmed"}  # else "refused"


def replay(dead_letters, options):
    """Publish each to its source queue; after the confirm, ack the original."""
    edited = exported.read(Path(options.file)) if options.file else None
    outcomes, replayed, hopeless = Outcomes(), set(), 0
    copies: dict = {}  # id() of a copy's properties -> its dead letter

    def settle(most_unanswered):
        for message, answer in channel.answers(most_unanswered):
            found = copies.pop(id(message.properties))
            if answer == ACK:
                dead_letters.basic_ack(found)
            outcomes.add(found, ANSWERS.get(answer, "refused"))

    with ConfirmedChannel(options.settings, GIVE_UP_S,
                          declare=lambda _: None) as channel:
        channel.confirm_delivery()
        dead_letters.on_idle = lambda: settle(0)
        try:
            for found in chosen(dead_letters, options, edited):
                headers, body = replay_headers(found.headers), found.body
                if edited is not None:
                    body = edited.pop(exported.key_of(found))
                key = found.message_id, found.source_queue, found.replays
                if key in replayed:
                    continue  # its replay failed already (a clock is late)
                replayed.add((*key[:2], found.replays + 1))
                if body != found.body:
                    headers[EDITED] = now()
                outcome = why_not(found, options)
                if outcome in (None, "would_replay"):
                    hopeless += found.error_message.startswith(ALWAYS)
                if outcome:
                    outcomes.add(found, outcome)
                    continue
                properties = copied_properties(found.properties, headers)
                copies[id(properties)] = found
                channel.basic_publish(
                    exchange="", routing_key=found.source_queue, body=body,
                    properties=properties, mandatory=True)
                settle(0 if options.rate else WINDOW - 1)
        finally:
            while channel.unanswered:  # an output that is gone stops no ack
                with suppress(console.OutputError):
                    settle(0)
    for key in edited or ():  # what is left in it was not found
        outcomes.add(key, "gone")
    code = outcomes.close(dead_letters.later)
    if hopeless:
        console.print_line(
            f"Fallan siempre, y volverán aquí: {hopeless}. Bórralos con"
            f' --discard --error "{ALWAYS}", o reenvía uno con --id.', "warn")
    return code


def why_not(found, options):
    if not found.source_queue:
        return "unknown_queue"
    if found.replays >= options.max_replays and not options.force:
        return "worn_out"
    return "would_replay" if options.dry_run else None


def discard(dead_letters, options, asked=None):
    """Ack without a copy; only what the question was about."""
    outcomes = Outcomes()
    for found in chosen(dead_letters, options, every=asked is not None):
        if asked is not None:
            asked[found.digest] -= 1
            if asked[found.digest] < 0:
                if not options.limit:  # with it, others were there before too
                    dead_letters.later += 1  # after the question
                continue
        if not options.dry_run:
            dead_letters.basic_ack(found)
        outcomes.add(
            found, "would_discard" if options.dry_run else "discarded")
    return outcomes.close(dead_letters.later)


def question(options):
    """What would be deleted, by digest; asked without a connection."""
    with (connect(options.settings) as connection,
          DeadLetters(connection, options.settings) as dead_letters):
        asked = Counter(one.digest for one in chosen(dead_letters, options))
    if asked and not cli.confirm("Mensajes fallidos que se borrarían para"
                                 f" siempre: {asked.total()}. ¿Borrarlos?"):
        raise KitError("No se borra nada. Para no preguntar: --yes.")
    return asked


def chosen(dead_letters, options, keys=None, every=False):
    """Those that the flags choose, every one or --limit of them; with `keys`,
    no others than these."""
    there = (found for found in dead_letters if wanted(found, options)
             and (keys is None or exported.key_of(found) in keys))
    limited = itertools.islice(there, None if every else options.limit)
    return cli.paced(limited, options.rate, dead_letters.sleep)


def wanted(found, options):
    by_id = options.id in (None, found.message_id) or (
        len(options.id) >= console.SHORT_ID
        and found.message_id.endswith(options.id))
    return (by_id and options.consumer in (None, found.consumer)
            and (options.error or "").lower() in
            f"{found.error_type}: {found.error_message}".lower()
            and found.failed_at >= (options.since or ""))


def watch(options):
    """Show each once, as they come; wait for a broker that is away."""
    options.full = options.full or bool(options.id)
    watcher = Watcher(options, lambda found: wanted(found, options))
    console.print_line(f"Mirando {DEAD_LETTER_QUEUE}. Ctrl-C para terminar."
                       + HEADING * (not options.full))
    keep_looking(watcher)
    console.print_line(f"mensajes fallidos vistos: {watcher.shown}."
                       " Mirar no ha quitado ninguno.")


def summary(dead_letters, options):
    counts = Counter((found.error_type, found.consumer)
                     for found in chosen(dead_letters, options))
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if console.json_mode:
        return console.print_json(*(
            {"error": error, "consumer": consumer, "count": number}
            for (error, consumer), number in most_first))
    rows = [("error", "consumidor", "mensajes"),
            *((*key, number) for key, number in most_first)]
    total = f"total: {counts.total()}" + came_later(dead_letters.later)
    for line in [*console.table(rows, right={2}), total]:
        console.print_line(line)


def export(dead_letters, options):
    number = exported.write(Path(options.export), chosen(dead_letters, options))
    console.print_line(
        f"mensajes fallidos copiados en {options.export}: {number}; siguen en"
        f" {DEAD_LETTER_QUEUE}{came_later(dead_letters.later)}.", "ok")


def main(argv=None):
    options = cli.dead_letter_options(__doc__, argv, tuple(CONSUMERS))
    if options.live:
        return watch(options)
    if options.export is not None and os.path.lexists(Path(options.export)):
        raise KitError(f"{options.export} ya existe: elige otro nombre.")
    act = (summary if options.summary else replay if options.replay
           else discard if options.discard else export)
    if options.discard and not (options.dry_run or options.yes):
        act = partial(discard, asked=question(options))
    with (connect(options.settings) as connection,
          DeadLetters(connection, options.settings) as dead_letters):
        cli.stop_on_signals(dead_letters)
        return act(dead_letters, options)


if __name__ == "__main__":
    cli.run(main)
