"""docs/laboratorio.md: its commands are run, and its output is compared with what they print.

    python kit.py test -- tests/test_lab.py --record     writes the current output into the pages
"""

import re
import shlex
import sys
import time

import pytest

from tests.conftest import ROOT, MailServer, Running, wait_until
from tests.test_readme import ENDS, blocks, pattern

PAGES = [ROOT / "docs" / name for name in ("laboratorio.md", "laboratorio.en.md")]
STEP = re.compile(r"^Terminal (?P<stop>\d): Ctrl-C\.$|^Terminal (?P<terminal>\d):$"
                  r"|^```(?P<language>bash|text)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
MAILPIT = "smtp://localhost:1025"
QUIET_S = 6  # while recording: after this silence, the output is complete
# How often this is printed depends on how fast the broker restarts.
DISCONNECTED = "Sin conexión con el broker"


class Terminal:
    """One terminal of the reader: it runs one program at a time and keeps all output."""

    def __init__(self):
        self.lines: list[str] = []
        self.shown = 0  # how many of them the page has shown or skipped
        self.running: Running | None = None
        self.taken = 0  # how many lines of the running program are in `lines`

    def new_lines(self) -> list[str]:
        self.take()
        return self.lines[self.shown:]

    def take(self) -> None:
        """Add what the program has printed since the last call, stdout and stderr together."""
        if self.running:
            self.lines += self.running.out[self.taken:]
            self.taken = len(self.running.out)

    def start(self, running: Running) -> None:
        self.running, self.taken = running, 0

    def end(self) -> None:
        if self.running:
            self.running.end()
            self.take()
            self.running = None


class Lab:
    """Executes the steps of the page in its terminals."""

    def __init__(self, kit, mail, record: bool):
        self.kit, self.mail, self.record = kit, mail, record
        self.terminals = {str(number): Terminal() for number in range(1, 5)}
        self.ids: dict[str, str] = {}  # event id on the page -> event id of this run
        self.recorded: list[str] = []
        self.matched = 0  # number of lines in the last match

    def play(self, page: str) -> None:
        terminal = None
        for step in STEP.finditer(page):
            if step["stop"]:
                terminal = self.terminals[step["stop"]]
                assert terminal.running.interrupt() == 0
                terminal.end()
            elif step["terminal"]:
                terminal = self.terminals[step["terminal"]]
            elif step["language"] == "bash":
                terminal.end()  # the previous program has ended
                terminal.shown = len(terminal.lines)
                for line in step["body"].splitlines():
                    self.type(terminal, line)
            else:
                self.show(terminal, step["body"].splitlines())
        for terminal in self.terminals.values():
            terminal.end()  # the page stops all programs

    def type(self, terminal: Terminal, line: str) -> None:
        terminal.end()
        words = shlex.split(line.replace(MAILPIT, self.mail.url))
        if words[0] == "docker":
            (self.mail.stop if "stop" in words else self.mail.start)()
        elif words[1] == "kit.py":
            {"down": self.kit.node.stop, "up": self.kit.node.start}[words[-1]]()
        else:
            terminal.start(Running([sys.executable, str(ROOT / words[1]), *words[2:]],
                                   self.kit.environment(), self.kit.state.parent, together=True))
            self.kit.started.append(terminal.running)
            self._wait_until_started(terminal, words)

    def _wait_until_started(self, terminal: Terminal, words: list[str]) -> None:
        """Wait until the program listens, has made some progress, or has ended."""
        running = terminal.running
        if "consumer" in words[1] and not ENDS & set(words):
            wait_until(lambda: "escucha" in running.text() or "Mirando" in running.text(),
                       f"{words} to listen", running.text)
        elif "--rate" in words:
            wait_until(lambda: self.kit.depth("email_queue") > 50, f"{words} to make progress",
                       running.text)
        else:
            assert running.end() == 0, running.text()

    def show(self, terminal: Terminal, lines: list[str]) -> None:
        if self.record:
            lines = self._recorded(terminal)
        wait_until(lambda: self.matches(lines, terminal.new_lines()),
                   "what the page shows:\n" + "\n".join(lines),
                   lambda: "there is:\n" + "\n".join(terminal.new_lines()), timeout=60)
        terminal.shown += self.matched
        self.recorded.append("".join(f"{line}\n" for line in lines))

    def _recorded(self, terminal: Terminal) -> list[str]:
        def is_silent() -> bool:
            if not terminal.running or terminal.running.process.poll() is not None:
                terminal.end()
                return True
            count = len(terminal.new_lines())
            time.sleep(QUIET_S)
            is_paced = "--rate" in terminal.running.process.args
            return count == len(terminal.new_lines()) and not is_paced

        wait_until(is_silent, "silence", timeout=120)
        port = self.kit.url.rpartition(":")[2].partition("/")[0]
        return [line.replace(f"127.0.0.1:{port}", "localhost:5672")
                for line in terminal.new_lines()]

    def matches(self, shown: list[str], printed: list[str]) -> bool:
        """Compare line by line, with the same ids. Repeated DISCONNECTED lines count as one."""
        rests = [[line for line in lines if DISCONNECTED not in line] for lines in (shown, printed)]
        lost = [any(DISCONNECTED in line for line in lines) for lines in (shown, printed)]
        if len(rests[0]) != len(rests[1]) or lost[0] != lost[1]:
            return False
        ids = dict(self.ids)
        for line, real in zip(*rests):
            found = re.fullmatch(pattern(line, ""), real)
            known = re.search(r"evento ([0-9a-f]{8})\b", line)
            if not found or (known and ids.setdefault(known[1], found["id"]) != found["id"]):
                return False
        self.ids, self.matched = ids, len(printed)
        return True


def test_the_lab_page_shows_what_the_scripts_print(own_kit, smtp_python, tmp_path, request):
    page = PAGES[0].read_text(encoding="utf-8")
    delays = re.search(r"^RETRY_DELAYS=(\S+)$", page, re.MULTILINE)[1]
    with MailServer(smtp_python, tmp_path / "mail") as mail:
        lab = Lab(own_kit.using(delays=delays, started=own_kit.started), mail,
                  request.config.getoption("--record"))
        lab.play(page)
    assert len(lab.recorded) > 15
    if lab.record:
        for path in PAGES:
            bodies = iter(lab.recorded)
            path.write_text(re.sub(r"^```text\n.*?^```$", lambda _: f"```text\n{next(bodies)}```",
                                   path.read_text(encoding="utf-8"),
                                   flags=re.MULTILINE | re.DOTALL), encoding="utf-8")


def test_both_lab_pages_have_the_same_steps():
    spanish, english = ([step[0] for step in STEP.finditer(path.read_text(encoding="utf-8"))]
                        for path in PAGES)
    assert english == spanish


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_experiment_has_six_steps_and_a_folded_answer(path):
    steps = {
        "laboratorio.md": ("Predice", "Ejecuta", "Debes ver", "Por qué", "Rómpelo", "Pregunta"),
        "laboratorio.en.md": ("Predict", "Run", "You should see", "Why", "Break it", "Question"),
    }[path.name]
    parts = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    experiments = [part for part in parts
                   if f"**{steps[0]}.**" in part]
    assert len(experiments) == 9 and [part[0] for part in experiments[:8]] == list("12345678")
    for part in experiments:
        positions = [part.index(f"**{step}.**") for step in steps]
        positions.append(part.index("<details><summary>"))
        assert positions == sorted(positions), part[:40]
        assert all(body.strip() for language, body in blocks(part) if language == "text"), part[:40]
