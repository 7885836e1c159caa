"""What the broker has of the topology: its queues, their depths, and what differs from ours."""

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial

from pika.exceptions import ChannelClosedByBroker

from common import exchange
from common.config import Settings
from common.problems import difference
from common.views.management import Management


@dataclass(frozen=True)
class Found:
    """A queue and its messages; ready and consumers are None if it does not exist, unacked if the
    management API did not tell. other: not of these RETRY_DELAYS."""

    queue: exchange.Queue
    ready: int | None
    consumers: int | None
    unacked: int | None = None
    other: bool = False

    @property
    def is_retry(self) -> bool:
        return "x-message-ttl" in self.queue.arguments

    @property
    def messages(self) -> int:
        return (self.ready or 0) + (self.unacked or 0)


def look(connection, settings: Settings, management: Management) -> list[Found]:
    """Each queue of the topology as it is now, and the retry queues that there are of other
    RETRY_DELAYS: the management API lists them, and consumers announce them. Change nothing."""
    unacked = management.queues()
    others = {exchange.retry_delay_s(name) for name in unacked} | _announced(settings)
    wider = replace(settings, retry_delays=(
        *settings.retry_delays, *sorted(filter(None, others))))
    names = {queue.name for queue in exchange.topology(settings)}
    found = []
    for queue in exchange.topology(wider):
        ready, consumers = depth(connection, queue.name) or (None, None)
        found.append(Found(queue, ready, consumers, unacked.get(queue.name),
                           other=queue.name not in names))
    return [state for state in found if state.ready is not None or not state.other]


def _announced(settings: Settings) -> set[float | None]:
    """The delays that consumers of this STATE_DIR have used (exchange.announcement())."""
    delays: set[float | None] = set()
    for consumer in exchange.CONSUMERS:
        file = settings.state_dir / f"{consumer}.db"
        with suppress(sqlite3.Error), closing(
                sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True)) as db:  # ro would leave -shm
            delays |= {delay for [delay] in db.execute("SELECT delay_s FROM retry_delays")}
    return delays


def depth(connection, queue: str) -> tuple[int, int] | None:
    """Return (messages ready, consumers) of a queue; None if it does not exist."""
    answer = _ask(connection, lambda channel: channel.queue_declare(queue=queue, passive=True))
    found = None if isinstance(answer, str) else answer.method
    return found and (found.message_count, found.consumer_count)


def has_exchange(connection) -> bool:
    answer = _ask(connection, lambda channel: channel.exchange_declare(
        exchange.EXCHANGE, passive=True))
    return not isinstance(answer, str)


def differences(connection, settings: Settings, management: Management) -> list[str]:
    """Return a Spanish sentence for each thing that is missing, declared differently or unexpected.

    A missing binding is none of them: AMQP cannot show it. setup_queues.py makes it.
    """
    found = [_refusal(connection, exchange.declare_exchange) if has_exchange(connection)
             else f"falta el exchange {exchange.EXCHANGE}"]
    for state in look(connection, settings, management):
        if state.ready is None:
            found.append(f"falta la cola {state.queue.name}")
        elif state.other:
            found.append(f"{state.queue.name} (listos: {state.ready}) es de otro RETRY_DELAYS")
        else:
            found.append(_refusal(connection, partial(exchange.declare_queue, queue=state.queue)))
    return [sentence for sentence in found if sentence]


def _refusal(connection, declaration) -> str | None:
    answer = _ask(connection, declaration)
    return difference(answer) if isinstance(answer, str) else None


def _ask(connection, question):
    """Return the answer, or the broker's refusal as text. A refusal closes the channel, so each
    question has a channel of its own."""
    channel = connection.channel()
    try:
        answer = question(channel)
    except ChannelClosedByBroker as refusal:
        return refusal.reply_text
    channel.close()
    return answer
