"""The flow, drawn in the terminal once a second: every queue with a bar, its consumers, when a retry comes back.

AMQP tells how many messages are ready, not since when they wait; so a time is shown for those whose coming was seen.
"""

import math
import os
import shutil
import sys
import time
from collections import deque

from common import console
from common.config import Settings
from common.events import now
from common.exchange import DEAD_LETTER_QUEUE, EXCHANGE
from common.status import Found, look
from common.watching import View

REDRAW_S = 1
BAR_WIDTH = 24  # one block a message, until one queue has more


class Flow(View):
    """A picture on a terminal; elsewhere a line for each change; with --json an object for each look."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._waiting: dict[str, Waiting] = {}
        self._last_line = ""
        self._redraws = not console.json_mode and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def _watch(self, connection) -> None:
        if self._redraws:
            console.say("\x1b[2J\x1b[H")
        while not self.done():
            states = look(connection, self.settings)
            self._show(sorted(states, key=lambda state: state.queue.name == DEAD_LETTER_QUEUE))  # where all ends
            self._pause(connection, REDRAW_S)

    def _show(self, states: list[Found]) -> None:
        returns = {state.queue.name: self._next_return_s(state) for state in states}
        if console.json_mode:
            console.data({"time": now(), "exchange": EXCHANGE, "queues": [
                {"name": state.queue.name, "ready": state.ready, "consumers": state.consumers,
                 "next_return_s": returns[state.queue.name]} for state in states]})
        elif self._redraws:
            size = shutil.get_terminal_size()
            room = size.lines - 2  # the cursor stands below
            if len(states) >= room:  # without the retries, then
                states = [state for state in states if not _is_retry(state)]
            frame = picture(states, returns, size.columns)[:max(room, 1)]
            console.say("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in frame) + "\x1b[J")
        else:
            line = " · ".join(f"{state.queue.name} {state.ready}" for state in states if state.ready)
            line = line or ("todo vacío" if any(state.ready == 0 for state in states) else "no hay colas")
            if line != self._last_line:
                console.say(f"{console.clock()} {line}")
            self._last_line = line

    def _next_return_s(self, state: Found) -> float | None:
        delay_ms = state.queue.arguments.get("x-message-ttl")
        if delay_ms is None:
            return None
        waiting = self._waiting.setdefault(state.queue.name, Waiting(delay_ms / 1000))
        return waiting.next_return_s(state.ready or 0, time.monotonic())


class Waiting:
    """What waits in one retry queue, as far as its coming was seen: it leaves in that order, each after delay_s."""

    def __init__(self, delay_s: float):
        self._delay_s = delay_s
        self._unseen: int | None = None  # were there before the first look, and leave before all others
        self._first_at = 0.0
        self._seen: deque[list] = deque()  # [seen at, how many], oldest first

    def next_return_s(self, ready: int, at: float) -> float | None:
        """Seconds until the first one comes back; None if there is none, or it is not known."""
        if self._unseen is None:
            self._unseen, self._first_at = ready, at
        if self._first_at + self._delay_s <= at:
            self._unseen = 0
        while self._seen and self._seen[0][0] + self._delay_s <= at:
            self._seen.popleft()
        gone = self._unseen + sum(count for _, count in self._seen) - ready
        if gone < 0:
            self._seen.append([at, -gone])
        self._leave(gone)
        if self._unseen or not self._seen:
            return None
        return self._seen[0][0] + self._delay_s - at

    def _leave(self, gone: int) -> None:
        """So many have left, though by our times they had still to wait: they came a little before they were seen."""
        while gone > 0:
            if self._unseen:
                left = min(gone, self._unseen)
                self._unseen -= left
            else:
                left = min(gone, self._seen[0][1])
                self._seen[0][1] -= left
                if not self._seen[0][1]:
                    self._seen.popleft()
            gone -= left


def picture(states: list[Found], returns: dict[str, float | None], columns: int) -> list[str]:
    """The lines, no longer than the terminal is wide."""
    most = max(BAR_WIDTH, *(state.ready or 0 for state in states))
    names = [_name(state) for state in states]
    width = max(map(len, names))
    lines = [f"{EXCHANGE} (fanout) · {console.clock()} · Ctrl-C para terminar"[:columns]]
    for name, state in zip(names, states):
        line = f"{name:{width}} {_count(state)} {console.bar(state.ready or 0, most, BAR_WIDTH):{BAR_WIDTH}}"
        lines.append(console.paint(f"{line} {_note(state, returns[state.queue.name])}"[:columns].rstrip(), _colour(state)))
    return lines


def _name(state: Found) -> str:
    """A retry queue stands below the queue that it returns to."""
    if state.queue.bound:
        return f"├─ {state.queue.name}"
    target = state.queue.arguments.get("x-dead-letter-routing-key")
    return f"│    {state.queue.name.removeprefix(f'{target}.')}" if target else state.queue.name


def _count(state: Found) -> str:
    return "no está" if state.ready is None else f"{state.ready:7}"


def _note(state: Found, return_s: float | None) -> str:
    if return_s is not None:
        return f"vuelve en {math.ceil(return_s)} s"
    if state.ready is None or _is_retry(state):
        return ""
    if state.queue.name == DEAD_LETTER_QUEUE:
        return "cartas muertas" if state.ready else ""
    return "sin consumidor" if not state.consumers else f"consumidores: {state.consumers}"


def _colour(state: Found) -> str | None:
    if not state.ready:
        return None
    if state.queue.name == DEAD_LETTER_QUEUE:
        return "error"
    return "warn" if _is_retry(state) else "ok"


def _is_retry(state: Found) -> bool:
    return "x-message-ttl" in state.queue.arguments
