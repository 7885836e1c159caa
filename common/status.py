"""What the broker has of the topology: which queues, how deep, and what differs from ours."""

from dataclasses import dataclass

from pika.exceptions import ChannelClosedByBroker

from common.config import Settings
from common.exchange import EXCHANGE, Queue, declare_exchange, declare_queue, difference, topology


@dataclass(frozen=True)
class Found:
    """ready and consumers are None for a queue that is not there; ready leaves out what is unacknowledged."""

    queue: Queue
    ready: int | None
    consumers: int | None


def look(connection, settings: Settings) -> list[Found]:
    """Each queue of the topology as it is now; changes nothing."""
    return [_look(connection, queue) for queue in topology(settings)]


def _look(connection, queue: Queue) -> Found:
    ready, consumers = depth(connection, queue.name) or (None, None)
    return Found(queue, ready, consumers)


def depth(connection, queue: str) -> tuple[int, int] | None:
    """(messages ready, consumers) of a queue; None if it is not there."""
    answer = _ask(connection, lambda channel: channel.queue_declare(queue=queue, passive=True))
    return None if isinstance(answer, str) else (answer.method.message_count, answer.method.consumer_count)


def has_exchange(connection) -> bool:
    return not isinstance(_ask(connection, lambda channel: channel.exchange_declare(EXCHANGE, passive=True)), str)


def differences(connection, settings: Settings) -> list[str]:
    """One Spanish sentence for everything that is missing or was declared otherwise; changes nothing.

    AMQP shows no bindings: declaring everything again, which is harmless, puts them right.
    """
    found = []
    if not has_exchange(connection):
        found.append(f"falta el exchange {EXCHANGE}")
    else:
        found += _refusal(connection, declare_exchange)
    for state in look(connection, settings):
        if state.ready is None:
            found.append(f"falta la cola {state.queue.name}")
        else:  # it is there, so that declaring it creates nothing and compares all
            found += _refusal(connection, lambda channel, queue=state.queue: declare_queue(channel, queue))
    return found


def _refusal(connection, declare) -> list[str]:
    answer = _ask(connection, declare)
    return [difference(answer)] if isinstance(answer, str) else []


def _ask(connection, question):
    """The answer, or the broker's refusal as text: it closes the channel, so each question has its own."""
    channel = connection.channel()
    try:
        answer = question(channel)
    except ChannelClosedByBroker as refusal:
        return refusal.reply_text
    channel.close()
    return answer
