"""What the scripts print. Nothing that an event carries reaches the terminal unfiltered."""

import errno
import functools
import json
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timezone

from common.config import KitError

# Bold, neither light nor dark (of the 256 colours): readable on white and on black.
_COLOURS = {"ok": "1;38;5;28", "warn": "1;38;5;130", "error": "1;38;5;196", "bold": "1"}
_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029"  # C0, C1, surrogates, line ends
                     "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # bidi
_REASONS = {
    "EACCES": "sin permiso", "EPERM": "sin permiso", "ENOSPC": "no queda espacio",
    "EDQUOT": "no queda espacio", "EROFS": "es de solo lectura", "ENOENT": "no existe",
    "ENOTDIR": "hay un archivo donde iría una carpeta", "EISDIR": "es una carpeta",
    "EEXIST": "hay un archivo donde iría una carpeta", "ENAMETOOLONG": "el nombre es muy largo"}
SHORT_ID = 8  # characters
OUTCOMES = {"done": "procesados", "duplicate": "duplicados", "skipped": "de otro tipo",
            "retry": "a reintentar", "dead": "a dead_letter_queue"}
OUTCOME_COLOURS = {"done": "ok", "retry": "warn", "dead": "error"}
_lock = threading.Lock()
json_mode = False


class OutputError(KitError):
    """stdout or stderr cannot be written: a full disk behind a redirection."""
    exit_code = 78


class PipeClosed(OutputError):
    """`… | head`: the reader has all it asked for."""
    exit_code = 0


def set_up(as_json: bool = False) -> None:
    """Call once at the start: an old Windows console cannot print ✔ and has to enable colour."""
    global json_mode
    json_mode = as_json
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started the script
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")
    if os.name == "nt":
        os.system("")  # enables the terminal's escape codes (bugs.python.org/issue30075)


def clean(text: object) -> str:
    """The text without what moves the cursor, hides or reorders."""
    text = str(text)
    return text if text.isprintable() else _HIDDEN.sub("\ufffd", text)


def paint(text: str, colour: str | None, stream=None) -> str:
    if colour and _takes_colour(stream or out()):
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
    return text


def width(stream) -> int | None:
    """The columns of the terminal; None without one, and with --json."""
    return shutil.get_terminal_size().columns if stream.isatty() and not json_mode else None


def _wrapped(text: str, stream) -> str:
    """The text, its long lines broken between words at the width of the terminal."""
    columns = width(stream)
    return text if not columns else "\n".join(
        line if len(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line)) <= columns else textwrap.fill(
            line, columns, break_long_words=False, break_on_hyphens=False,
            subsequent_indent=" " * (len(line) - len(line.lstrip())))
        for line in text.split("\n"))


@functools.cache
def _takes_colour(stream) -> bool:
    return (stream.isatty() and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb")


def out():
    """The stream for people: with --json, stdout is for data alone."""
    return sys.stderr if json_mode else sys.stdout


def print_line(text: str, colour: str | None = None, end: str = "\n") -> None:
    """Print a line for people. Raises OutputError."""
    _write(out(), paint(_wrapped(text, out()), colour) + end)


def print_notice(text: str) -> None:
    """A line that no one misses if stdout is gone."""
    with suppress(OutputError):
        print_line(text)


def print_error(text: str) -> None:
    """Print a line that says what went wrong and what to do; nobody hears it if stderr is gone."""
    with suppress(OutputError):
        shown = _wrapped("\n".join(map(clean, text.splitlines())), sys.stderr)
        _write(sys.stderr, paint(shown, "error", sys.stderr) + "\n")


def print_json(*records: dict) -> None:
    """Print each object as one line on stdout, in ASCII, behind what is left in its buffer."""
    _write(sys.stdout, "".join(json.dumps(record) + "\n" for record in records))


def print_deliveries(consumer: str, deliveries: list) -> None:
    """Print what became of each delivery (common/consuming.py), in one write: a line, and one more
    for why it failed; with --json an object."""
    if json_mode:
        return print_json(*({
            "time": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z",
            "consumer": consumer, "event_id": delivery.event_id, "attempt": delivery.attempt,
            "outcome": delivery.outcome, "detail": delivery.line, "why": delivery.why}
            for delivery in deliveries))
    at, text = time.strftime("%H:%M:%S"), ""
    for delivery in deliveries:
        line = paint(clean(delivery.line), OUTCOME_COLOURS.get(delivery.outcome), sys.stdout)
        text += (f"{at} {line} · id"
                 f" {clean(delivery.event_id)[-SHORT_ID:] or '-'} · intento {delivery.attempt}\n")
        if delivery.why:
            text += f"         {clean(delivery.why)}\n"
    _write(sys.stdout, _wrapped(text, sys.stdout) if sys.stdout.isatty() else text)


def print_totals(consumer: str, counts: Mapping[str, int]) -> None:
    """One line with each outcome that there was."""
    shown = [f"{words} {counts[outcome]}" for outcome, words in OUTCOMES.items()
             if counts[outcome] or outcome == "done"]
    print_line(f"{consumer}: {', '.join(shown)}.")


def print_report(db, report: Callable, draw: Callable) -> None:
    """What is on disk: report(db), an object with --json, else draw(db), lines."""
    if json_mode:
        return print_json(report(db))
    for line in draw(db):
        print_line(line)


def _write(stream, text: str) -> None:
    try:
        with _lock:  # two threads print
            stream.write(text)
            stream.flush()
    except OSError as error:
        if error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL):
            raise PipeClosed from None
        raise OutputError(f"No se puede escribir en la salida ({reason(error)}):"
                          " libera espacio o redirige a otro archivo.") from None


def reason(error: OSError) -> str:
    """Why a file or folder cannot be used."""
    name = errno.errorcode.get(error.errno or 0, "")
    return _REASONS.get(name, error.strerror or "error de disco")


def clock() -> str:
    return time.strftime("%H:%M:%S")


def short(identifier: object) -> str:
    """The end of an id, enough to tell it from others; ids of one moment begin alike."""
    return clean(identifier or "-")[-SHORT_ID:]


def bar(count: int, most: int, width: int = 24) -> str:
    """A bar of `width` characters for the largest count; at least one for any count above 0."""
    return "█" * max(1, round(width * count / most)) if count else ""


def bars(counts: dict[str, int]) -> list[str]:
    """A line with a bar for each name."""
    most = max(counts.values(), default=0)
    return table([(f"  {name}", number, bar(number, most)) for name, number in counts.items()],
                 right={1})


def table(rows: list[tuple], right: Collection[int] = ()) -> list[str]:
    """Lines with the columns aligned; `right` holds the indexes of right-aligned columns."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.rjust(width) if index in right else cell.ljust(width)
                      for index, (cell, width) in enumerate(zip(row, widths))).rstrip()
            for row in cells]
