"""Publica eventos UsuarioCreado con tres niveles de garantía.

  python events_publisher_levels.py --level 1 --nombre Juan --email juan@eco.com

  nivel 1, simple       se envía; nadie contesta
  nivel 2, persistente  se pide al broker que lo guarde; nadie contesta
  nivel 3, confirmado   el broker contesta; si no, se envía de nuevo

El nivel 3 anota cada evento en STATE_DIR antes de enviarlo, hasta su
confirmación. Lo que un proceso dejó anotado, aunque muriera, se envía con
  python events_publisher_levels.py --resume

Verás una línea por evento:
  enviado, sin confirmación · id … · Juan
"""

import time
from contextlib import contextmanager
from itertools import takewhile

from common import cli
from common.confirms import ACK, NACK, RETURN, WINDOW
from common.connection import connect
from common.events import check_user, encode, user_created
from common.exchange import EXCHANGE
from common.outbox import Outbox
from common.publishing import ConfirmedChannel, properties
from common.views.tally import Tally


def level_1_simple(channel, events):
    """Publish and hope: nobody answers. A restarted broker has lost it, unless
    its queues are quorum queues, which write everything to disk."""
    for event in events:
        channel.basic_publish(
            exchange=EXCHANGE, routing_key="", body=encode(event),
            properties=properties(event, delivery_mode=1))
        yield event.id, "sent"


def level_2_persistent(channel, events):
    """delivery_mode 2: any durable queue writes it to disk. Nobody answers."""
    for event in events:
        channel.basic_publish(
            exchange=EXCHANGE, routing_key="", body=encode(event),
            properties=properties(event, delivery_mode=2))
        yield event.id, "sent"


def level_3_confirmed(channel, events):
    """The broker answers for each event; up to WINDOW of them are under way."""
    channel.confirm_delivery()
    for event in events:
        channel.basic_publish(
            exchange=EXCHANGE, routing_key="", body=encode(event),
            properties=properties(event, delivery_mode=2),
            mandatory=True)  # returns what no queue takes
        yield from answered(channel, most_unanswered=WINDOW)
    yield from answered(channel, most_unanswered=0)


def answered(channel, most_unanswered):
    """(id, outcome) of each answer, until at most so many events have none."""
    for message, answer in channel.answers(most_unanswered):
        if answer == ACK:  # every bound queue has it; a quorum queue, on disk
            yield message.id, "confirmed"
        elif answer == RETURN:  # no queue is bound: nobody has it
            yield message.id, "returned"
        elif answer == NACK:  # a queue cannot take it now
            channel.publish_again(message)
        else:  # --timeout seconds without an ack or a return: nobody knows
            yield message.id, "unconfirmed"


LEVELS = {1: level_1_simple, 2: level_2_persistent, 3: level_3_confirmed}


def main(argv=None):
    options = cli.publisher_options(__doc__, argv)
    if not options.resume:
        check_user(options.nombre, options.email)
    tally = Tally(options)
    with tally, opened(options, tally) as (channel, sleep, events):
        until_silence = takewhile(  # no new event after an unconfirmed one
            lambda _: not tally.counts["unconfirmed"], events)
        paced = cli.paced(until_silence, options.rate, sleep)
        for event_id, outcome in LEVELS[options.level](channel, paced):
            tally.add(event_id, outcome, options.nombre)
    return tally.exit_code()


@contextmanager
def opened(options, tally):
    """A channel, how to pause on its connection, and the events to publish."""
    new = (user_created(options.nombre, options.email)
           for _ in range(options.count))
    if options.level < 3:
        with connect(options.settings) as connection:
            channel = connection.channel()
            channel.exchange_declare(
                exchange=EXCHANGE, exchange_type="fanout", durable=True)
            yield channel, connection.sleep, new
        return
    outbox = Outbox(options.settings.state_dir)
    if options.resume:
        options.count = outbox.count()
    with ConfirmedChannel(
            options.settings, options.timeout, outbox) as channel:
        tally.channel, tally.outbox = channel, outbox
        yield channel, time.sleep, outbox.left() if options.resume else new


if __name__ == "__main__":
    cli.run(main)
