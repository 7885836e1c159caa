"""What the I/O thread does for a publisher: publish, match the broker's answers, send again.

Source: https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pika

from common.config import Settings
from common.connection import IoThread, Link
from common.patches import one_write

WINDOW = 1000  # messages without an answer, at most
CONFIRM_TIMEOUT_S = 10  # without an ack: a new connection (docs/facts.md, broker 13 and 24)

ACK, NACK, RETURN, TIMEOUT = "ack", "nack", "return", "timeout"


@dataclass(slots=True, eq=False)
class Message:
    """sent_at: by time.monotonic(); a nack does not renew it, so ten seconds of them are late too.
    answer: NACK or RETURN, until it is sent again."""

    id: str
    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    mandatory: bool
    sent_at: float = 0.0
    answer: str = ""


class Publisher:
    """Publishes on a link of its own; what has no answer when that is lost is sent again.

    declare(channel) runs on each new channel, before anything is published. The main thread puts
    a message in `unanswered` before it is sent, and removes it with its answer, or gives it up."""

    def __init__(self, io: IoThread, settings: Settings, declare: Callable, quiet: bool):
        self.link = Link(io, settings, self._channel_opened, self._lost, quiet)
        self.unanswered: dict[Message, None] = {}  # a set that keeps its order
        self.answers: deque[tuple[Message, str]] = deque()  # for the main thread to take
        self.arrived = threading.Event()
        self._ioloop, self._declare = io.ioloop, declare
        self._channel: Any = None
        self._waiting: deque[Message] = deque()
        self._by_tag: dict[int, Message] = {}  # sent, without an answer; oldest first
        self._last_tag = 0

    def send(self, messages: list[Message]) -> None:
        self._waiting.extend(messages)
        self.link.open()
        self._pump()

    def send_again(self, message: Message) -> None:
        if message.answer == RETURN and self._channel and self.link.channel:
            self.link.print_line(f"La cola {message.routing_key} no está: se declara de nuevo.",
                                 "warn")
            self._declare(self._channel)
        self.send([message])

    def _pump(self) -> None:
        if not self._waiting or not self._channel or not self.link.channel:  # none, or closing
            return
        with one_write(self._channel.connection):
            while self._waiting and len(self._by_tag) < WINDOW:
                message = self._waiting.popleft()
                if message not in self.unanswered:  # given up
                    continue
                if message.answer != NACK:
                    message.sent_at = time.monotonic()
                message.answer = ""
                self._last_tag += 1
                self._by_tag[self._last_tag] = message
                self._channel.basic_publish(message.exchange, message.routing_key, message.body,
                                            message.properties, message.mandatory)

    def _channel_opened(self, channel) -> None:
        self._declare(channel)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(lambda frame: self._on_confirm(channel, frame.method),
                                 callback=lambda _: self._ready(channel))

    def _ready(self, channel) -> None:
        if channel is self.link.channel:
            self._channel, self._last_tag = channel, 0
            self.link.healthy()
            self._pump()
            self._watch(channel)

    def _on_return(self, channel, method, properties, _body) -> None:
        """No queue took it; its ack comes right after it (docs/facts.md, broker 12)."""
        for message in self._by_tag.values() if channel is self._channel else ():
            if message.id == str(properties.message_id) and not message.answer and (
                    message.routing_key == method.routing_key):
                message.answer = RETURN
                return

    def _on_confirm(self, channel, method) -> None:
        """An ack or a nack; on another channel the tag belongs to another message."""
        if channel is not self._channel:
            return
        tags = [method.delivery_tag]
        if method.multiple:  # all up to and including this one
            tags = list(takewhile(lambda tag: tag <= method.delivery_tag, self._by_tag))
        messages = [self._by_tag.pop(tag) for tag in tags if tag in self._by_tag]
        refused = isinstance(method, pika.spec.Basic.Nack)
        for message in messages:
            if refused:
                message.answer = NACK
            self.answers.append((message, message.answer or ACK))
        self.arrived.set()
        if refused and any(self._is_late(message) for message in messages):
            self.link.restart(f"el broker rechaza un mensaje desde hace {CONFIRM_TIMEOUT_S} s")
        self._pump()

    def _lost(self) -> None:
        self._channel = None
        self._waiting.extendleft(reversed(self._by_tag.values()))
        self._by_tag.clear()

    def _watch(self, channel) -> None:
        """A broker that is silent gets a new connection; an alarm is no silence."""
        if self.link.blocked:
            self.link.connected_at = time.monotonic()  # what _is_late() counts from
        elif any(self._is_late(message) for message in self._by_tag.values()):
            self.link.restart(f"el broker no confirmó en {CONFIRM_TIMEOUT_S} s")
        if channel is self._channel:
            self._ioloop.call_later(1, lambda: self._watch(channel))

    def _is_late(self, message: Message) -> bool:
        since = max(message.sent_at, self.link.connected_at)
        return time.monotonic() - since > CONFIRM_TIMEOUT_S
