"""What the I/O thread does for a consumer: declare, consume, and hand over what arrives.

A new connection runs it all again. A delivery keeps its channel: where that is gone, its tag means
nothing, and the broker delivers the message again.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika

from common.config import Settings, endpoints
from common.connection import IoThread, Link
from common.retry import attempt_of

POLL_S = 0.2  # how soon Ctrl-C is noticed, on Windows too
BIND_AGAIN_S = 5
CANCEL_TIMEOUT_S = 2


@dataclass(slots=True)
class Delivery:
    """A message as it arrived. common/consuming.py sets event_id, as the body has it, and then what
    became of it, the line to print, why it failed, (queue, properties) of its copy."""

    channel: Any
    tag: int
    redelivered: bool
    properties: pika.BasicProperties
    body: bytes
    event_id: str
    attempt: int
    outcome: str = ""  # done, duplicate, skipped, retry, dead
    line: str = ""
    why: str = ""
    copy: tuple[str, pika.BasicProperties] | None = None


class Subscription:
    """declarations, bind: functions of a channel, for each new one."""

    def __init__(self, io: IoThread, settings: Settings, consumer: str):
        self.inbox: deque[Delivery] = deque()
        # Emptied then, as what came on a lost connection comes again.
        self.link = Link(io, settings, self._channel_opened, on_lost=self.inbox.clear)
        self._io, self._consumer, self._settings = io, consumer, settings
        self.declarations: list[Callable] = []
        self.bind: Callable = lambda channel: None
        self._arrived, self._cancelled = threading.Event(), threading.Event()
        self._queue, self._prefetch = "", 0

    # The main thread calls

    def start(self, queue: str, prefetch: int) -> None:
        self._queue, self._prefetch = queue, prefetch
        self._io.call(self.link.open)

    def next(self) -> Delivery | None:
        """The oldest delivery; None if there is none for POLL_S."""
        if not self.inbox:
            self._arrived.wait(POLL_S)
            self._arrived.clear()
            if self._io.error:
                raise self._io.error
        try:
            return self.inbox.popleft()
        except IndexError:  # none came, or the connection was lost just now
            return None

    def is_current(self, delivery: Delivery) -> bool:
        """Whether its channel is open: else the broker delivers it again."""
        return delivery.channel is self.link.channel

    def cancel(self) -> None:
        """Stop consuming; what has no ack returns to the queue at once."""
        self._io.call(self._cancel)
        self._cancelled.wait(CANCEL_TIMEOUT_S)

    # In the I/O thread

    def declare(self, channel) -> None:
        for declaration in self.declarations:
            declaration(channel)

    def _channel_opened(self, channel) -> None:
        self.declare(channel)
        if not self._queue:  # --ephemeral: "" declares a new queue, and means it from then on
            channel.queue_declare("", exclusive=True)
        self._bind(channel)
        channel.add_on_cancel_callback(lambda _: self.link.restart(
            f"el broker canceló el consumo de {self._queue} (¿cola borrada?)"))
        channel.basic_qos(prefetch_count=self._prefetch)
        channel.basic_consume(self._queue, self._on_message, callback=self._on_consuming)

    def _on_consuming(self, _) -> None:
        if not self.link.connected_at:
            self.link.print_line(f"{self._consumer}: escucha {self._queue or 'una cola efímera'} en"
                                 f" {endpoints(self._settings.urls)}. Ctrl-C para terminar.")
        self.link.healthy()

    def _bind(self, channel) -> None:
        """Again and again: the broker tells nobody that a binding was removed."""
        if channel is self.link.channel:
            self.bind(channel)
            self._io.ioloop.call_later(BIND_AGAIN_S, partial(self._bind, channel))

    def _on_message(self, channel, method, properties, body) -> None:
        attempt = attempt_of(properties.headers) if properties.headers else 1
        self.inbox.append(Delivery(channel, method.delivery_tag, method.redelivered, properties,
                                   body, str(properties.message_id or ""), attempt))
        if not self._arrived.is_set():  # set() takes a lock
            self._arrived.set()

    def ack(self, deliveries: list[Delivery], multiple: bool) -> None:
        """multiple: one frame for all, as nothing before the last of them is still open."""
        for delivery in deliveries[-1:] if multiple else deliveries:
            if delivery.channel is self.link.channel:
                delivery.channel.basic_ack(delivery.tag, multiple)

    def _cancel(self) -> None:
        """A nack, as RabbitMQ 4.3 counts a closed channel as a failure (docs/facts.md, broker 5);
        cancel first, as acks may get lost right before a close (docs/facts.md, broker 26)."""
        channel = self.link.channel

        def cancelled(_) -> None:
            channel.basic_nack(0, multiple=True, requeue=True)  # 0: all that have no ack
            self._cancelled.set()

        if channel and channel.consumer_tags:
            channel.basic_cancel(channel.consumer_tags[0], callback=cancelled)
        else:
            self._cancelled.set()
