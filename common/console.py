"""What the scripts print: lines, colour, bars. Nothing that an event carries reaches the terminal raw."""

import errno
import functools
import json
import os
import sys
import threading
import time
import unicodedata

# Bold, and neither light nor dark (of the 256 colours): to be read on white and on black, from the last row.
_COLOURS = {"ok": "1;38;5;28", "warn": "1;38;5;130", "error": "1;38;5;196", "bold": "1"}
_BIDI = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REASONS = {"EACCES": "sin permiso", "EPERM": "sin permiso", "ENOSPC": "no queda espacio", "EDQUOT": "no queda espacio",
            "EROFS": "es de solo lectura", "ENOENT": "no existe", "ENOTDIR": "hay un archivo donde iría una carpeta",
            "EEXIST": "hay un archivo donde iría una carpeta", "EISDIR": "es una carpeta",
            "ENAMETOOLONG": "el nombre es demasiado largo"}
SHORT_ID = 8  # characters
_lock = threading.Lock()
json_mode = False


def set_up(as_json: bool = False) -> None:
    """Call once at the start: an old Windows console cannot print ✔, and colour needs a switch there."""
    global json_mode
    json_mode = as_json
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if os.name == "nt":
        os.system("")  # turns on the terminal's escape codes (bugs.python.org/issue30075)


def clean(text: object) -> str:
    """The text without what would move the cursor, hide or reorder it: C0, C1, surrogates, bidi."""
    text = str(text)
    if text.isprintable():  # most are, and one look is cheaper than one at each character
        return text
    return "".join(
        "\ufffd" if char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)


def paint(text: str, colour: str | None, stream=None) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour and _takes_colour(stream or out()) else text


@functools.cache
def _takes_colour(stream) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def out():
    """Where words for people go: with --json stdout is for data alone."""
    return sys.stderr if json_mode else sys.stdout


def say(text: str, colour: str | None = None) -> None:
    """Print one line for people."""
    _write(out(), paint(text, colour))


def complain(text: str) -> None:
    """Print one line that says what went wrong and what to do."""
    _write(sys.stderr, paint(clean(text), "error", sys.stderr))


def data(*records: dict) -> None:
    """Print each object as one line on stdout; ASCII, so that no console's encoding can spoil it."""
    _write(sys.stdout, "\n".join(map(json.dumps, records)))


def _write(stream, line: str) -> None:
    with _lock:  # the I/O thread says "conexión perdida" while the handler prints an event
        stream.write(line + "\n")
        stream.flush()


def reason(error: OSError) -> str:
    """Why a file or folder cannot be used."""
    return _REASONS.get(errno.errorcode.get(error.errno or 0, ""), error.strerror or "error de disco")


def clock() -> str:
    return time.strftime("%H:%M:%S")


def short(identifier: object) -> str:
    """The end of an id, enough to tell it from others on the screen; ids of one moment begin alike."""
    return clean(identifier or "-")[-SHORT_ID:]


def bar(count: int, most: int, width: int = 24) -> str:
    """A bar of `width` characters for the largest count; at least one for any count above 0."""
    length = max(1, round(width * count / most)) if count else 0
    return "█" * length


def table(rows: list[tuple], right: set[int] = frozenset()) -> list[str]:
    """Lines with the columns aligned; `right` holds the indexes of the columns aligned right."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.rjust(width) if index in right else cell.ljust(width)
                      for index, (cell, width) in enumerate(zip(row, widths))).rstrip()
            for row in cells]
