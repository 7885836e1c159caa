"""The graded program as a process: started, killed with all its children, and not trusted.

What it prints never reaches the judge's own output; its last lines are kept to be quoted.
"""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tools.command import own_group

TAIL_BYTES = 4096
TAIL_LINES = 8
MOST_CLAIMS = 10_000
CHUNK = 65536
FLOOD_PAUSE_S = 0.02  # after a full chunk: a program that floods stdout waits, the judge does not
SWEEPS = 20
HEAR_S = 5
MARK = "KIT_GRADE"  # an environment variable that all its children inherit


class Program:
    """`command`, started again after each kill; process 1, 2, 3 … in the history."""

    def __init__(self, command: list[str] | str, folder: Path, environment: dict[str, str],
                 on_claim: Callable[[str, str], None]):
        self.number = 0
        self.killed = False  # by the judge
        self.claims: dict[str, str] = {}  # of a publisher: id -> outcome, from its JSON lines
        self._mark = secrets.token_hex(8)
        self._command, self._folder, self._on_claim = command, folder, on_claim
        self._environment = os.environ | environment | {
            MARK: self._mark, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1"}
        self._process: subprocess.Popen | None = None
        self._tail, self._line = b"", b""
        self._reading = False

    def start(self) -> None:
        """Raises OSError if there is no such program."""
        self.number += 1
        self.killed = False  # before there is a process that a trap of the wire may kill
        self._process = subprocess.Popen(
            self._command, cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **own_group())
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,),
                                        daemon=True)
        self._reader.start()

    def hear_out(self) -> None:
        """After its end: until all that it printed is read."""
        if self._process:
            self._reader.join(HEAR_S)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def kill(self) -> bool:
        """SIGKILL to its process group: no handler runs, nothing is finished. False: it was dead
        already."""
        if not self._process:
            return False
        lived = self.exit_code is None and not self.killed
        self.killed = self.killed or lived
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(self._process.pid)],
                           capture_output=True)
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return lived

    def end(self) -> None:
        """Kill it, with the children that left its group."""
        self.kill()
        if self._process:
            self._process.wait()
        for _ in range(SWEEPS):  # a program that forks all the time
            strays = self._strays()
            for pid in strays:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not strays:
                return

    def _strays(self) -> list[int]:
        """Processes with the mark in their environment. Only Linux shows it to other programs."""
        mark, found = f"{MARK}={self._mark}".encode(), []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in file.read_bytes():
                    found.append(int(file.parent.name))
        return found

    def last_lines(self) -> list[str]:
        """Its last lines, whole or cut; the caller cleans them for the terminal."""
        return self._tail.decode("utf-8", "replace").splitlines()[-TAIL_LINES:]

    @property
    def unread(self) -> bool:
        """Whether it has printed what is not noted yet. Windows does not tell."""
        with suppress(OSError, ValueError):  # closed
            if self._process and _readable(self._process.stdout, 0):
                return True
        return self._reading  # asked last: it is set before the pipe is emptied

    def _read(self, stream) -> None:  # type: ignore[no-untyped-def]  # a BufferedReader
        with suppress(OSError, ValueError):
            while True:
                self._reading = _readable(stream, None)
                chunk = os.read(stream.fileno(), CHUNK)
                self._reading = True
                if not chunk:
                    break
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]
                *lines, self._line = (self._line + chunk).split(b"\n")
                self._line = self._line[-TAIL_BYTES:]
                for line in lines:
                    self._note_claim(line)
                self._reading = False
                if len(chunk) == CHUNK:
                    time.sleep(FLOOD_PAUSE_S)
        self._reading = False
        stream.close()

    def _note_claim(self, line: bytes) -> None:
        """A line {"id": …, "outcome": …}, as events_publisher_levels.py --json prints it."""
        if not line.startswith(b"{") or len(line) > TAIL_BYTES or len(self.claims) > MOST_CLAIMS:
            return
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            claim = json.loads(line)
            event, outcome = str(claim["id"]).lower(), str(claim["outcome"])
            self.claims[event] = outcome
            self._on_claim(event, outcome)


def _readable(stream, seconds: float | None) -> bool:  # type: ignore[no-untyped-def]
    """Wait until there is something to read. False: there was nothing, or this is Windows."""
    return os.name != "nt" and bool(select.select([stream], [], [], seconds)[0])
