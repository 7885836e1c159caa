"""What a grading happens on: a virtual host on the judge's node, the program, and a journal.

The journal notes with times what the judge publishes, what the broker delivers and routes (from its
firehose, https://www.rabbitmq.com/docs/firehose), what the program acks (from the wire), and each
change of the program's table `accounts`.
"""

import json
import random
import shutil
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pika
from pika.exceptions import AMQPError

import setup_queues
from common import config, console, events, exchange
from common.connection import parameters
from tools.grade.program import Program
from tools.grade.service import Service
from tools.grade.wire import Wire
from tools.node import Node, ask_management, create_vhost, delete_vhost

QUEUE = exchange.CONSUMERS["loyalty"]
POINTS = 100  # of an event
RETRY_DELAYS = "1,2,4"
USER = PASSWORD = "alumno"  # without management rights: it cannot reach the judge's own queue
POLL_S = 0.05
GLANCE_S = 0.0003
SENDS = 100  # tries
TICK_S = 1
MOST_S = 55  # of a grading, without the start of the node
BROKER_S, GONE_S = 30, 5
FIREHOSE, FIREHOSE_S = "amq.rabbitmq.trace", 5
MOST_ENTRIES = 20_000  # of the journal: a program that loops fills it
NAMES = ("Ana", "Luis", "Eva", "Iván", "Sofía", "Juan", "Inés", "Noé", "Lía", "Óscar")


class Event(NamedTuple):
    """A message that the judge publishes. points: what it adds to its user's account."""

    id: str
    user: str
    body: bytes
    points: int = POINTS


@dataclass(frozen=True)
class Entry:
    """at: seconds since the start. event: its id; None for what happens to all."""

    at: float
    event: str | None
    kind: str
    text: str


class ProgramEnded(Exception):
    """The program exited and the judge had not killed it."""


