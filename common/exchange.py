"""The topology, once, as data: the exchange, every queue, every name.

Each argument has its reason on the page docs/topologia.md.
"""

import re
from dataclasses import dataclass

from common.config import ConfigError, Settings

EXCHANGE = "user_events"
DEAD_LETTER_QUEUE = "dead_letter_queue"
CONSUMERS = {"email": "email_queue", "loyalty": "loyalty_queue", "analytics": "analytics_queue"}

# The broker's backstop, far above what graceful stops burn; RabbitMQ 4 would take 20,
# and -1 loses messages on 3.10 (docs/facts.md, broker 4 and 5).
DELIVERY_LIMIT = 100
DEAD_LETTER_DELIVERY_LIMIT = 1_000_000


@dataclass(frozen=True)
class Queue:
    """bound: whether the fanout exchange feeds it."""

    name: str
    arguments: dict
    bound: bool = False


def retry_queue(queue: str, delay_s: float) -> str:
    """`email_queue`, 5 -> `email_queue.retry.5s`; 0.5 -> `email_queue.retry.500ms`."""
    milliseconds = round(delay_s * 1000)
    if milliseconds % 1000:
        return f"{queue}.retry.{milliseconds}ms"
    return f"{queue}.retry.{milliseconds // 1000}s"


def topology(settings: Settings, consumer: str | None = None) -> list[Queue]:
    """Every queue of the kit, or those that one consumer needs."""
    queues = [Queue(DEAD_LETTER_QUEUE, _typed(settings, {}, DEAD_LETTER_DELIVERY_LIMIT))]
    for queue in [CONSUMERS[consumer]] if consumer else CONSUMERS.values():
        dead = dead_lettering(DEAD_LETTER_QUEUE)
        queues.append(Queue(queue, _typed(settings, dead, DELIVERY_LIMIT), bound=True))
        queues += [Queue(retry_queue(queue, delay), _typed(settings, retry_arguments(queue, delay)))
                   for delay in dict.fromkeys(settings.retry_delays)]
    return queues


def retry_arguments(queue: str, delay_s: float) -> dict:
    """One fixed delay for all messages of a queue: expiry happens at its head only (docs/facts.md, broker 8)."""
    return {"x-message-ttl": round(delay_s * 1000), **dead_lettering(queue)}


def dead_lettering(queue: str) -> dict:
    """Through the default exchange, by the target's own name (docs/facts.md, broker 7)."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


def _typed(settings: Settings, arguments: dict, delivery_limit: int | None = None) -> dict:
    """The same queue, as a quorum or a classic one; only the former dead-letters at least once (docs/facts.md, broker 1)."""
    if settings.queue_type == "classic":
        return {"x-queue-type": "classic", **arguments}
    typed = {"x-queue-type": "quorum", "x-queue-leader-locator": "balanced", **arguments}
    if "x-dead-letter-exchange" in arguments:
        typed |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    if delivery_limit:
        typed["x-delivery-limit"] = delivery_limit
    return typed


def declare(channel, settings: Settings, consumer: str | None = None) -> None:
    """Declare it all, or what one consumer needs; what is there already stays as it is.

    On an asynchronous channel this returns at once, and what is sent next waits its turn.
    """
    declare_exchange(channel)
    for queue in topology(settings, consumer):
        declare_queue(channel, queue)


def declare_exchange(channel) -> None:
    channel.exchange_declare(exchange=EXCHANGE, exchange_type="fanout", durable=True)


def declare_queue(channel, queue: Queue) -> None:
    channel.queue_declare(queue=queue.name, durable=True, arguments=queue.arguments)
    if queue.bound:
        bind(channel, queue.name)


def bind(channel, queue: str) -> None:
    channel.queue_bind(queue=queue, exchange=EXCHANGE, routing_key="")


def explain_refusal(text: str) -> ConfigError:
    """Turn the broker's 406 into words: which queue, which argument, what to do."""
    return ConfigError(f"{difference(text)}. Usa los ajustes con los que se creó (QUEUE_TYPE), o bórralo todo y"
                       " créalo de nuevo: python setup_queues.py --reset (con --force, también lo que tenga mensajes).")


def difference(text: str) -> str:
    """What the broker says of an inequivalent declaration, in Spanish and short."""
    match = re.search(r"inequivalent arg '(.+)' for (?:queue|exchange) '(.+)' in vhost .*: received (.*)"
                      r" but current is (.*)", text, re.DOTALL)
    if not match:
        return f"El broker no acepta la definición: {text}"
    argument, name, wanted, current = (re.sub(r"the value (.*) of type .*", r"\1", part) for part in match.groups())
    has = f"sin {argument}" if current == "none" else f"con {argument} = {current}"
    return f"{name} ya existe {has}, y estos ajustes {'no lo ponen' if wanted == 'none' else f'piden {wanted}'}"
