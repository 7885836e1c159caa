"""What the demo plays on: the real scripts as processes, their lines interleaved, and checks."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from common import console
from common.config import ROOT

END_TIMEOUT_S = 15
POLL_S = 0.1
COLOURS = ("38;5;31", "38;5;133", "38;5;130", "38;5;63", "38;5;28", "38;5;37", "38;5;168")
NAME_WIDTH = 9
WINDOWS = os.name == "nt"


class Script:
    """A script of the kit in a process of its own; `lines` is what it has printed so far."""

    def __init__(self, name: str, arguments: tuple, environment: dict, colour: str):
        self.name = name
        self.lines: list[str] = []
        self._colour = colour
        # A group of its own: the Ctrl-C of the terminal is for the demo, which passes it on.
        own_group = ({"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if WINDOWS
                     else {"start_new_session": True})
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / f"{name}.py"), *arguments], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace", **own_group)
        self._reader = threading.Thread(target=self._show_lines, daemon=True)
        self._reader.start()

    def _show_lines(self) -> None:
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            console.say(f"{_tint(self.name.split('_')[0].ljust(NAME_WIDTH), self._colour)}│ {self.lines[-1]}")

    def text(self) -> str:
        return "\n".join(self.lines)

    def wait(self, timeout: float = END_TIMEOUT_S) -> "int | None":
        """Its exit code, when all it printed was read; None if it does not end in time."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(timeout)
        return code

    def ctrl_c(self) -> "int | None":
        """Interrupt it as a person would; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.CTRL_BREAK_EVENT if WINDOWS else signal.SIGINT)
        return self.wait()

    def kill(self) -> None:
        self._process.kill()
        self.wait()


class Stage:
    """Starts scripts, compares what was expected with what happened, leaves nobody running."""

    def __init__(self, url: str, folder: Path, delays: str):
        self.failures = 0
        self._scripts: list[Script] = []
        self._environment = os.environ | {
            "RABBITMQ_URL": url, "RETRY_DELAYS": delays, "STATE_DIR": str(folder), "QUEUE_TYPE": "quorum",
            "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for script in self._scripts:
            script.kill()

    def title(self, text: str) -> None:
        console.say(f"\n{console.paint(text, 'bold')}")

    def start(self, name: str, *arguments: str) -> Script:
        """Start a script; it goes on by itself."""
        console.say(console.paint(f"  $ python {name}.py {' '.join(map(_quoted, arguments))}".rstrip(), "bold"))
        colour = COLOURS[len(self._scripts) % len(COLOURS)]
        script = Script(name, arguments, self._environment, colour)
        self._scripts.append(script)
        return script

    def run(self, name: str, *arguments: str) -> Script:
        """Run a script to its end, which has to be 0."""
        script = self.start(name, *arguments)
        code = script.wait(60)
        if code != 0:
            self.check(f"{name}.py termina bien", 0, code)
        return script

    def ask(self, name: str, *arguments: str) -> str:
        """What a script prints on stdout, without showing it."""
        return subprocess.run([sys.executable, str(ROOT / f"{name}.py"), *arguments], cwd=ROOT,
                              env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              text=True, encoding="utf-8", timeout=60).stdout

    def check(self, what: str, expected, happened) -> None:
        """One line: ✔, or ✘ with the difference."""
        if expected == happened:
            console.say(f"  ✔ {what}", "ok")
            return
        self.failures += 1
        console.say(f"  ✘ {what}: se esperaba {expected!r} y hubo {happened!r}", "error")

    def check_soon(self, what: str, expected, look, timeout: float = 20) -> None:
        """Like check, but `look()` has until the deadline to give what is expected."""
        deadline = time.monotonic() + timeout
        happened = look()
        while happened != expected and time.monotonic() < deadline:
            time.sleep(POLL_S)
            happened = look()
        self.check(what, expected, happened)


def _tint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if console.paint("", "bold") else text


def _quoted(argument: str) -> str:
    return argument if argument.replace("-", "").replace(".", "").isalnum() else f'"{argument}"'
