"""What the broker has of the topology: its queues, their depths, and what differs from ours."""

from dataclasses import dataclass

from pika.exceptions import ChannelClosedByBroker

from common.config import Settings
from common.exchange import EXCHANGE, Queue, declare_exchange, declare_queue, difference, topology


@dataclass(frozen=True)
class Found:
    """ready excludes unacked messages; both numbers are None for a queue that does not exist."""

    queue: Queue
    ready: int | None
    consumers: int | None


def look(connection, settings: Settings) -> list[Found]:
    """Return each queue of the topology as it is now. Change nothing."""
    return [Found(queue, *(depth(connection, queue.name) or (None, None)))
            for queue in topology(settings)]


def depth(connection, queue: str) -> tuple[int, int] | None:
    """Return (messages ready, consumers) of a queue; None if it does not exist."""
    answer = _ask(connection, lambda channel: channel.queue_declare(queue=queue, passive=True))
    if isinstance(answer, str):
        return None
    return answer.method.message_count, answer.method.consumer_count


def has_exchange(connection) -> bool:
    answer = _ask(connection, lambda channel: channel.exchange_declare(EXCHANGE, passive=True))
    return not isinstance(answer, str)


def differences(connection, settings: Settings) -> list[str]:
    """Return a Spanish sentence for each thing that is missing or declared differently.

    Declaring an existing queue changes nothing but a missing binding, which AMQP cannot show.
    """
    found = [_refusal(connection, declare_exchange) if has_exchange(connection)
             else f"falta el exchange {EXCHANGE}"]
    for state in look(connection, settings):
        found.append(f"falta la cola {state.queue.name}" if state.ready is None else
                     _refusal(connection, lambda channel: declare_queue(channel, state.queue)))
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
