"""Views that stay open: of the dead letters, and of the whole flow (flow.py). They remove nothing,
and wait for a broker that is away."""

import random
import time
from collections import Counter
from collections.abc import Callable

from common import cli, console
from common.config import Settings
from common.connection import backoff_s, connect
from common.exchange import DEAD_LETTER_QUEUE
from common.problems import BrokerUnavailable
from common.views.dead_letters import DeadLetter, declare_dead_letter_queue, look
from common.views.status import depth

POLL_S = 1
# Each look returns every message once, which counts on 3.10 (docs/facts.md, broker 5): look when
# the depth has changed, and else only this often, for a change that kept the depth.
LOOK_AGAIN_S = 30


class View:
    """Looks until done(); _watch(connection) runs again on each new connection."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.stop_wanted = False

    def until_stopped(self) -> None:
        """Raises BrokerUnavailable if done() ends it before a broker was there, ConfigError."""
        cli.stop_on_signals(self, within_s=2)
        failures, first_problem, connected = 0, None, False
        while not self.done():
            try:
                with connect(self.settings) as connection:
                    if failures:
                        console.print_line(f"{console.clock()} Conectado de nuevo con el broker.",
                                           "ok")
                    failures, connected = 0, True
                    self._watch(connection)
            except BrokerUnavailable as error:
                if failures == 0:
                    console.print_line(f"{console.clock()} {error} Se sigue intentando.", "warn")
                first_problem = first_problem or error
                time.sleep(min(backoff_s(failures), 1))
                failures += 1
        if first_problem and not connected and not self.stop_wanted:
            raise first_problem

    def done(self) -> bool:
        return self.stop_wanted

    def _watch(self, connection) -> None:
        raise NotImplementedError

    def _pause(self, connection, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while not self.done() and time.monotonic() < ends_at:
            connection.sleep(POLL_S / 10)  # short, so that Ctrl-C is noticed


class Watcher(View):
    """Calls show(dead letter, number) once for each one that is wanted(dead letter).

    One may be in the queue more than once, and is shown as often: `shown` counts by digest.
    """

    def __init__(self, settings: Settings, show: Callable[[DeadLetter, int], None],
                 wanted: Callable[[DeadLetter], bool], limit: int | None,
                 idle_timeout_s: float | None):
        super().__init__(settings)
        self._show, self._wanted = show, wanted
        self._limit, self._idle_timeout_s = limit, idle_timeout_s
        self.shown: Counter = Counter()
        self._new_at = time.monotonic()

    def done(self) -> bool:
        idle_s = time.monotonic() - self._new_at
        return (super().done() or self.shown.total() == self._limit
                or (self._idle_timeout_s is not None and idle_s > self._idle_timeout_s))

    def _watch(self, connection) -> None:
        declare_dead_letter_queue(connection, self.settings)
        last_depth, look_at = 0, 0.0
        while not self.done():
            ready, _ = depth(connection, DEAD_LETTER_QUEUE) or (0, 0)
            pause_s = float(POLL_S)
            if ready and (ready != last_depth or time.monotonic() > look_at):
                started_at = time.monotonic()
                ready = self._look(connection)
                took_s = time.monotonic() - started_at
                look_at = time.monotonic() + max(LOOK_AGAIN_S, 20 * took_s)
                pause_s = max(POLL_S, min(30, 4 * took_s))  # other views have their turn
            last_depth = ready
            self._pause(connection, pause_s * random.uniform(0.5, 1))  # two views out of step

    def _look(self, connection) -> int:
        """Show what is new; how many there are."""
        seen: Counter = Counter()
        for *_, found in look(connection, patience_s=0):
            if self.done():
                break
            seen[found.digest] += 1
            if seen[found.digest] > self.shown[found.digest] and self._wanted(found):
                self.shown[found.digest] += 1
                self._new_at = time.monotonic()
                self._show(found, self.shown.total())
        return seen.total()
