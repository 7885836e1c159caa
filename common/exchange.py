"""The topology, once, as data: the exchange, every queue, every name.

Each argument has its reason on the page docs/topologia.md.
"""

import re
from dataclasses import dataclass

from common.config import Settings

EXCHANGE = "user_events"
DEAD_LETTER_QUEUE = "dead_letter_queue"
CONSUMERS = {"email": "email_queue", "loyalty": "loyalty_queue", "analytics": "analytics_queue"}

# For what crash_loop.py cannot count, and far above what clean stops use up. Without it RabbitMQ 4
# takes 20, and -1 loses messages on 3.10 (docs/facts.md, broker 4 and 5).
DELIVERY_LIMIT = 100
DEAD_LETTER_DELIVERY_LIMIT = 1_000_000
# At a TTL or limit a message moves on with a confirm; quorum queues only (docs/facts.md, broker 1).
AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


@dataclass(frozen=True)
class Queue:
    name: str
    arguments: dict
    bound: bool = False  # the exchange routes to it


def retry_queue(queue: str, delay_s: float) -> str:
    """`email_queue`, 5 -> `email_queue.retry.5s`; 0.5 -> `email_queue.retry.500ms`."""
    milliseconds = round(delay_s * 1000)
    if milliseconds % 1000:
        return f"{queue}.retry.{milliseconds}ms"
    return f"{queue}.retry.{milliseconds // 1000}s"


def retry_delay_s(queue: str) -> float | None:
    """`email_queue.retry.500ms` -> 0.5; None for what is not a consumer's retry queue."""
    match = re.fullmatch(rf"(?:{'|'.join(CONSUMERS.values())})\.retry\.(\d{{1,9}})(m?s)", queue)
    return match and int(match[1]) / (1000 if match[2] == "ms" else 1)


def announcement(settings: Settings) -> str:
    """SQL for a consumer's file, by which setup_queues.py finds its retry queues."""
    rows = ", ".join(f"({delay})" for delay in settings.retry_delays)
    return ("CREATE TABLE IF NOT EXISTS retry_delays (delay_s REAL PRIMARY KEY);"
            f" INSERT OR IGNORE INTO retry_delays VALUES {rows};")


def work_arguments(settings: Settings) -> dict:
    """A consumer's own queue: what the broker gives up on goes to the dead letters."""
    return _typed(settings, dead_lettering(DEAD_LETTER_QUEUE),
                  AT_LEAST_ONCE | {"x-delivery-limit": DELIVERY_LIMIT})


def retry_arguments(settings: Settings, queue: str, delay_s: float) -> dict:
    """Messages wait for the TTL, then return to `queue`. One fixed delay for each retry queue, as
    expiry happens at a queue's head only (docs/facts.md, broker 8)."""
    ttl = {"x-message-ttl": round(delay_s * 1000)}
    return _typed(settings, ttl | dead_lettering(queue), AT_LEAST_ONCE)


def dead_letter_arguments(settings: Settings) -> dict:
    return _typed(settings, {}, {"x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT})


def dead_lettering(queue: str) -> dict:
    """Through the default exchange, by the target's own name (docs/facts.md, broker 7)."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


def _typed(settings: Settings, arguments: dict, of_quorum: dict) -> dict:
    """A quorum queue, or a classic one, which knows neither of_quorum nor a leader."""
    if settings.queue_type == "classic":
        return {"x-queue-type": "classic", **arguments}
    return {"x-queue-type": "quorum", "x-queue-leader-locator": "balanced",
            **arguments, **of_quorum}


def topology(settings: Settings, *queues: str) -> list[Queue]:
    """The dead letter queue and what these consumers' queues need; of all consumers, if none."""
    found = [Queue(DEAD_LETTER_QUEUE, dead_letter_arguments(settings))]
    for queue in queues or CONSUMERS.values():
        found.append(Queue(queue, work_arguments(settings), bound=True))
        found += [Queue(retry_queue(queue, delay), retry_arguments(settings, queue, delay))
                  for delay in dict.fromkeys(settings.retry_delays)]
    return found


def declare(channel, settings: Settings, *queues: str) -> None:
    """Declare the exchange and that topology; a queue with other arguments is refused (406). An
    asynchronous channel does not wait here: the broker keeps the order of what it is sent."""
    declare_exchange(channel)
    for queue in topology(settings, *queues):
        declare_queue(channel, queue)
        if queue.bound:
            channel.queue_bind(queue=queue.name, exchange=EXCHANGE, routing_key="")


def declare_exchange(channel) -> None:
    channel.exchange_declare(exchange=EXCHANGE, exchange_type="fanout", durable=True)


def declare_queue(channel, queue: Queue) -> None:
    channel.queue_declare(queue=queue.name, durable=True, arguments=queue.arguments)
