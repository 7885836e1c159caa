"""Confirmed, pipelined publishing: many messages under way at once, each answered for.

https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import NamedTuple

import pika
from pika.adapters.select_connection import IOLoop

from common.config import Settings
from common.connection import Link, backoff_s, describe
from common.exchange import declare
from common.outbox import Outbox

WINDOW = 1000  # messages under way at once
BATCH = 200  # messages written to the outbox in one transaction
CONFIRM_TIMEOUT_S = 10  # an older unconfirmed message means a new connection (docs/facts.md, broker 13)
CLOSE_TIMEOUT_S = 2
TICK_S = 0.05

CONFIRMED = "confirmed"
RETURNED = "returned"
UNCONFIRMED = "unconfirmed"


class Message(NamedTuple):
    """What is published, and where to."""

    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties


class Pending(NamedTuple):
    """done(message, outcome) is called once, with CONFIRMED or RETURNED. refused_at: for the first time."""

    message: Message
    done: Callable[[Message, str], None]
    sent_at: float = 0.0
    refused_at: float = 0.0


class Publisher:
    """Sends on a connection of its own; what was under way when that broke is sent again, same ids.

    declare(channel) is called on each new channel, before anything is published on it.
    """

    def __init__(self, ioloop, settings: Settings, declare, on_refused, quiet: bool = False):
        self.link = Link(ioloop, settings, self._channel_opened, self._lost, on_refused, quiet)
        self._ioloop = ioloop
        self._declare = declare
        self._channel = None
        self._waiting: deque[Pending] = deque()
        self._unconfirmed: dict[int, Pending] = {}  # by delivery tag, oldest first
        self._last_tag = 0
        self._returned: Counter = Counter()
        self._later: list[Pending] = []  # refused by the broker, to be sent again after a pause
        self._refusals = 0
        self._ready_at = 0.0
        ioloop.call_later(1, self._watch)

    def send(self, message: Message, done: Callable[[Message, str], None]) -> None:
        self._waiting.append(Pending(message, done))
        self.link.open()
        self._pump()

    def open_count(self) -> int:
        """How many messages have no answer yet."""
        return len(self._waiting) + len(self._unconfirmed) + len(self._later)

    def open_messages(self) -> Iterator[Message]:
        return (pending.message for pending in (*self._unconfirmed.values(), *self._later, *self._waiting))

    def declare_again(self) -> None:
        if self._channel:
            self._declare(self._channel)

    def _channel_opened(self, channel) -> None:
        self._declare(channel)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(lambda frame: self._on_confirm(channel, frame.method),
                                 callback=lambda _: self._ready(channel))

    def _ready(self, channel) -> None:
        if not self.link.carries(channel):
            return
        self._channel, self._last_tag, self._ready_at = channel, 0, time.monotonic()
        self.link.healthy()
        self._pump()

    def _pump(self) -> None:
        while self._channel and self._waiting and len(self._unconfirmed) < WINDOW:
            pending = self._waiting.popleft()
            message = pending.message
            self._last_tag += 1
            self._unconfirmed[self._last_tag] = pending._replace(sent_at=time.monotonic())
            self._channel.basic_publish(message.exchange, message.routing_key, message.body,
                                        message.properties, mandatory=True)

    def _on_return(self, channel, method, properties, _body) -> None:
        """The broker routed it nowhere; its ack comes right behind (docs/facts.md, broker 12)."""
        if channel is self._channel:
            self._returned[properties.message_id, method.routing_key] += 1

    def _on_confirm(self, channel, method) -> None:
        """An ack or a nack; one of a channel that was given up would mean other messages here."""
        if channel is not self._channel:
            return
        for pending in self._answered(method.delivery_tag, method.multiple):
            if isinstance(method, pika.spec.Basic.Nack):
                self._send_later(pending)
            else:
                self._refusals = 0
                pending.done(pending.message, self._outcome(pending.message))
        self._pump()

    def _answered(self, tag: int, multiple: bool) -> list[Pending]:
        tags = [tag]
        if multiple:  # everything up to and including the tag
            tags = list(takewhile(lambda open_tag: open_tag <= tag, self._unconfirmed))
        return [self._unconfirmed.pop(answered) for answered in tags if answered in self._unconfirmed]

    def _outcome(self, message: Message) -> str:
        if not self._returned:
            return CONFIRMED
        key = message.properties.message_id, message.routing_key
        if not self._returned[key]:
            return CONFIRMED
        self._returned[key] -= 1
        self._returned += Counter()  # drops what counts 0
        return RETURNED

    def _send_later(self, pending: Pending) -> None:
        pending = pending._replace(refused_at=pending.refused_at or time.monotonic())
        self._later.append(pending)
        self._refusals += 1
        self._ioloop.call_later(backoff_s(self._refusals), lambda: self._send_again(pending))

    def _send_again(self, pending: Pending) -> None:
        self._later.remove(pending)
        self._waiting.append(pending)
        self._pump()

    def _lost(self) -> None:
        self._channel = None
        self._waiting.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()
        self._returned.clear()

    def _watch(self) -> None:
        now = time.monotonic()
        oldest = next(iter(self._unconfirmed.values()), None)
        refused_since = min((max(pending.refused_at, self._ready_at) for pending in self._later), default=now)
        if self.link.blocked:
            pass  # an alarm is an answer: wait
        elif oldest and now - oldest.sent_at > CONFIRM_TIMEOUT_S:
            self.link.restart(f"el broker no confirmó en {CONFIRM_TIMEOUT_S} s")
        elif now - refused_since > CONFIRM_TIMEOUT_S:  # perhaps only this channel does (docs/facts.md, broker 24)
            self.link.restart(f"el broker rechaza un mensaje desde hace {CONFIRM_TIMEOUT_S} s")
        if not self.link.closed:
            self._ioloop.call_later(1, self._watch)


class ConfirmedConnection:
    """A Publisher for a script without threads: its loop runs inside publish(), sleep() and the rest.

    answers() and last_answers() yield (message_id, outcome). After timeout_s without any answer it
    gives up: what is open, and what is sent from then on, comes out as UNCONFIRMED.
    With an outbox, a message is on disk before it is sent, and until it is CONFIRMED.
    """

    def __init__(self, settings: Settings, timeout_s: float = 60, outbox: Outbox | None = None):
        self._ioloop = IOLoop()
        self._outbox = outbox
        self._batch: list[Message] = []  # not yet written, not yet sent
        self._confirmed: list[str] = []  # not yet crossed out in the outbox
        self._answers: deque[tuple[str, str]] = deque()
        self._refusals: list[Exception] = []
        self._timeout_s = timeout_s
        self._progress_at = time.monotonic()
        self._gave_up = False
        self._publisher = Publisher(
            self._ioloop, settings, lambda channel: declare(channel, settings), self._refusals.append)

    def __enter__(self):
        self._ioloop.activate_poller()
        self._publisher.link.open()
        self._tick()
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not KeyboardInterrupt:  # that one may come in the midst of pika's work: no goodbye then
            self._publisher.link.close()
            self._run_until(lambda: self._publisher.link.gone, CLOSE_TIMEOUT_S)
        self._ioloop.deactivate_poller()
        self._ioloop.close()
        self._write([])

    def publish(self, exchange: str, routing_key: str, body: bytes, properties: pika.BasicProperties) -> None:
        """Queue it, mandatory; a full batch is sent. Raises ConfigError, StateError."""
        self._batch.append(Message(exchange, routing_key, body, properties))
        if len(self._batch) >= BATCH:
            self._send_batch()

    def _send_batch(self) -> None:
        """On disk first, all of it; returns when fewer than WINDOW messages are under way."""
        batch, self._batch = self._batch, []
        self._write(batch)
        if self._publisher.open_count() == 0:
            self._progress_at = time.monotonic()
        for message in batch:
            if self._gave_up:
                self._answered(message, UNCONFIRMED)
            else:
                self._publisher.send(message, self._answered)
        self._wait(lambda: self._publisher.open_count() < WINDOW)

    def _write(self, batch: list[Message]) -> None:
        if self._outbox and (batch or self._confirmed):
            confirmed, self._confirmed = self._confirmed, []
            self._outbox.write([(message.properties.message_id, message.body) for message in batch], confirmed)

    def sleep(self, seconds: float) -> None:
        """Send what is there and let the loop run; at once over when nothing has moved for too long."""
        self._send_batch()
        self._ioloop.call_later(seconds, lambda: None)  # wakes it in time
        self._run_until(lambda: self._gave_up, seconds)

    def answers(self) -> Iterator[tuple[str, str]]:
        """What has been answered so far."""
        while self._answers:
            yield self._answers.popleft()

    def last_answers(self) -> Iterator[tuple[str, str]]:
        """Send the rest; its answers, as they come."""
        self._send_batch()
        while self._publisher.open_count() and not self._gave_up:
            self._wait(lambda: self._answers or not self._publisher.open_count())
            yield from self.answers()
        yield from self.answers()
        for message in self._publisher.open_messages():
            yield message.properties.message_id, UNCONFIRMED

    def _answered(self, message: Message, outcome: str) -> None:
        self._progress_at = time.monotonic()
        self._answers.append((message.properties.message_id, outcome))
        if self._outbox and outcome == CONFIRMED:
            self._confirmed.append(message.properties.message_id)

    def _wait(self, condition: Callable[[], object]) -> None:
        """Run the loop until the condition holds, or nothing has moved for too long."""
        while not condition() and not self._gave_up:
            self._step()

    def _run_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self._step()

    def _step(self) -> None:
        try:
            self._ioloop.poll()
            self._ioloop.process_timeouts()
        except Exception as error:  # whatever broke in pika (docs/facts.md, pika 9): a new connection mends it
            self._publisher.link.restart(describe(error))
        stalled = time.monotonic() - self._progress_at > self._timeout_s
        self._gave_up = self._gave_up or bool(stalled and self._publisher.open_count())
        if self._refusals:
            raise self._refusals.pop()

    def _tick(self) -> None:
        """Wake the loop often: for sleep(), and so that Ctrl-C is heard on Windows."""
        self._ioloop.call_later(TICK_S, self._tick)
