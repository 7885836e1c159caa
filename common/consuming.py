"""A consumer: a handler gets an event and does its work, or raises; it never touches AMQP.

The order is the guarantee: effect and ledger row in one transaction, commit, then the copy for a retry
or for the dead letters confirmed by the broker, then the ack. A crash between any two steps means a
redelivery, never a loss, and the ledger turns the redelivery into nothing.
"""

import time
import uuid
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

import pika

from common import console, exchange, simulation
from common.cli import EXIT_OK, stop_on_signals
from common.config import ConfigError, Settings
from common.consumer import Consumer, Options
from common.connection import BrokerUnavailable, places
from common.deliveries import STOP_TIMEOUT_S, Deliveries, Delivery
from common.events import USER_CREATED, Event, decode, now
from common.ledger import Ledger
from common.publishing import Message
from common.retry import PermanentError, attempt_of, cut, failed_headers, next_step
from common.state import StateError

BATCH_S = 0.1  # a batch is committed and acked at least this often
SUMMARY_S = 1
FORGET_S = 3600  # how often the ledger is searched for old rows
POLL_S = 0.2  # how soon Ctrl-C is heard, on Windows too
LAST_COPIES_S = 30  # at --limit nobody is waiting: the last copies get their time
MAX_STARTS = 5  # starts without an end that make an event a dead letter

DONE, DUPLICATE, SKIPPED, RETRY, DEAD = "done", "duplicate", "skipped", "retry", "dead"
SUMMARY = {DONE: "hechos", DUPLICATE: "repetidos", SKIPPED: "de otro tipo", RETRY: "a reintentar",
           DEAD: "a dead_letter_queue"}
WHY_INDENT = " " * 9  # below the text, behind the time
COLOURS = {DONE: "ok", RETRY: "warn", DEAD: "error"}


class CrashLoop(PermanentError):
    """An event at which the process died, again and again."""


class Outcome(NamedTuple):
    """What became of one delivery. text: the line to print; why it failed; copy: what goes on in its place."""

    delivery: Delivery
    kind: str
    event_id: str
    text: str
    why: str = ""
    copy: Message | None = None

    @property
    def attempt(self) -> int:
        return attempt_of(self.delivery.properties.headers)


def consume(consumer: Consumer, settings: Settings, options: Options) -> int:
    """Run until Ctrl-C, SIGTERM, the limit or the idle timeout; the exit code."""
    return _Run(consumer, settings, options).until_stopped()


