"""The live view of the flow: each queue with a bar, its consumers and its next returning retry."""

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
from common.views import status
from common.views.management import Management
from common.views.status import Found

REDRAW_S = 1
BAR_WIDTH = 24  # one block per message, until a queue has more messages


class Flow:
    """A picture on a terminal, otherwise a line per change; with --json an object per look."""

    def __init__(self, settings: Settings):
        self.settings, self.stop_wanted = settings, False
        self._management = Management(settings)
        self._waiting: dict[str, Waiting] = {}
        self._last_line = ""
        self._redraws = bool(console.width(sys.stdout)) and os.environ.get("TERM") != "dumb"

    def done(self) -> bool:
        return self.stop_wanted

    def look(self, connection) -> float:
        dead, *others = status.look(connection, self.settings, self._management)
        self._show([*others, dead])  # the dead letters last
        return REDRAW_S

    def _show(self, states: list[Found]) -> None:
        returns = {state.queue.name: self._next_return_s(state)
                   for state in states if state.is_retry}
        if console.json_mode:
            console.print_json({"time": now(), "exchange": EXCHANGE, "queues": [
                {"name": state.queue.name, "ready": state.ready, "unacked": state.unacked,
                 "consumers": state.consumers, "next_return_s": returns.get(state.queue.name)}
                for state in states]})
        elif self._redraws:
            size = shutil.get_terminal_size()
            room = size.lines - 2  # print_line() ends with a line feed, which must not scroll
            states = [state for state in states if state.ready or not state.other]
            if len(states) + 3 > room:  # with the two lines above, and one below
                states = [state for state in states if not state.is_retry]
            frame = picture(states, returns, size.columns, self._management.problem)[:max(room, 1)]
            console.print_line("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in frame) + "\x1b[J")
        else:
            depths = [f"{state.queue.name} {state.ready}"
                      + (f" ({state.unacked} sin ack)" if state.unacked else "")
                      for state in states if state.messages]
            missing = all(state.ready is None for state in states)
            line = " · ".join(depths) or ("no hay colas" if missing else "todo vacío")
            if line != self._last_line:
                console.print_line(f"{console.clock()} {line}")
            self._last_line = line

    def _next_return_s(self, state: Found) -> float | None:
        waiting = self._waiting.setdefault(
            state.queue.name, Waiting(state.queue.arguments["x-message-ttl"] / 1000))
        return waiting.next_return_s(state.ready or 0, time.monotonic())


class Waiting:
    """The messages of a retry queue, each with the time of the look that first saw it.

    AMQP tells how many messages are ready, but not since when. Each message leaves delay_s after
    its arrival, in that order; those of the first look arrived at an unknown time before it.
    """

    def __init__(self, delay_s: float):
        self._delay_s = delay_s
        self._first_look: float | None = None
        self._seen_at: deque[float] = deque()

    def next_return_s(self, ready: int, at: float) -> float | None:
        """Return the seconds until a message returns; None if none waits or it is unknown."""
        if self._first_look is None:
            self._first_look = at
        seen_at = self._seen_at
        while seen_at and (at - seen_at[0] >= self._delay_s or len(seen_at) > ready):
            seen_at.popleft()  # also early, as it arrived before the look that saw it
        seen_at.extend([at] * (ready - len(seen_at)))
        if not ready or seen_at[0] == self._first_look:
            return None
        return self._delay_s - (at - seen_at[0])


def picture(states: list[Found], returns: dict[str, float | None], columns: int,
            problem: str) -> list[str]:
    """Return the lines, none wider than the terminal. problem: why unacked is not known, or ""."""
    most = max(BAR_WIDTH, *(state.messages for state in states))
    width = max(len(_name(state)) for state in states)
    lines: list[tuple[str, str | None]] = [
        (f"{EXCHANGE} (fanout) · {console.clock()} · Ctrl-C para terminar", None),
        (f"{'':{width}} {'listos':>7} {'sin ack':>7}", None)]
    for state in states:
        ready = "no está" if state.ready is None else str(state.ready)
        unacked = "" if state.unacked is None else str(state.unacked)
        held = len(console.bar(state.unacked or 0, most, BAR_WIDTH))
        bar = console.bar(state.messages, most, BAR_WIDTH)[held:] + "░" * held
        note, colour = _note(state, returns.get(state.queue.name))
        lines.append((f"{_name(state):{width}} {ready:>7} {unacked:>7} {bar:{BAR_WIDTH}} {note}",
                      colour if bar else None))
    if problem:
        lines.append((problem, None))
    return [console.paint(line[:columns].rstrip(), colour) for line, colour in lines]


def _name(state: Found) -> str:
    """A retry queue is below the queue that its messages return to."""
    if state.is_retry:
        return "│    " + state.queue.name[state.queue.name.rindex("retry."):]
    return f"├─ {state.queue.name}" if state.queue.bound else state.queue.name


def _note(state: Found, return_s: float | None) -> tuple[str, str]:
    """Return the end of the line, and its colour if the queue has messages."""
    if state.is_retry:
        other = "otro RETRY_DELAYS" if state.other else ""
        return other if return_s is None else f"vuelve en {math.ceil(return_s)} s", "warn"
    if state.queue.name == DEAD_LETTER_QUEUE:
        return "mensajes fallidos" if state.ready else "", "error"
    consumers = f"consumidores: {state.consumers}" if state.consumers else "sin consumidor"
    return "" if state.ready is None else consumers, "ok"
