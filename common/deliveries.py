"""The I/O thread of a consumer: it talks to the broker while a handler takes as long as it likes.

pika's objects belong to this thread; the handler's side only queues calls for it (docs/facts.md, pika 4).
"""

import threading
import time
from collections import deque
from typing import NamedTuple

import pika
from pika.adapters.select_connection import IOLoop

from common import exchange
from common.config import Settings
from common.connection import Link, describe
from common.publishing import CONFIRMED, Message, Publisher

STOP_TIMEOUT_S = 3
RETURNED_PAUSE_S = 1
BIND_AGAIN_S = 5  # a binding that somebody removed is back so soon; the broker tells nobody


class Delivery(NamedTuple):
    """generation: the connection it came on; its tag means something there and nowhere else."""

    generation: int
    tag: int
    redelivered: bool
    properties: pika.BasicProperties
    body: bytes


class Deliveries(threading.Thread):
    """Consumes one queue; acks, and copies to retry and dead letter queues, go out on request.

    One connection consumes and another one publishes the copies, since an alarm blocks a
    publishing connection whole, acks included (docs/facts.md, broker 15).
    """

    def __init__(self, settings: Settings, consumer: str, prefetch: int, ephemeral: bool = False):
        super().__init__(name="entrada-salida", daemon=True)
        self.queue = exchange.CONSUMERS[consumer]
        self.error: Exception | None = None
        self.connected = False  # ever
        self.retry_queues = {delay: exchange.retry_queue(self.queue, delay) for delay in settings.retry_delays}
        self._settings, self._consumer, self._prefetch, self._ephemeral = settings, consumer, prefetch, ephemeral
        self._ioloop = IOLoop()
        self._inbox: deque[Delivery] = deque()
        self._arrived = threading.Event()
        self._link = Link(self._ioloop, settings, self._channel_opened, self._lost, self._refused)
        self._publisher = Publisher(self._ioloop, settings, self._declare, self._refused, quiet=True)
        self._channel = None
        self._consumer_tag = None
        self._generation = 0
        self._unsettled: dict[int, None] = {}  # delivery tags, oldest first
        self._copies_confirmed: list[Delivery] = []  # to be acked together
        self._stopping = self._stopped = False

    # What the handler's side calls.

    def take(self, most: int, timeout_s: float) -> list[Delivery]:
        """Whatever has arrived, up to `most`; [] after timeout_s. Raises what ended the I/O thread."""
        self._arrived.wait(timeout_s)  # not queue.SimpleQueue: docs/facts.md, Python
        self._arrived.clear()
        taken = [self._inbox.popleft() for _ in range(min(most, len(self._inbox)))]
        if self._inbox:
            self._arrived.set()
        if self.error:
            raise self.error
        return [delivery for delivery in taken if delivery.generation == self._generation]

    def ack(self, deliveries: list[Delivery]) -> None:
        self._call(lambda: self._settle(deliveries))

    def forward(self, delivery: Delivery, message: Message) -> None:
        """Publish a copy; only when the broker has confirmed it, ack the original."""
        self._call(lambda: self._publisher.send(message, lambda *answer: self._copied(delivery, *answer)))

    def stop(self, not_started: list[Delivery], timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop consuming, give back what was not started, wait for the copies under way, close."""
        self._stopping = True
        self._call(lambda: self._cancel(not_started, time.monotonic() + timeout_s - 1))
        self.join(timeout_s)

    def _call(self, function) -> None:
        self._ioloop.add_callback_threadsafe(function)

    # What runs in this thread.

    def run(self) -> None:
        self._link.open()
        while not self._stopped:
            try:
                self._ioloop.start()
            except Exception as error:  # whatever broke in the loop: new connections mend it
                self._publisher.link.restart(describe(error))
                self._link.restart(describe(error))

    def _channel_opened(self, channel) -> None:
        self._generation += 1
        self._unsettled.clear()
        self._channel = channel
        channel.add_on_cancel_callback(lambda _: self._link.restart(
            f"el broker canceló el consumo de {self.queue} (¿cola borrada?); se declara de nuevo"))
        self._declare(channel)
        if self._ephemeral:
            self._declare_ephemeral(channel)
        channel.basic_qos(prefetch_count=self._prefetch, callback=lambda _: self._consume(channel))

    def _declare(self, channel) -> None:
        exchange.declare(channel, self._settings, self._consumer)

    def _declare_ephemeral(self, channel) -> None:
        """Queues that live and die with this connection, under names that the broker gives."""
        channel.queue_declare(queue="", exclusive=True, callback=self._own_queue)

    def _own_queue(self, frame) -> None:
        self.queue = frame.method.queue
        exchange.bind(self._channel, self.queue)
        for delay in self._settings.retry_delays:
            self._channel.queue_declare(queue="", exclusive=True,
                                        arguments=exchange.retry_arguments(self.queue, delay),
                                        callback=lambda frame, delay=delay: self._own_retry_queue(delay, frame))

    def _own_retry_queue(self, delay: float, frame) -> None:
        self.retry_queues[delay] = frame.method.queue

    def _consume(self, channel) -> None:
        if self._stopping or channel is not self._channel:
            return
        generation = self._generation

        def arrived(_channel, method, properties, body):
            if generation != self._generation:  # given up, and yet it talks: all of it comes again
                return
            self._unsettled[method.delivery_tag] = None
            self._inbox.append(Delivery(generation, method.delivery_tag, method.redelivered, properties, body))
            if not self._arrived.is_set():
                self._arrived.set()

        self._consumer_tag = channel.basic_consume(
            self.queue, arrived, callback=lambda _: self._consuming(channel))

    def _consuming(self, channel) -> None:
        self.connected = True
        self._link.healthy()
        self._ioloop.call_later(BIND_AGAIN_S, lambda: self._bind_again(channel))

    def _bind_again(self, channel) -> None:
        if self._link.carries(channel) and not self._stopping:
            exchange.bind(channel, self.queue)
            self._ioloop.call_later(BIND_AGAIN_S, lambda: self._bind_again(channel))

    def _settle(self, deliveries: list[Delivery]) -> None:
        """Ack those that came on this connection, with one frame where no open tag lies before them."""
        tags = sorted(d.tag for d in deliveries if d.generation == self._generation and d.tag in self._unsettled)
        if not tags or not self._channel:
            return
        for tag in tags:
            del self._unsettled[tag]
        if not self._unsettled or next(iter(self._unsettled)) > tags[-1]:
            self._channel.basic_ack(tags[-1], multiple=True)
        else:
            for tag in tags:
                self._channel.basic_ack(tag)

    def _copied(self, delivery: Delivery, message: Message, outcome: str) -> None:
        if outcome == CONFIRMED:
            self._copies_confirmed.append(delivery)
            if len(self._copies_confirmed) == 1:
                self._ioloop.call_later(0, self._settle_copied)
            return
        if delivery.generation != self._generation:  # the original comes again
            return
        self._link.say(f"La cola {message.routing_key} no está: se declara de nuevo.", "warn")
        self._publisher.declare_again()
        self._ioloop.call_later(RETURNED_PAUSE_S, lambda: self._publisher.send(
            message, lambda *answer: self._copied(delivery, *answer)))

    def _settle_copied(self) -> None:
        """One ack for all that one confirm answered: a quorum queue forgets a flood of acks when the channel closes."""
        copied, self._copies_confirmed = self._copies_confirmed, []
        self._settle(copied)

    def _lost(self) -> None:
        self._channel = self._consumer_tag = None
        self._generation += 1  # what is still in the inbox will be delivered again

    def _refused(self, error: Exception) -> None:
        self.error = error

    def _cancel(self, not_started: list[Delivery], deadline: float) -> None:
        """nack, not close: on RabbitMQ 4.3 a closed channel would count as a failed delivery (docs/facts.md, broker 5)."""
        if self._channel and self._consumer_tag:
            self._channel.basic_cancel(self._consumer_tag, callback=lambda _: self._give_back(not_started))
        self._finish(deadline)

    def _give_back(self, not_started: list[Delivery]) -> None:
        for delivery in (*not_started, *self._inbox):
            if delivery.generation == self._generation and delivery.tag in self._unsettled:
                del self._unsettled[delivery.tag]
                self._channel.basic_nack(delivery.tag, requeue=True)
        self._consumer_tag = None

    def _finish(self, deadline: float) -> None:
        waiting = self._publisher.open_count() or self._copies_confirmed or self._channel and self._consumer_tag
        if waiting and time.monotonic() < deadline:
            self._ioloop.call_later(0.02, lambda: self._finish(deadline))
            return
        self._link.close()
        self._publisher.link.close()
        self._leave(deadline + 0.5)

    def _leave(self, deadline: float) -> None:
        if time.monotonic() < deadline and not (self._link.gone and self._publisher.link.gone):
            self._ioloop.call_later(0.02, lambda: self._leave(deadline))
            return
        self._stopped = True
        self._ioloop.stop()
