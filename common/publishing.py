"""Publishing with confirms, as the main thread sees it: publish, then take the answers.

Many messages are under way at once, each in `unanswered` until its answer is taken: _batch ->
outbox (on disk until its ack) -> _waiting -> _by_tag -> answers (common/confirms.py).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pika

from common import exchange
from common.config import Settings
from common.confirms import ACK, NACK, TIMEOUT, Message, Publisher
from common.connection import IoThread
from common.events import Event
from common.outbox import Outbox

BATCH = 200  # messages written to the outbox in one transaction
BATCH_S = 0.01  # a batch goes out with the first message that comes later than this
AGAIN_S = 0.5  # the pause of publish_again()
CLOSE_TIMEOUT_S = 2
POLL_S = 0.1


def properties(event: Event, delivery_mode: int, headers: dict | None = None):
    """The AMQP properties of an event; delivery_mode 1 is transient, 2 persistent."""
    return pika.BasicProperties(
        content_type="application/cloudevents+json", message_id=event.id, type=event.type,
        app_id="ecomarket", timestamp=int(time.time()), delivery_mode=delivery_mode,
        headers=headers)


class ConfirmedChannel:
    """A channel in confirm mode on a connection of its own (common/confirms.py), while the `with`
    block lasts. All queues are declared first, as a confirm speaks only for those that exist
    (docs/facts.md, broker 11). Gives up after timeout_s without an answer.

    declare(channel) replaces that declaration. A consumer has its own io and give_up() instead of
    `with` and timeout_s. unanswered: the messages without an answer, as keys, in order."""

    def __init__(self, settings: Settings, timeout_s: float = 0, outbox: Outbox | None = None,
                 declare: Callable | None = None, io: IoThread | None = None,
                 give_up: Callable | None = None, quiet: bool = False):
        self.answered_at, self.late = time.monotonic(), Counter[str]()
        self._io, self._outbox = io or IoThread(), outbox
        self._give_up = give_up or (lambda: time.monotonic() - self.answered_at > timeout_s)
        self._batch: list[Message] = []  # neither in the outbox nor sent
        self._acked: list[str] = []  # still in the outbox
        self._sent_at = 0.0
        declare = declare or partial(exchange.declare, settings=settings)
        self._publisher = Publisher(self._io, settings, declare, quiet)
        self.unanswered, self._answers = self._publisher.unanswered, self._publisher.answers

    def __enter__(self):
        self._io.start()
        return self

    def __exit__(self, *_) -> None:
        """Take the last answers, counted in `late`; what has no ack stays in the outbox."""
        try:
            self._io.stop(CLOSE_TIMEOUT_S)
        finally:  # also at a second Ctrl-C
            self.late = Counter(answer for _, answer in self._new_answers())
            self._flush()  # to the outbox only: the I/O thread has ended

    def confirm_delivery(self) -> None:
        """Open the channel; the broker answers for each message on it."""
        self._io.call(self._publisher.link.open)

    def basic_publish(self, exchange: str, routing_key: str, body: bytes,
                      properties: pika.BasicProperties, mandatory: bool) -> None:
        """Take it into the batch, which goes out when it is full or due."""
        message = Message(str(properties.message_id), exchange, routing_key, body, properties,
                          mandatory)
        self.unanswered[message] = None
        self._batch.append(message)
        if len(self._batch) >= BATCH or time.monotonic() - self._sent_at > BATCH_S:
            self._flush()

    def publish_again(self, message: Message) -> None:
        """After a nack or a return, with a pause; what was returned, to a queue declared anew."""
        self.unanswered[message] = None
        again = partial(self._publisher.send_again, message)
        self._io.call(lambda: self._io.ioloop.call_later(AGAIN_S, again))

    def answers(self, most_unanswered: int) -> Iterator[tuple[Message, str]]:
        """(message, answer) as they come, until only so many messages have no answer. One that the
        caller publishes again is waited for again."""
        if most_unanswered < len(self._batch):
            self._flush()
        while True:
            yield from self._new_answers()
            if self.unanswered and self._io.error:
                raise self._io.error
            if len(self.unanswered) > len(self._batch) and self._give_up():
                self._answers.extend((message, TIMEOUT) for message in self.unanswered)
            elif len(self.unanswered) <= most_unanswered:
                return
            else:
                self._publisher.arrived.wait(POLL_S)
                self._publisher.arrived.clear()

    def _new_answers(self) -> Iterator[tuple[Message, str]]:
        while self._answers:
            message, answer = self._answers.popleft()
            if message in self.unanswered:  # else it was given up
                del self.unanswered[message]
                if answer != NACK:  # that is no progress: it is sent again
                    self.answered_at = time.monotonic()
                if answer == ACK:
                    self._acked.append(message.id)
                yield message, answer

    def _flush(self) -> None:
        self._sent_at = time.monotonic()
        if len(self.unanswered) == len(self._batch):  # until now no answer was waited for
            self.answered_at = self._sent_at
        if self._outbox and (self._batch or self._acked):
            self._outbox.write([(message.id, message.body) for message in self._batch],
                               self._acked)
        batch, self._batch, self._acked = self._batch, [], []
        self._io.call(partial(self._publisher.send, batch))
