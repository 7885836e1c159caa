"""Publishing with confirms: many messages under way at once, each answered for.

Source: https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import pika

from common.config import Settings
from common.connection import IoThread, Link
from common.events import Event
from common.exchange import declare
from common.outbox import Outbox
from common.patches import one_write

WINDOW = 1000  # messages without an answer, at most
BATCH = 200  # messages written to the outbox in one transaction
BATCH_S = 0.05  # a smaller batch goes out after this time
AGAIN_S = 0.5
MAX_NACKS = 20  # of one message: perhaps only this channel refuses it (docs/facts.md, broker 24)
CONFIRM_TIMEOUT_S = 10  # older: a new connection (docs/facts.md, broker 13)
CLOSE_TIMEOUT_S = 2
POLL_S = 0.1

ACK, NACK, RETURN, TIMEOUT = "ack", "nack", "return", "timeout"


def properties(event: Event, delivery_mode: int, headers: dict | None = None):
    """The AMQP properties of an event; delivery_mode 1 is transient, 2 persistent."""
    return pika.BasicProperties(
        content_type="application/cloudevents+json", message_id=event.id, type=event.type,
        app_id="ecomarket", timestamp=int(time.time()), delivery_mode=delivery_mode,
        headers=headers)


@dataclass(slots=True, eq=False)
class Message:
    """sent_at: of time.monotonic()."""

    id: str
    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    mandatory: bool
    sent_at: float = 0.0
    nacks: int = 0
    returned: bool = False


class ConfirmedChannel:
    """A channel in confirm mode on a connection of its own, which comes back; what has no answer by
    then is sent again. With an outbox, a message is on disk before it is sent, until its ack.

    declare(channel) runs on each new channel, before anything is published. give_up(channel) says
    when to wait no longer. unanswered: by id(), the messages without an answer.
    """

    def __init__(self, io: IoThread, settings: Settings, declare: Callable, give_up: Callable,
                 outbox: Outbox | None = None, quiet: bool = False):
        self.answered_at, self.late_acks = time.monotonic(), 0
        self._io, self._declare, self._give_up, self._outbox = io, declare, give_up, outbox
        self._batch: list[Message] = []  # neither in the outbox nor sent
        self._acked: list[str] = []  # still in the outbox
        self._sent_at = 0.0
        self.unanswered: dict[int, Message] = {}
        self._answers: deque[tuple[Message, str]] = deque()
        self._arrived = threading.Event()
        # In the I/O thread:
        self._link = Link(io, settings, self._channel_opened, self._lost, quiet)
        self._channel: Any = None
        self._waiting: deque[Message] = deque()
        self._unconfirmed: dict[int, Message] = {}  # by delivery tag, oldest first
        self._last_tag = 0
        io.call(self._watch)

    def confirm_delivery(self) -> None:
        """Open the channel; the broker answers for each message on it."""
        self._io.call(self._link.open)

    def basic_publish(self, exchange: str, routing_key: str, body: bytes,
                      properties: pika.BasicProperties, mandatory: bool) -> None:
        """Publish, with the batch that this message completes."""
        message = Message(str(properties.message_id), exchange, routing_key, body, properties,
                          mandatory)
        if not self.unanswered:
            self.answered_at = time.monotonic()
        self.unanswered[id(message)] = message
        self._batch.append(message)
        if len(self._batch) >= BATCH or time.monotonic() - self._sent_at > BATCH_S:
            self._send_batch()

    def publish_again(self, message: Message) -> None:
        """After a nack or a return, with a pause; what was returned, to a queue declared anew."""
        self.unanswered[id(message)] = message
        self._io.call(partial(self._io.ioloop.call_later, AGAIN_S, partial(self._again, message)))

    def answers(self, most_unanswered: int) -> Iterator[tuple[Message, str]]:
        """(message, answer) as they come, until only so many messages have no answer."""
        if most_unanswered < len(self._batch):
            self._send_batch()
        while True:
            yield from self._new_answers()
            if self.unanswered and self._give_up(self):
                self._answers.extend((message, TIMEOUT) for message in self.unanswered.values())
            elif len(self.unanswered) <= most_unanswered:
                return
            else:
                self._arrived.wait(POLL_S)
                self._arrived.clear()
                self._io.check()

    def close(self) -> None:
        """Take the last answers; what has no ack stays in the outbox."""
        self.late_acks = sum(answer == ACK for _, answer in self._new_answers())
        self._write_batch()

    def _new_answers(self) -> Iterator[tuple[Message, str]]:
        while self._answers:
            message, answer = self._answers.popleft()
            if self.unanswered.pop(id(message), None):
                if answer == ACK:
                    self._acked.append(message.id)
                yield message, answer

    def _send_batch(self) -> None:
        self._sent_at = time.monotonic()
        self._io.call(partial(self._send, self._write_batch()))

    def _write_batch(self) -> list[Message]:
        if self._outbox and (self._batch or self._acked):
            self._outbox.write([(message.id, message.body) for message in self._batch],
                               self._acked)
        batch, self._batch, self._acked = self._batch, [], []
        return batch

    # In the I/O thread

    def _send(self, messages: list[Message]) -> None:
        self._waiting.extend(messages)
        self._link.open()
        self._pump()

    def _again(self, message: Message) -> None:
        if message.returned and self._channel:
            self._declare(self._channel)
        self._send([message])

    def _pump(self) -> None:
        if not self._channel or not self._waiting:
            return
        with one_write(self._channel.connection):
            while self._waiting and len(self._unconfirmed) < WINDOW:
                message = self._waiting.popleft()
                if id(message) not in self.unanswered:  # given up
                    continue
                message.sent_at, message.returned = time.monotonic(), False
                self._last_tag += 1
                self._unconfirmed[self._last_tag] = message
                self._channel.basic_publish(message.exchange, message.routing_key, message.body,
                                            message.properties, message.mandatory)

    def _channel_opened(self, channel) -> None:
        self._declare(channel)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(lambda frame: self._on_confirm(channel, frame.method),
                                 callback=lambda _: self._ready(channel))

    def _ready(self, channel) -> None:
        if channel is self._link.channel:
            self._channel, self._last_tag = channel, 0
            self._link.healthy()
            self._pump()

    def _on_return(self, channel, method, properties, _body) -> None:
        """No queue took it; its ack comes right behind (docs/facts.md, broker 12)."""
        for message in self._unconfirmed.values() if channel is self._channel else ():
            if message.id == str(properties.message_id) and not message.returned and (
                    message.routing_key == method.routing_key):
                message.returned = True
                return

    def _on_confirm(self, channel, method) -> None:
        """An ack or a nack; on another channel the tag belongs to another message."""
        if channel is not self._channel:
            return
        tags = [method.delivery_tag]
        if method.multiple:  # all up to and including this one
            tags = list(takewhile(lambda tag: tag <= method.delivery_tag, self._unconfirmed))
        messages = [self._unconfirmed.pop(tag) for tag in tags if tag in self._unconfirmed]
        if isinstance(method, pika.spec.Basic.Nack):
            for message in messages:
                message.nacks += 1
                self._answers.append((message, NACK))
            if any(message.nacks % MAX_NACKS == 0 for message in messages):
                self._link.restart(f"el broker rechazó un mensaje {MAX_NACKS} veces")
        else:
            self.answered_at = time.monotonic()
            self._answers.extend((message, RETURN if message.returned else ACK)
                                 for message in messages)
        self._arrived.set()
        self._pump()

    def _lost(self) -> None:
        self._channel = None
        self._waiting.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()

    def _watch(self) -> None:
        """A broker that is silent gets a new connection; an alarm is no silence."""
        oldest = next(iter(self._unconfirmed.values()), None)
        if oldest and not self._link.blocked and (
                time.monotonic() - oldest.sent_at > CONFIRM_TIMEOUT_S):
            self._link.restart(f"el broker no confirmó en {CONFIRM_TIMEOUT_S} s")
        self._io.ioloop.call_later(1, self._watch)


@contextmanager
def confirmed_channel(settings: Settings, timeout_s: float, outbox: Outbox | None = None):
    """Level 3's channel. All queues are declared first, as a confirm speaks only for those that
    exist (docs/facts.md, broker 11). Gives up after timeout_s without an answer."""
    io = IoThread()
    channel = ConfirmedChannel(
        io, settings, lambda channel: declare(channel, settings),
        lambda channel: time.monotonic() - channel.answered_at > timeout_s, outbox)
    io.start()
    try:
        yield channel
    finally:
        io.stop(CLOSE_TIMEOUT_S)
        channel.close()
