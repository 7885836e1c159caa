"""Views that stay: of the dead letters, and of the whole flow (common/flow.py). They take nothing, and outlive the broker."""

import random
import time
from collections import Counter
from collections.abc import Callable

from common import cli, console
from common.config import Settings
from common.connection import BrokerUnavailable, backoff_s, connect
from common.letters import Letter, declare_dead_letter_queue, depth, look

POLL_S = 1
LOOK_AGAIN_S = 3  # when the depth alone shows no change


class View:
    """Looks at the broker until done(); _watch(connection) is called again over a new connection when one breaks."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.stop_wanted = False

    def until_stopped(self) -> None:
        """Raises BrokerUnavailable if done() ends it before any broker was seen, ConfigError for what no waiting mends."""
        cli.stop_on_signals(self, within_s=2)
        failures, first_problem, seen = 0, None, False
        while not self.done():
            try:
                with connect(self.settings) as connection:
                    if failures:
                        console.say(f"{console.clock()} Conectado de nuevo con el broker.", "ok")
                    failures, seen = 0, True
                    self._watch(connection)
            except BrokerUnavailable as error:
                if failures == 0:
                    console.say(f"{console.clock()} {error} Se sigue intentando.", "warn")
                first_problem = first_problem or error
                time.sleep(min(backoff_s(failures), 1))
                failures += 1
        if first_problem and not seen and not self.stop_wanted:
            raise first_problem

    def done(self) -> bool:
        return self.stop_wanted

    def _watch(self, connection) -> None:
        raise NotImplementedError

    def _pause(self, connection, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while not self.done() and time.monotonic() < ends_at:
            connection.sleep(POLL_S / 10)  # short sleeps: Ctrl-C is heard


class Watcher(View):
    """The dead letters, each once. show(letter, number) is called for each letter that is wanted(letter).

    A letter may be in the queue more than once, and is shown as often: `shown` counts by digest.
    """

    def __init__(self, settings: Settings, show: Callable[[Letter, int], None], wanted: Callable[[Letter], bool],
                 limit: int | None, idle_timeout_s: float | None):
        super().__init__(settings)
        self.show, self.wanted, self.limit, self.idle_timeout_s = show, wanted, limit, idle_timeout_s
        self.shown: Counter = Counter()
        self.new_at = time.monotonic()

    def done(self) -> bool:
        idle = self.idle_timeout_s is not None and time.monotonic() - self.new_at > self.idle_timeout_s
        return super().done() or idle or self.shown.total() == self.limit

    def _watch(self, connection) -> None:
        declare_dead_letter_queue(connection, self.settings)
        last_seen, again_at = 0, 0.0
        while not self.done():
            now_there, pause_s = depth(connection), POLL_S
            if now_there and (now_there != last_seen or time.monotonic() > again_at):
                started_at = time.monotonic()
                last_seen = self._look(connection)
                took = time.monotonic() - started_at
                again_at = time.monotonic() + max(LOOK_AGAIN_S, 20 * took)
                pause_s = max(POLL_S, min(30, 4 * took))  # leave others their turn
            elif not now_there:
                last_seen = 0
            self._pause(connection, pause_s * random.uniform(0.5, 1))  # two views must not keep step

    def _look(self, connection) -> int:
        """Show what is new; how many there are."""
        seen: Counter = Counter()
        for *_, letter in look(connection, patience_s=0):
            if self.done():
                break
            seen[letter.digest] += 1
            if seen[letter.digest] > self.shown[letter.digest] and self.wanted(letter):
                self.shown[letter.digest] += 1
                self.new_at = time.monotonic()
                self.show(letter, self.shown.total())
        return seen.total()