class _Run:
    def __init__(self, consumer: Consumer, settings: Settings, options: Options):
        self.consumer, self.settings, self.options = consumer, settings, options
        self.ledger = Ledger(settings.state_dir, consumer.name, consumer.schema)
        self.deliveries = Deliveries(settings, consumer.name, min(options.prefetch, options.limit or options.prefetch),
                                     options.ephemeral)
        self.stop_wanted = self.announced = False
        self.counts: Counter = Counter()
        self.summarized, self.summary_at = 0, time.monotonic()
        self.forget_at = self.summary_at

    def until_stopped(self) -> int:
        stop_on_signals(self)
        self.deliveries.start()
        not_started: list[Delivery] = []
        patience_s: float = STOP_TIMEOUT_S
        try:
            not_started = self._loop()
            patience_s = STOP_TIMEOUT_S if self.stop_wanted else LAST_COPIES_S
        finally:
            self.deliveries.stop(not_started, patience_s)
            self.ledger.close()
        console.say(f"{self.consumer.name}: " + ", ".join(
            f"{words} {self.counts[kind]}" for kind, words in SUMMARY.items()
            if self.counts[kind] or kind == DONE) + ".")
        return EXIT_OK

    def _loop(self) -> list[Delivery]:
        """Handle what arrives; returns what was taken but not started."""
        active_at = time.monotonic()
        while not self.stop_wanted:
            room = (self.options.limit or 10**9) - self.counts.total()
            if room <= 0:
                break
            batch = self.deliveries.take(min(room, self.options.prefetch), POLL_S)
            self._announce()
            if batch:
                left = self._handle(batch)
                active_at = time.monotonic()
                if left:
                    return left
            self._summarize()
            self._forget_old()
            idle = time.monotonic() - active_at
            if self.options.idle_timeout_s is not None and idle > self.options.idle_timeout_s:
                self._stop_idle()
        return []

    def _announce(self) -> None:
        """Say once, and only when it is true, that events can come."""
        if self.deliveries.connected and not self.announced:
            self.announced = True
            where = "una cola efímera" if self.options.ephemeral else exchange.CONSUMERS[self.consumer.name]
            console.say(f"{self.consumer.name}: escucha {where} en {places(self.settings)}. Ctrl-C para terminar.")

    def _stop_idle(self) -> None:
        if not self.deliveries.connected:
            raise BrokerUnavailable(f"No hay broker en {places(self.settings)}: arráncalo con python kit.py"
                                    " broker up o revisa RABBITMQ_URL.")
        self.stop_wanted = True

    def _handle(self, batch: list[Delivery]) -> list[Delivery]:
        """Handle a batch in as few transactions as may be; returns what a stop left unstarted."""
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + BATCH_S
        for index, delivery in enumerate(batch):
            if self.stop_wanted:
                self._finish(outcomes)
                return batch[index:]
            alone = (delivery.redelivered or simulation.HEADER in (delivery.properties.headers or {})
                     or self.consumer.elsewhere)
            if alone:  # it may have killed a process, or may take long: its neighbours must not go down with it, or wait
                self._finish(outcomes)
            outcomes.append(self._try(delivery))
            if alone or time.monotonic() > deadline:
                self._finish(outcomes)
                deadline = time.monotonic() + BATCH_S
        self._finish(outcomes)
        return []

    def _try(self, delivery: Delivery) -> Outcome:
        event = None
        try:
            event = decode(delivery.body)
            if event.type != USER_CREATED:
                return Outcome(delivery, SKIPPED, event.id, f"evento de tipo {event.type}: no es para aquí")
            if delivery.redelivered:
                self._note_start(event)
            simulation.obey(delivery.properties.headers, self.consumer.name, len(self.settings.retry_delays) + 1)
            once = self.ledger.once_elsewhere if self.consumer.elsewhere else self.ledger.once
            text = once(event.id, lambda: self.consumer.handle(event, self.ledger))
            if delivery.redelivered:
                self.ledger.forget_starts(event.id)
        except (StateError, ConfigError):  # nothing is acked: the broker keeps it all
            if event and delivery.redelivered:
                with suppress(StateError):  # the disk may be the reason
                    self.ledger.forget_starts(event.id)  # an end in good order, too
                    self.ledger.commit()
            raise
        except Exception as error:
            if event and delivery.redelivered:
                self.ledger.forget_starts(event.id)  # it has an end: a failure in good order
            return self._failed(delivery, event, error)
        if text is None:
            return Outcome(delivery, DUPLICATE, event.id, "repetido, ya estaba hecho")
        return Outcome(delivery, DONE, event.id, text)

    def _note_start(self, event: Event) -> None:
        if self.ledger.note_start(event.id) > MAX_STARTS:
            raise CrashLoop(f"el proceso ha muerto más de {MAX_STARTS} veces con este evento")

    def _failed(self, delivery: Delivery, event: Event | None, error: Exception) -> Outcome:
        headers = delivery.properties.headers
        step = next_step(error, attempt_of(headers), self.settings.retry_delays)
        to = exchange.DEAD_LETTER_QUEUE if step.delay_s is None else self.deliveries.retry_queues[step.delay_s]
        properties = copied_properties(delivery.properties, failed_headers(
            headers, error, step, consumer=self.consumer.name, to=to, failed_at=now(),
            source_queue=exchange.CONSUMERS[self.consumer.name]))
        return Outcome(delivery, DEAD if step.delay_s is None else RETRY,
                       event.id if event else str(properties.message_id),
                       f"falló → {self._name(to, step.delay_s)}", f"{type(error).__name__}: {cut(str(error))}",
                       Message("", to, delivery.body, properties))

    def _name(self, to: str, delay_s: float | None) -> str:
        """An ephemeral retry queue has no name of its own to show."""
        return to if delay_s is None or not self.options.ephemeral else f"espera de {delay_s:g} s"

    def _finish(self, outcomes: list[Outcome]) -> None:
        """Commit; then ack what is done, send on what failed, and say so."""
        if not outcomes:
            return
        self.ledger.commit()
        self.deliveries.ack([outcome.delivery for outcome in outcomes if not outcome.copy])
        for outcome in outcomes:
            if outcome.copy:
                self.deliveries.forward(outcome.delivery, outcome.copy)
            self.counts[outcome.kind] += 1
        self._tell(outcomes)
        outcomes.clear()

    def _tell(self, outcomes: list[Outcome]) -> None:
        """A line for each, and one more for why it failed; all of them in one write."""
        if console.json_mode:
            return console.data(*({"time": now(), "consumer": self.consumer.name, "event_id": outcome.event_id,
                                   "attempt": outcome.attempt, "outcome": outcome.kind, "detail": outcome.text, "why": outcome.why}
                                  for outcome in outcomes))
        now_is, clean = console.clock(), console.clean
        console.say("\n".join(
            f"{now_is} {console.paint(clean(outcome.text), COLOURS.get(outcome.kind))}"
            f" · evento {console.short(outcome.event_id)} · intento {outcome.attempt}"
            + (f"\n{WHY_INDENT}{clean(outcome.why)}" if outcome.why else "") for outcome in outcomes))

    def _forget_old(self) -> None:
        """A little at a time, so that neither events nor Ctrl-C wait."""
        if time.monotonic() >= self.forget_at and not self.ledger.forget_old():
            self.forget_at = time.monotonic() + FORGET_S

    def _summarize(self) -> None:
        """Show the whole at most once a second, and only when it has grown."""
        if not self.consumer.summary or self.counts[DONE] == self.summarized:
            return
        if time.monotonic() - self.summary_at > SUMMARY_S:
            self.summarized, self.summary_at = self.counts[DONE], time.monotonic()
            console.say(f"{console.clock()} {console.clean(self.consumer.summary(self.ledger))}", "bold")


def copied_properties(original: pika.BasicProperties, headers: dict) -> pika.BasicProperties:
    """Persistent, and without what would act again: expiration, reply_to, user_id (the broker checks it).

    A message without an id gets one, since a confirm is told by it.
    """
    return pika.BasicProperties(
        content_type=original.content_type, content_encoding=original.content_encoding,
        message_id=original.message_id or str(uuid.uuid4()), correlation_id=original.correlation_id,
        type=original.type, app_id=original.app_id, timestamp=original.timestamp,
        delivery_mode=2, headers=headers)
