"""Dead letters: how to read one, and how to look at all of them without taking them away.

A consumer of the kit writes its headers (common/retry.py); a dead letter made by the broker itself
(delivery limit, rejected) has only x-death. Both are read here.
"""

import base64
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import cached_property

from pika.exceptions import ChannelClosedByBroker

from common import console
from common.config import Settings
from common.events import Event, MalformedEvent, decode, now
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, dead_letter_arguments
from common.patches import one_write
from common.retry import attempt_of, journey_of, replays_of

WINDOW = 5000  # messages that wait to be read, at most; a consumer's prefetch has 16 bits
POLL_S = 0.05
PATIENCE_S = 2  # for what another consumer holds: it may return
ALONE_PATIENCE_S = 0.3  # when there is no other
TURN = "dead_letter_queue.turn"  # exclusive: who declares it looks, the others wait
REASONS = {"delivery_limit": "el broker lo entregó demasiadas veces sin ack",
           "rejected": "rechazado sin reintento", "expired": "caducó",
           "maxlen": "la cola estaba llena"}
_NAMES = {queue: name for name, queue in CONSUMERS.items()}


class DeadLetter:
    """A message of the dead letter queue; its body is read when it is asked for."""

    def __init__(self, properties, body: bytes, tag: int = 0):
        self.properties, self.body, self.tag = properties, body, tag
        self.headers = properties.headers or {}
        self.message_id = str(properties.message_id or "")
        self.attempts, self.replays = attempt_of(self.headers), replays_of(self.headers)
        deaths = self.headers.get("x-death")  # none if a consumer of the kit wrote this message
        newest = deaths[0] if isinstance(deaths, list) and deaths else {}
        death = newest if isinstance(newest, dict) else {}
        reason, at = str(death.get("reason", "")), death.get("time")
        source = self.text("x-source-queue") or str(death.get("queue", ""))
        self.source_queue = source if source in _NAMES else ""  # unknown, or not the kit's
        self.consumer = _NAMES.get(source, "desconocido")
        self.error_type = reason or self.text("x-error-type") or "desconocido"
        self.error_message = REASONS.get(reason, "") if reason else self.text("x-error-message")
        self.failed_at = (f"{at:%Y-%m-%dT%H:%M:%S.000Z}" if isinstance(at, datetime)
                          else self.text("x-failed-at"))

    @cached_property
    def event(self) -> Event:
        try:
            return decode(self.body)
        except MalformedEvent:
            return Event("", "evento inválido", "")

    @property
    def digest(self) -> int:
        """The same for one dead letter, however often the broker has delivered it."""
        return hash((self.message_id, self.consumer, self.failed_at, self.error_type,
                     self.error_message, self.attempts, self.replays, self.body))

    def as_json(self) -> dict:
        """body is text, or base64 under body_base64 when it is not UTF-8."""
        shown = {"id": self.message_id, "type": self.event.type, "consumer": self.consumer,
                 "source_queue": self.source_queue, "error_type": self.error_type,
                 "error_message": self.error_message, "attempts": self.attempts,
                 "replays": self.replays, "failed_at": self.failed_at,
                 "journey": journey_of(self.headers)}
        try:
            return shown | {"body": self.body.decode()}
        except UnicodeDecodeError:
            return shown | {"body_base64": base64.b64encode(self.body).decode()}

    def text(self, name: str) -> str:
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


class DeadLetters:
    """The dead letters that are there now, each once, while the `with` block lasts; those without
    an ack return at its end.

    wait: for another terminal that looks at them now; without it, there are none to see then.
    on_idle(): called when none has come for a moment.
    later: how many died after the start, perhaps of a replay just made. They are left alone.
    """

    def __init__(self, connection, settings: Settings, wait: bool = True):
        self._connection, self._settings, self._wait, self.later = connection, settings, wait, 0
        self.on_idle: Callable = lambda: None
        self.stop_wanted = False  # raises KeyboardInterrupt, but not within pika
        self._inbox: deque[DeadLetter] = deque()
        self._received = self._held = 0  # held: those of them that have no ack
        self._acked: list[int] = []  # tags; not written yet

    def __enter__(self):
        """Take the turn, an exclusive queue: two terminals would hide messages from each other. The
        broker deletes it with the connection; a refusal of it closes the channel."""
        for tries in itertools.count(1):
            self._channel = self._connection.channel()
            try:
                self._channel.queue_declare(TURN, exclusive=True)
                return self
            except ChannelClosedByBroker as refusal:
                if refusal.reply_code != 405:  # RESOURCE_LOCKED
                    raise
            if not self._wait:
                return self  # its channel is closed: there are none to see
            if tries == 10:
                console.print_line("Otra terminal está con los mensajes fallidos: se espera a que"
                                   " termine.", "warn")
            self._connection.sleep(0.2)

    def __exit__(self, kind, *_) -> None:
        with suppress(Exception) if kind else nullcontext():  # Ctrl-C: docs/facts.md, pika 9
            if self._channel.is_open:
                self._write_acks()
                self._channel.stop_consuming()
                self._channel.basic_nack(0, multiple=True, requeue=True)
                self._channel.queue_delete(TURN)
                self._channel.close()
            elif kind:
                self._connection.close()  # with it the turn

    def basic_ack(self, found: DeadLetter) -> None:
        """Remove it; the acks of a hundred are written together."""
        self._acked.append(found.tag)
        self._held -= 1
        if len(self._acked) == 100:
            self._write_acks()

    def sleep(self, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while (left_s := ends_at - time.monotonic()) > 0:
            self._check_stop()
            self._write_acks()
            self._connection.sleep(min(left_s, 0.2))

    def __iter__(self) -> Iterator[DeadLetter]:
        if not self._channel.is_open:  # no turn
            return
        started_at, later = now(), 0
        at_start, quiet_since = self._look(), time.monotonic()
        self._channel.basic_qos(prefetch_count=WINDOW)
        while True:
            self._check_stop()
            if self._held >= WINDOW * len(self._channel.consumer_tags):
                # the first, and one more when all have what they may hold
                self._channel.basic_consume(DEAD_LETTER_QUEUE, self._on_message)
            self._write_acks()
            self._connection.process_data_events(POLL_S)
            if not self._inbox:
                self.on_idle()
            while self._inbox:
                self._check_stop()
                found = self._inbox.popleft()
                if started_at < found.failed_at <= now():
                    self.later += 1
                else:
                    yield found
                    quiet_since = time.monotonic()
            alone = self._received >= at_start.message_count and not at_start.consumer_count
            if time.monotonic() > quiet_since + (ALONE_PATIENCE_S if alone else PATIENCE_S):
                ready = self._look().message_count
                self._connection.process_data_events(0)  # what came before the answer
                if not self._inbox and (self.later > later or not ready):
                    return  # only new ones come, or none
                quiet_since, later = time.monotonic(), self.later

    def _check_stop(self) -> None:
        if self.stop_wanted:
            raise KeyboardInterrupt

    def _write_acks(self) -> None:
        with one_write(self._connection):
            while self._acked:
                self._channel.basic_ack(self._acked.pop())

    def _look(self):
        """How many messages are ready, how many consumers there are."""
        return self._channel.queue_declare(DEAD_LETTER_QUEUE, durable=True, arguments=(
            dead_letter_arguments(self._settings))).method

    def _on_message(self, _channel, method, properties, body) -> None:
        self._received += 1
        self._held += 1
        self._inbox.append(DeadLetter(properties, body, method.delivery_tag))