class Stage:
    """A `with` block; nothing of it is left afterwards. extra: more environment variables."""

    def __init__(self, node: Node, command: list[str] | str, work: Path, cwd: Path | None,
                 seed: int, most_calls: int, extra: dict[str, str] | None = None):
        self.node, self.rng = node, random.Random(seed)
        self.journal: list[Entry] = []
        self.events: list[Event] = []
        self.poison: list[Event] = []
        self.points: dict[str, int] = {}  # of each user, as seen last
        self.hasty: set[str] = set()  # users whose effect came before the service's 200
        self.neighbours: list[Event] = []  # published while the service fails for others
        self.ended = False
        self.stall = 0.0  # the longest that the judge's own publishing took too long
        self.late = False  # there was no time to see how it would end
        self._ids: dict[bytes, str] = {}  # body -> id
        self.sources: set[str] = set()  # queues that the program took messages from
        self._work, self._state = work, work / "state"
        self._state.mkdir(parents=True)
        self._vhost = f"reto-{seed}-{uuid.uuid4().hex[:6]}"
        self._began = self._ticked = time.monotonic()
        self._looking, self._seen_at = threading.Lock(), 0.0
        self._closed, self._tracing = threading.Event(), threading.Event()
        self._connection: Any = None
        self._channel: Any = None
        self.service = Service(self._on_call, most_calls)
        self.wire = Wire(node.port, self._heard)
        url = f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.wire.port}/{self._vhost}"
        self.program = Program(command, cwd or work, {
            "RABBITMQ_URL": url, "STATE_DIR": str(self._state), "RETRY_DELAYS": RETRY_DELAYS,
            "QUEUE_TYPE": "quorum", "SERVICE_URL": self.service.url, **(extra or {})},
            self._on_claim)
        self.settings = config.load({"RABBITMQ_URL": self._url, "RETRY_DELAYS": RETRY_DELAYS,
                                     "QUEUE_TYPE": "quorum"})
        self._traced = 0  # messages that the program published, as the firehose told
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Stage":
        return self

    def prepare(self) -> None:
        """The virtual host, its user and its queues. Raises AMQPError, OSError."""
        create_vhost(self.node.management_url, "guest", "guest", self._vhost)
        self._manage("PUT", f"users/{USER}", {"password": PASSWORD, "tags": ""})
        self._manage("PUT", f"permissions/{self._vhost}/{USER}",
                     {"configure": ".*", "write": ".*", "read": ".*"})
        setup_queues.declare(self.channel(), self.settings)
        self._watcher.start()
        self._tracing.wait(BROKER_S)

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self.program.end()
        self.wire.close()
        self.service.close()
        if self._watcher.is_alive():
            self._watcher.join(BROKER_S)
        self._hang_up()
        if self.node.running:
            with suppress(OSError):
                delete_vhost(self.node.management_url, "guest", "guest", self._vhost)

    # ------------------------------------------------------------ time and words

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A line about what is being done to the program."""
        self._ticked = time.monotonic()
        console.print_line(f"  {self.now:4.0f} s  {text}")

    def note(self, kind: str, text: str, event: str | None = None, at: float | None = None
             ) -> None:
        if len(self.journal) < MOST_ENTRIES:
            self.journal.append(Entry(self.now if at is None else at, event, kind, text))

    def wait(self, condition: Callable[[], object], seconds: float, doing: str) -> bool:
        """Wait for it, look at the program meanwhile, print a line a second. False: too late.
        Raises ProgramEnded."""
        deadline = min(self.now + seconds, MOST_S)
        while True:
            self.look()
            if condition():
                return True
            if self.now > deadline:
                return False
            if time.monotonic() - self._ticked > TICK_S:
                self.say(f"{doing} · {self._progress()}")
            time.sleep(POLL_S)

    def pause(self, seconds: float, doing: str) -> None:
        self.wait(bool, seconds, doing)

    def wait_for_firehose(self) -> None:
        """Until it has told of all that the program has published; then what the judge does next
        comes after it in the journal, too."""
        deadline = time.monotonic() + FIREHOSE_S
        while ((self._traced < self.wire.published or self.program.unread)
               and time.monotonic() < deadline):
            time.sleep(POLL_S)

    def _progress(self) -> str:
        if not self.events:
            return f"respuestas: {len(self.program.claims)}"
        expected = self.expected()
        done = sum(min(points, self.points.get(user, 0)) for user, points in expected.items())
        return f"efectos: {done // POINTS} de {sum(expected.values()) // POINTS}"

    # ------------------------------------------------------------ the program

    def start(self) -> None:
        self.program.start()
        self.note("started", f"arranca el proceso {self.program.number}")

    def kill(self) -> None:
        """From any thread: SIGKILL at once."""
        if self.program.kill():
            self.note("killed", f"proceso {self.program.number} matado (SIGKILL)")

    def kill_at_commit(self, number: int, seconds: float) -> None:
        """Kill it at once when it has committed so many times more, whatever it wrote."""
        path = self._state / "loyalty.db"
        deadline = time.monotonic() + seconds
        seen, commits = None, -1
        with suppress(sqlite3.Error), closing(
                sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=0)) as db:
            while commits < number and time.monotonic() < deadline:
                with suppress(sqlite3.OperationalError):  # locked: in the midst of a commit
                    [version] = db.execute("PRAGMA data_version").fetchone()
                    if version != seen:
                        seen, commits = version, commits + 1
                time.sleep(GLANCE_S)
        self.kill()

    def restart(self) -> None:
        """Start it again after kill(), and wait until it consumes."""
        self.program.end()
        self.look()
        self.start()
        self.wait(lambda: self.consumers() > 0, 5, "el programa arranca otra vez")

    def look(self) -> None:
        """Note what is new in `accounts`. Raises ProgramEnded."""
        self._note_effects()
        code = self.program.exit_code
        if code is not None and not self.program.killed and not self.ended:
            self.ended = True
            self.note("ended", f"el proceso {self.program.number} terminó sin que nadie lo parara"
                               f" (código {code})")
        if self.ended:
            raise ProgramEnded

    def _note_effects(self, at: float | None = None) -> None:
        """at: when they were there at the latest; by default, now."""
        with self._looking:
            found = self._accounts(self._state) or {}
            at = self.now if at is None else at
            for user, points in found.items():
                if points == self.points.get(user):
                    continue
                self.points[user] = points
                self._seen_at = at
                own = {event.id for event in self.events if event.user == user}
                of_two = f" (de {len(own)} eventos de su usuario)" * (len(own) > 1)
                for event in own:
                    self.note("effect", f"efecto: la cuenta tiene {points} puntos{of_two}", event,
                              at)
                if own and not any(map(self.service.accepted, own)):
                    self.hasty.add(user)

    def expected(self) -> Counter[str]:
        """user -> points, each event counted once."""
        points: Counter[str] = Counter()
        for event in {event.id: event for event in self.events}.values():
            points[event.user] += event.points
        return points

    def final_points(self) -> dict[str, int]:
        """From a copy, in which SQLite may undo what the killed program left half written."""
        copy = self._work / "copy"
        with suppress(OSError, shutil.Error):
            shutil.copytree(self._state, copy)
        found = self._accounts(copy, "rw")
        return self.points if found is None else found

    def _accounts(self, folder: Path, mode: str = "ro") -> dict[str, int] | None:
        """None if it cannot be read now."""
        path = folder / "loyalty.db"
        if not path.is_file():
            return {}
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True,
                                         timeout=0.2)) as db:
                rows = db.execute("SELECT user_id, points FROM accounts").fetchall()
        except sqlite3.Error:
            return None
        return {str(user): points for user, points in rows if isinstance(points, int)}

    # ------------------------------------------------------------ what the judge publishes

    def new_event(self, user: str = "") -> Event:
        """An event of a new user, or of this one; the seed decides its ids and its name."""
        event_id, fresh = (str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
                           for _ in range(2))
        user, name = user or fresh, self.rng.choice(NAMES)
        body = events.encode(events.Event(event_id, events.USER_CREATED, events.now(), user, name,
                                          f"u{event_id[:6]}@eco.com"))
        return Event(event_id, user, body)

    def publish(self, *new: Event, pace_s: float = 0) -> None:
        """Publish with confirms, `pace_s` between two."""
        for event in new:
            (self.events if event.points else self.poison).append(event)
            again, at = event.body in self._ids, self.now
            self._ids[event.body] = event.id
            self._send(event)
            self.note("published", "publicado y confirmado" + " otra vez" * again, event.id, at)
            if pace_s:
                self.pause(pace_s, "publica eventos")
                self.stall = max(self.stall, self.now - at - pace_s - POLL_S)

    def _send(self, event: Event) -> None:
        """While a queue of the program's own is being deleted, the broker may nack or close the
        connection (docs/facts.md, broker 27): again, as a publisher does. Raises AMQPError if it
        does not help."""
        properties = pika.BasicProperties(
            content_type="application/cloudevents+json", message_id=event.id,
            type=events.USER_CREATED, delivery_mode=2)
        for tries_left in reversed(range(SENDS)):
            try:
                return self.channel().basic_publish(exchange.EXCHANGE, "", event.body, properties,
                                                    mandatory=True)
            except (pika.exceptions.NackError, pika.exceptions.ConnectionClosedByBroker):
                if not tries_left:
                    raise
                time.sleep(POLL_S)

    # ------------------------------------------------------------ the broker

    def stop_broker(self, kill: bool) -> None:
        self.note("broker", "el broker muere (SIGKILL)" if kill else "el broker se para")
        self._hang_up()
        self._tracing.clear()
        (self.node.kill if kill else self.node.stop)()

    def start_broker(self) -> None:
        self.node.start()
        self._tracing.wait(BROKER_S)
        self.note("broker", "el broker está en marcha otra vez")

    def bind_queues(self, bound: bool) -> None:
        """Bind the queues to the exchange, or unbind them: then no event has a way."""
        channel = self.channel()
        for queue in exchange.CONSUMERS.values():
            (channel.queue_bind if bound else channel.queue_unbind)(
                queue=queue, exchange=exchange.EXCHANGE, routing_key="")
        self.note("binding", "el exchange tiene colas otra vez" if bound
                  else "el exchange se queda sin colas")

    def channel(self) -> Any:
        """The judge's own, confirming channel, not through the wire."""
        with suppress(AMQPError):
            if self._connection and self._connection.is_open:
                self._connection.process_data_events(0)
        if not self._connection or not self._connection.is_open or not self._channel.is_open:
            self._hang_up()
            self._connection = self._connect()
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        return self._channel

    def consumers(self) -> int:
        return self._declared(QUEUE)[1]

    def depth(self, queue: str) -> int:
        return self._declared(queue)[0]

    def _declared(self, queue: str) -> tuple[int, int]:
        try:
            found = self.channel().queue_declare(queue, passive=True).method
            return found.message_count, found.consumer_count
        except pika.exceptions.ChannelClosedByBroker:
            return 0, 0

    def backlog(self) -> int:
        """Messages of the queues that the program works on; up to a second old."""
        return sum(queue.get("messages", 0) for queue in self._queues("name,exclusive,messages"))

    def topology_is_intact(self) -> bool:
        """Whether loyalty_queue and dead_letter_queue are as declared, and the first is bound."""
        bound = any((binding["source"], binding["destination"]) == (exchange.EXCHANGE, QUEUE)
                    for binding in self._manage("GET", f"bindings/{self._vhost}"))
        names = self.working_queues()
        try:
            setup_queues.declare(self.channel(), self.settings)
        except AMQPError:  # one exists with other arguments
            return False
        return bound and QUEUE in names

    def wait_until_gone(self) -> None:
        """After the program's end: until the broker has noticed and taken back what it held."""
        deadline = time.monotonic() + GONE_S
        while (any(self._declared(queue)[1] for queue in self.working_queues())
               and time.monotonic() < deadline):
            time.sleep(POLL_S)

    def drain(self, queue: str) -> list[bytes]:
        """Take all messages out of a queue."""
        channel, bodies = self.channel(), []
        with suppress(pika.exceptions.ChannelClosedByBroker):
            while True:
                method, _, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    break
                bodies.append(body)
        return bodies

    def working_queues(self) -> list[str]:
        return [queue["name"] for queue in self._queues("name,exclusive")]

    def _queues(self, columns: str) -> list[dict]:
        others = {exchange.DEAD_LETTER_QUEUE, *exchange.CONSUMERS.values()} - {QUEUE}
        found = self._manage("GET", f"queues/{self._vhost}?columns={columns}"
                             "&disable_stats=true&enable_queue_totals=true")
        return [queue for queue in found
                if queue["name"] not in others and not queue.get("exclusive")]

    def id_of(self, body: bytes) -> str | None:
        """The event of a message, whoever published it."""
        if body in self._ids:
            return self._ids[body]
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            return str(json.loads(body)["id"]).lower()
        return None

    def _heard(self, word: str, body: bytes, moment: float) -> None:
        """In a thread of the wire. What is committed by now came before this ack."""
        at, event = moment - self._began, self.id_of(body)
        if word in ("first", "again"):
            return self._note_delivery(word == "again", event, at)
        if word == "ack":
            self._note_effects(at)
            at = max(at, self._seen_at)  # the main thread saw its effect meanwhile
        text = f"{word} del proceso {self.program.number}"
        self.note(word, text if word != "cut" else "ese ack no llega al broker", event, at)

    def _note_delivery(self, again: bool, event: str | None, at: float) -> None:
        self.note("delivered", f"entregado{' otra vez' * again} al proceso {self.program.number}",
                  event, at)

    def _on_claim(self, event_id: str, outcome: str) -> None:
        self.note("claim", f"el programa dice {outcome[:20]!r}", event_id)

    def _on_call(self, event_id: str, status: int) -> None:
        text = f"el servicio contesta {status}" if status else "el servicio no contesta"
        self.note("call", text, event_id)

    @property
    def _url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.node.port}/{self._vhost}"

    def _connect(self) -> pika.BlockingConnection:
        """No heartbeat: it is not served while the judge waits for the program."""
        return pika.BlockingConnection(parameters(self._url, None, heartbeat=0))

    def _hang_up(self) -> None:
        with suppress(AMQPError):
            if self._connection and self._connection.is_open:
                self._connection.close()
        self._connection = None

    def _manage(self, method: str, path: str, body: dict | None = None) -> Any:
        return ask_management(method, self.node.management_url, "guest", "guest", path, body)

    # ------------------------------------------------------------ the firehose

    def _watch(self) -> None:
        """A thread: follow the firehose; it is off after each start of the broker."""
        while not self._closed.is_set():
            with suppress(AMQPError, OSError), closing(self._connect()) as connection:
                self._manage("PUT", f"vhosts/{self._vhost}", {"tracing": True})
                channel = connection.channel()
                queue = channel.queue_declare("", exclusive=True).method.queue
                for key in ("publish.#", "deliver.#"):
                    channel.queue_bind(queue, FIREHOSE, key)
                self._tracing.set()
                for method, properties, body in channel.consume(
                        queue, auto_ack=True, exclusive=True, inactivity_timeout=0.1):
                    if self._closed.is_set():
                        break
                    if method and properties.headers.get("user") == USER:
                        self._note_traced(method.routing_key, properties.headers, body)
            self._closed.wait(0.1)

    def _note_traced(self, key: str, headers: dict, body: bytes) -> None:
        event, (what, _, where) = self.id_of(body), key.partition(".")
        if what == "deliver":
            self.sources.add(where)
            if self.wire.plain:  # else the wire has said so, at the very moment
                self._note_delivery(bool(headers.get("redelivered")), event, self.now)
        else:
            self._traced += 1
            routed = headers.get("routed_queues") or ()
            where = f"{len(routed)} colas" if len(routed) > 1 else "".join(map(str, routed))
            self.note("copied" if routed else "unroutable", "publicado por el programa; "
                      + (f"llega a {where}" if routed else "no llega a ninguna cola"), event)
