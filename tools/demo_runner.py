"""Run the kit's scripts as processes for the demo: show their lines interleaved, check results."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common import console
from common.config import ROOT
from tools.command import own_group

RUN_TIMEOUT_S = 60
EXIT_TIMEOUT_S = 15
CHECK_TIMEOUT_S = 20
POLL_S = 0.1
COLOURS = ("38;5;31", "38;5;133", "38;5;130", "38;5;63", "38;5;28", "38;5;37", "38;5;168")
NAME_WIDTH = 9
CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")
if sys.platform == "win32":
    INTERRUPT = signal.CTRL_BREAK_EVENT  # Windows delivers no Ctrl-C to another group
else:
    INTERRUPT = signal.SIGINT


class Script:
    """A script of the kit as a process; `lines` holds what it has printed so far.

    Those with `words` (a regular expression) in them are shown, without their time of day so that
    they fit into 80 columns; if words is None all are shown, as they are.
    """

    def __init__(self, name: str, arguments: tuple[str, ...], environment: dict[str, str],
                 colour: str, words: str | None):
        self.name = name
        self.lines: list[str] = []
        self._words = words
        self._label = _colour(name.split("_")[0].ljust(NAME_WIDTH), colour)
        # In its own group it does not get the terminal's Ctrl-C; the demo sends one instead.
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / f"{name}.py"), *arguments], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace", **own_group())
        self._reader = threading.Thread(target=self._show_lines, daemon=True)
        self._reader.start()

    def _show_lines(self) -> None:
        for line in self._process.stdout or ():
            text = line.rstrip("\n")
            # A notice: if stdout is gone, it is for the main thread to end the demo.
            if self._words is None:
                console.print_notice(f"{self._label}│ {text}")
            elif re.search(self._words, text):
                console.print_notice(f"{self._label}│ {CLOCK.sub('', text)}")
            self.lines.append(text)  # only now: a check that waits for it prints below it

    def text(self) -> str:
        return "\n".join(self.lines)

    def wait(self, timeout: float = EXIT_TIMEOUT_S) -> int | None:
        """The exit code, after reading all output; None if the script does not exit in time."""
        deadline = time.monotonic() + timeout
        while (code := self._process.poll()) is None:  # a wait() hears no Ctrl-C on Windows
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_S)
        self._reader.join(timeout)
        return code

    def ctrl_c(self) -> int | None:
        """Interrupt the script as Ctrl-C does, and return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(INTERRUPT)
        return self.wait()

    def kill(self) -> None:
        self._process.kill()
        self.wait()


class DemoRunner:
    """Start scripts and compare expected with actual results; on exit, kill what still runs.

    full: show every line and every check. pauses: wait for Enter between two acts.
    """

    def __init__(self, url: str, folder: Path, delays: str, full: bool, pauses: bool):
        self.failures = 0
        self._full, self._pauses = full, pauses
        self._acts = 0
        self._scripts: list[Script] = []
        self._environment = os.environ | {
            "RABBITMQ_URL": url, "RETRY_DELAYS": delays, "STATE_DIR": str(folder),
            "QUEUE_TYPE": "quorum", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}

    def __enter__(self) -> "DemoRunner":
        return self

    def __exit__(self, *_: object) -> None:
        for script in self._scripts:
            script.kill()

    def act(self, title: str, look_at: str) -> None:
        """Begin an act, after a pause."""
        if self._acts and self._pauses:
            _forget_what_was_typed()
            try:
                console.print_line("\nEnter: el acto siguiente. Ctrl-C: terminar. ", end="")
                sys.stdin.readline()
            except KeyboardInterrupt:
                console.print_line("")  # after the terminal's ^C
                raise
        self._acts += 1
        console.print_line(f"\n{console.paint(f'{self._acts}. {title}', 'bold')}")
        console.print_line(f"   Mira: {look_at}")

    def start(self, name: str, *arguments: str, words: str = "") -> Script:
        """Start a script and leave it running."""
        command = f"$ python {name}.py {' '.join(map(_quoted, arguments))}".rstrip()
        console.print_line(console.paint(command, "bold"))
        colour = COLOURS[len(self._scripts) % len(COLOURS)]
        script = Script(name, (*arguments, "--smtp-url", ""),  # no mail leaves the machine
                        self._environment, colour, None if self._full else words)
        self._scripts.append(script)
        return script

    def run(self, name: str, *arguments: str, words: str = "") -> Script:
        """Run a script until it exits; an exit code other than 0 is a failed check."""
        script = self.start(name, *arguments, words=words)
        code = script.wait(RUN_TIMEOUT_S)
        if code != 0:
            self.check(f"{name}.py sale con código 0", 0, code)
        return script

    def output(self, name: str, *arguments: str) -> str:
        """Run a script without showing it and return its stdout."""
        return subprocess.run(
            [sys.executable, str(ROOT / f"{name}.py"), *arguments], cwd=ROOT,
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", timeout=RUN_TIMEOUT_S).stdout

    def check(self, what: str, expected: object, actual: object, shown: bool = True) -> None:
        """Print one line: ✔ (if it is to be shown), or ✘ with the difference."""
        if expected == actual:
            if shown or self._full:
                console.print_line(f"  ✔ {what}", "ok")
            return
        self.failures += 1
        console.print_line(f"  ✘ {what}: se esperaba {expected!r} y hubo {actual!r}", "error")

    def check_soon(self, what: str, expected: object, look: Callable[[], object],
                   shown: bool = True) -> None:
        """Like check, but call `look` until it returns what is expected or the time is over."""
        deadline = time.monotonic() + CHECK_TIMEOUT_S
        actual = look()
        while actual != expected and time.monotonic() < deadline:
            time.sleep(POLL_S)
            actual = look()
        self.check(what, expected, actual, shown)


def _forget_what_was_typed() -> None:
    """Or an Enter pressed while an act was playing would skip the pause after it."""
    if sys.platform == "win32":
        import msvcrt

        while msvcrt.kbhit():
            msvcrt.getch()
    else:
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _colour(text: str, code: str) -> str:
    has_colour = console.paint("", "bold") != ""
    return f"\x1b[{code}m{text}\x1b[0m" if has_colour else text


def _quoted(argument: str) -> str:
    plain = re.fullmatch(r"[\w.@-]+", argument)
    return argument if plain else f'"{argument}"'
