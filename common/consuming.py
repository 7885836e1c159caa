"""The verbs of a consumer, and what each of them guarantees.

Events that arrived together are a batch: one transaction. finish() ends it, in this order:

    commit -> ack what is done -> publish a copy of what failed -> wait for confirms -> ack the rest

If the process dies between any two steps, the broker delivers again, and the ledger turns what is
done already into a duplicate: nothing is lost, no effect happens twice; a copy may exist twice.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from common import console, crash_loop, exchange, simulation
from common.cli import state_dir, stop_on_signals
from common.config import KitError
from common.confirms import NACK, RETURN, TIMEOUT
from common.connection import IoThread
from common.database import Stopped, problem
from common.events import USER_CREATED, decode, now
from common.ledger import Ledger
from common.problems import no_broker
from common.publishing import ConfirmedChannel
from common.retry import cut, failed_copy, next_delay_s
from common.subscription import Delivery, Subscription

BATCH_S = 0.1  # a batch this old takes no more events
TICK_S, FORGET_S = 1, 3600  # how often the summary is printed, and old rows are deleted
STOP_TIMEOUT_S, CLOSE_TIMEOUT_S = 2, 1  # for the copies under way; for the connections


class Consumer:
    """The consumer `name`, while the `with` block lasts. tables: SQL of the handler's own tables in
    STATE_DIR/<name>.db. summary(db): a line about all of it, printed while it grows.

    Raises StateError, ConfigError, BrokerUnavailable (at --idle-timeout)."""

    def __init__(self, name: str, options, tables: str = "", summary: Callable | None = None):
        self.name, self.options, self.settings = name, options, options.settings
        self.stop_wanted, self._queue = False, ""
        stop_on_signals(self)  # they set stop_wanted
        own = "" if options.report else crash_loop.TABLE + exchange.announcement(self.settings)
        self.ledger = Ledger(state_dir(options, name), name, own + tables, lambda: self.stop_wanted)
        self._summary, self._summarized, self._counts = summary, 0, Counter[str]()
        self._tick_at = self._forget_at = self._stop_at = 0.0  # of time.monotonic()
        self._batch: list[Delivery] = []  # has a verb, and is not finished
        self._failed: list[Delivery] = []  # of the batch that is being finished
        self._io = IoThread()
        self._subscription = Subscription(self._io, self.settings, name)
        # Its own connection: an alarm blocks all of one that publishes (docs/facts.md, broker 15).
        self._copies = ConfirmedChannel(self.settings, declare=self._subscription.declare,
                                        io=self._io, give_up=self._give_up, quiet=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _) -> bool:
        if self._io.is_alive():  # since basic_consume()
            self._subscription.cancel()
            self._io.stop(CLOSE_TIMEOUT_S)
            if kind in (None, Stopped):
                console.print_totals(self.name, self._counts)
        self.ledger.db.close()
        if (wrong := problem(self.ledger.path, error)) is not error:  # of --report or the summary
            raise wrong from None
        return kind is Stopped

    def exchange_declare(self, exchange: str, exchange_type: str) -> None:
        """Durable. Only noted, like the next two: each connection that is opened runs them."""
        self._subscription.declarations.append(lambda channel: channel.exchange_declare(
            exchange=exchange, exchange_type=exchange_type, durable=True))

    def queue_declare(self, queue: str) -> None:
        """Durable, with retry queues and dead_letter_queue; --ephemeral: unnamed, no retries."""
        self._queue = queue
        needed = exchange.topology(self.settings, queue)
        for each in needed[:1] if self.options.ephemeral else needed:  # first: dead_letter_queue
            self._subscription.declarations.append(partial(exchange.declare_queue, queue=each))

    def queue_bind(self, queue: str, exchange: str) -> None:
        """The exchange gives the queue a copy of every event."""
        name = "" if self.options.ephemeral else queue
        self._subscription.bind = lambda channel: channel.queue_bind(
            queue=name, exchange=exchange, routing_key="")

    def basic_consume(self, queue: str, prefetch_count: int) -> Iterator[Delivery]:
        """Yield deliveries until Ctrl-C, SIGTERM, --limit or --idle-timeout; finish each batch."""
        limit, begun, link = self.options.limit or sys.maxsize, 0, self._subscription.link
        self._io.start()
        self._subscription.start("" if self.options.ephemeral else queue,
                                 min(prefetch_count, limit))  # --limit takes no more
        active_at = batch_at = time.monotonic()
        while not self.stop_wanted and begun < limit:
            delivery, moment = self._subscription.next(), time.monotonic()
            if moment > self._tick_at:
                self._tick(moment)
            if delivery is None:  # a batch is left only if a loss emptied the inbox
                self.finish()
                idle_s = moment - max(active_at, link.connected_at)
                if idle_s > (self.options.idle_timeout or sys.maxsize):
                    break
                continue
            headers = delivery.properties.headers
            alone = (delivery.redelivered or self.options.steps
                     or (headers and simulation.stands_alone(headers)))
            if alone:  # a batch of its own: it may kill or delay the process, or --steps shows it
                self.finish()
            if delivery.channel is not link.channel:  # lost, perhaps in finish()
                continue
            if not self._batch:
                batch_at = moment
            begun += 1
            self._step(delivery, "recibido" + ", reentregado" * delivery.redelivered)
            yield delivery  # the script calls once() and a verb, then this goes on
            if not delivery.line:  # each verb sets it
                raise KitError("Un evento quedó sin verbo: llama a basic_ack, retry o dead_letter.")
            active_at = time.monotonic()
            if alone or not self._subscription.inbox or active_at - batch_at > BATCH_S:
                self.finish()
        self.finish()
        if not link.connected_at and not self.stop_wanted:
            raise no_broker(self.settings.urls)

    def once(self, delivery: Delivery, handler: Callable, before: Callable | None = None):
        """Do handler(event, db) once, in the batch's transaction, with the ledger row. Returns its
        line, None for an event that was done before.

        before(event) calls a service first, with nothing locked; a crash right after it means that
        it is called again. Raises PermanentError for a malformed body, and what the two raise."""
        event = decode(delivery.body)
        delivery.event_id = event.id
        if event.type != USER_CREATED:
            delivery.outcome = "skipped"
            return f"evento de tipo {event.type}: no es para este consumidor"
        if delivery.redelivered:
            crash_loop.note_start(self.ledger, event.id)
        if delivery.properties.headers:
            simulation.obey(delivery.properties.headers, self.name,
                            attempts=len(self.settings.retry_delays) + 1)
        if before:
            self.finish()
            if not self._subscription.is_current(delivery):  # then the next finish() drops it
                raise ConnectionError("se perdió el canal: el evento llegará otra vez")
            if not self.ledger.is_done(event.id):
                before(event)
        line = self.ledger.once(event, handler)
        delivery.outcome = "duplicate" if line is None else "done"
        return line

    def basic_ack(self, delivery: Delivery, line: str | None = None) -> None:
        """It is done: finish() commits, acks it and prints `line`."""
        delivery.outcome = delivery.outcome or "done"
        delivery.line = line or "duplicado, ya procesado"
        self._step(delivery, "trabajo hecho" if line else "ya procesado")
        self._batch.append(delivery)

    def retry(self, delivery: Delivery, error: Exception) -> None:
        """It failed: finish() sends a copy to the retry queue of this attempt (after the last, to
        dead_letter_queue), and acks it once the copy is confirmed. A KitError (disk, settings) is
        not the event's fault: it is raised again, ends the script, and nothing is acked."""
        if isinstance(error, KitError):
            if delivery.redelivered:  # this is an end, not a crash
                with suppress(KitError):  # the disk may be the reason
                    crash_loop.forget(self.ledger, delivery.event_id)
                    self.ledger.commit()
            raise error
        delays = () if self.options.ephemeral else self.settings.retry_delays
        self._fail(delivery, error, next_delay_s(error, delivery.attempt, delays))

    def dead_letter(self, delivery: Delivery, error: Exception) -> None:
        """It failed for good: the same, with a copy to dead_letter_queue at once."""
        self._fail(delivery, error, None)

    def _fail(self, delivery: Delivery, error: Exception, delay_s: float | None) -> None:
        delivery.copy = failed_copy(delivery.properties, error, delay_s, consumer=self.name,
                                    source_queue=self._queue, failed_at=now())
        delivery.outcome = "dead" if delay_s is None else "retry"
        delivery.why = f"{type(error).__name__}: {cut(str(error))}"
        delivery.line = f"falló → {delivery.copy[0]}"
        self._step(delivery, f"falló: {delivery.why}")
        self._batch.append(delivery)

    def finish(self) -> None:
        """Finish the batch, as above. Raises Stopped at a stop while a copy has no confirm: the ack
        of a later batch, with multiple=True, would cover the original."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        done, self._failed = list[Delivery](), []
        for delivery in batch:
            if not delivery.copy:
                done.append(delivery)
            elif self._subscription.is_current(delivery):  # else it comes again
                self._failed.append(delivery)
            if delivery.redelivered:
                crash_loop.forget(self.ledger, delivery.event_id)
        self.ledger.commit()
        self._step(batch[-1], "commit")
        self._ack(done, multiple=not self._failed)
        if self._failed and self._copies_confirmed():
            self._step(batch[-1], "copia confirmada por el broker")
            self._ack(self._failed, multiple=True)
        elif self._failed and self.stop_wanted:
            raise Stopped("Terminado.")

    def _ack(self, deliveries: list[Delivery], multiple: bool) -> None:
        if deliveries:
            self._io.call(partial(self._subscription.ack, deliveries, multiple))
            self._step(deliveries[-1], "ack")
            console.print_deliveries(self.name, deliveries)  # also if the channel is lost by now
            self._counts.update(delivery.outcome for delivery in deliveries)

    def _copies_confirmed(self) -> bool:
        """Publish the copies of what failed and wait for the confirms of all."""
        for delivery in self._failed:
            to, properties = delivery.copy  # type: ignore[misc]  # set by _fail()
            self._copies.basic_publish("", to, delivery.body, properties, mandatory=True)
        confirmed = True
        for message, answer in self._copies.answers(0):
            confirmed = confirmed and answer != TIMEOUT
            if answer in (RETURN, NACK):
                self._copies.publish_again(message)
        return confirmed

    def _give_up(self) -> bool:
        """Whether to stop waiting for the copies: the script stops, or the originals come again."""
        if self.stop_wanted and not self._stop_at:
            self._stop_at = time.monotonic() + STOP_TIMEOUT_S
        return not self._subscription.is_current(self._failed[0]) or (
            self.stop_wanted and time.monotonic() > self._stop_at)

    def _step(self, delivery: Delivery, text: str) -> None:
        if self.options.steps:
            console.print_line(f"{console.clock()}   {console.clean(text)}"
                               f" · entrega {delivery.tag}")

    def _tick(self, moment: float) -> None:
        """Once a second: print the summary if it has grown; seldom, delete old rows."""
        self._tick_at = moment + TICK_S
        if self._summary and self._counts["done"] != self._summarized:
            self._summarized = self._counts["done"]
            summary = console.clean(self._summary(self.ledger.db))
            console.print_line(f"{console.clock()} {summary}", "bold")
        if moment > self._forget_at:
            self._forget_at = moment + FORGET_S
            self.ledger.forget_old()
