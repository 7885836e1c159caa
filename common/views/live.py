"""Views that stay open: of the dead letters, and of the whole flow (flow.py). They remove nothing,
and wait for a broker that is away."""

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone

from common import cli, console
from common.connection import backoff_s, connect
from common.exchange import DEAD_LETTER_QUEUE
from common.problems import BrokerUnavailable
from common.retry import EDITED, journey_of
from common.views.dead_letters import DeadLetter, DeadLetters
from common.views.status import depth

POLL_S = 1
# Each look returns every message once, which counts on 3.10 (docs/facts.md, broker 5): look when
# the depth has changed, and else only this often, for a change that kept the depth.
LOOK_AGAIN_S = 30
HEADING = (" Con su historial: --full.\n"
           "hora     id       usuario         consumidor ×  error (×: intentos)")


def keep_looking(view) -> None:
    """Call view.look(connection), which returns how long to pause then, until view.done(); on a new
    connection after each loss. Raises ConfigError, and BrokerUnavailable if there never was one."""
    cli.stop_on_signals(view, within_s=2)
    failures, first_problem, connected = 0, None, False
    while not view.done():
        try:
            with connect(view.settings) as connection:
                if failures:
                    console.print_line(f"{console.clock()} Conectado de nuevo con el broker.", "ok")
                failures, connected, look_at = 0, True, 0.0
                while not view.done():
                    if time.monotonic() > look_at:
                        pause_s = view.look(connection)
                        look_at = time.monotonic() + pause_s
                    connection.sleep(POLL_S / 10)  # short, so that Ctrl-C is noticed
        except BrokerUnavailable as error:
            if failures == 0:
                console.print_line(f"{console.clock()} {error} Se sigue intentando.", "warn")
            first_problem = first_problem or error
            time.sleep(min(backoff_s(failures), 1))
            failures += 1
    if first_problem and not connected and not view.stop_wanted:
        raise first_problem


class Watcher:
    """Shows each dead letter that is wanted(dead letter) once.

    One may be in the queue more than once, and is shown as often: they are counted by digest.
    """

    def __init__(self, options, wanted: Callable[[DeadLetter], bool]):
        self.settings, self.stop_wanted = options.settings, False
        self._options, self._wanted = options, wanted
        self.shown, self._digests = 0, Counter[int]()
        self._depth, self._look_at, self._new_at = -1, 0.0, time.monotonic()

    def done(self) -> bool:
        idle_s = time.monotonic() - self._new_at
        return (self.stop_wanted or self.shown == self._options.limit
                or idle_s > (self._options.idle_timeout or math.inf))

    def look(self, connection) -> float:
        ready, _ = depth(connection, DEAD_LETTER_QUEUE) or (0, 0)
        started_at = time.monotonic()
        if ready == self._depth and (not ready or started_at < self._look_at):
            return POLL_S
        self._depth = self._show_new(connection)
        took_s = time.monotonic() - started_at
        self._look_at = time.monotonic() + max(LOOK_AGAIN_S, 20 * took_s)
        pause_s = max(POLL_S, min(30, 4 * took_s))  # other views have their turn
        return pause_s * random.uniform(0.5, 1)  # two views out of step

    def _show_new(self, connection) -> int:
        """How many dead letters there are."""
        seen: Counter = Counter()
        with DeadLetters(connection, self.settings, wait=False) as dead_letters:
            for found in dead_letters:
                if self.done():
                    break
                seen[found.digest] += 1
                if seen[found.digest] > self._digests[found.digest] and self._wanted(found):
                    self._digests[found.digest] += 1
                    self.shown += 1
                    self._new_at = time.monotonic()
                    show(found, self.shown, self._options.full)
        return seen.total()


def show(found: DeadLetter, number: int, full: bool) -> None:
    if console.json_mode:
        return console.print_json(found.as_json())
    for line in lines(found, number) if full else [one_line(found)]:
        console.print_line(line)


def one_line(found: DeadLetter) -> str:
    """It in one line, cut at the width of the terminal."""
    at = f"{_local(found.failed_at):%H:%M:%S}" if found.failed_at else "--:--:--"
    user = found.event.nombre or found.event.type
    replays = f"reenvíos {found.replays} · " if found.replays else ""
    text = console.clean(
        f"{at} {console.short(found.message_id):8} {user:15.15} {found.consumer:10}"
        f" ×{found.attempts} {replays}{found.error_type}: {found.error_message}")
    columns = console.width(console.out()) or len(text) + 1
    return text if len(text) < columns else f"{text[:columns - 2]}…"


def lines(found: DeadLetter, number: int) -> list[str]:
    """It for people, with its history as a timeline."""
    error = console.paint(console.clean(f"{found.error_type}: {found.error_message}"), "error")
    event = found.event
    title = console.clean(f"mensaje fallido {number} · {found.consumer} · {event.type}")
    user = console.clean(f"{event.nombre} <{event.email}>")
    replays = f", reenvíos {found.replays}" if found.replays else ""
    edited_at = found.text(EDITED)
    replays += f", corregido {_local(edited_at):%d/%m %H:%M:%S}" if edited_at else ""
    return [f"{console.paint(title, 'bold')} · id {console.short(found.message_id)}",
            *([f"  usuario   {user}"] if event.email else []),
            f"  error     {error}", f"  intentos  {found.attempts}{replays}",
            *(f"  {'' if index else 'historial':9} {line}"
              for index, line in enumerate(_timeline(journey_of(found.headers))))]


def _timeline(journey: list[dict]) -> list[str]:
    """A line for each failed attempt, and between two where the event waited, and how long."""
    shown = []
    for stop, following in itertools.zip_longest(journey, journey[1:]):
        failed_at, to = _local(stop["failed_at"]), console.clean(stop["to"])
        shown.append(f"{failed_at:%H:%M:%S}  {console.paint('✘', 'error')} intento"
                     f" {stop['attempt']}" + ("" if following else f" → {to}"))
        if following:
            waited_s = (_local(following["failed_at"]) - failed_at).total_seconds()
            shown.append(f"   │      {waited_s:.1f} s en {to}")
    return shown


def _local(text: str) -> datetime:
    """What now() wrote, in local time; the epoch for what is no time."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):  # OSError: Windows, for a time before 1970
        return datetime.fromtimestamp(0, timezone.utc)
