"""The pages that a class follows: their commands are run, and their output is compared.

    python kit.py test -- tests/test_lab.py tests/test_readme.py --record

writes the current output into README.md, docs/laboratorio.md, docs/nuevo-consumidor.md and their
English twins, and makes the pictures again. Read the difference before you commit it.
"""

import re
import shlex
import shutil
import signal
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import ROOT, MailServer, Running, wait_until

README = (ROOT / "README.md", ROOT / "README.en.md")
LAB = (ROOT / "docs" / "laboratorio.md", ROOT / "docs" / "laboratorio.en.md")
NEW_CONSUMER = (ROOT / "docs" / "nuevo-consumidor.md", ROOT / "docs" / "nuevo-consumidor.en.md")
PLAYED = [README, LAB, NEW_CONSUMER]
STEP = re.compile(r"^Terminal (?P<stop>\d): (?P<keys>Ctrl-C(?:, Ctrl-C)?)\.$"
                  r"|^Terminal (?P<terminal>\d):$"
                  r"|^```(?P<language>bash|text)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
NATIVE = "10"  # the experiment that needs RabbitMQ 4.3
MAILPIT, MANAGEMENT = "smtp://127.0.0.1:1025", "http://127.0.0.1:15672"  # as the pages name them
MORE = "…"  # the last line of a block that shows some entries, all about one event
ENDS = {"--report", "--summary", "--replay", "--discard", "--export"}  # a consumer that exits
LOOKS = {"--show", "--summary"}  # may be repeated until the broker's counts are up to date
EVENT = re.compile(r"(?:id|^\d\d:\d\d:\d\d) ([0-9a-f]{8})\b", re.MULTILINE)
QUIET_S = 6  # while recording: after this silence, the output is complete
# How often this is printed depends on how fast the broker restarts.
DISCONNECTED = "Sin conexión con el broker"


# ---------------------------------------------------------------- reading a page


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Return (language, body) of every fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def parts(page: str) -> list[str]:
    """Return the page in parts, each from a heading of level 2 to the next."""
    return re.split(r"^(?=## )", page, flags=re.MULTILINE)


def is_native(part: str) -> bool:
    return part.startswith(f"## {NATIVE}.")


def entries(lines: list[str]) -> list[list[str]]:
    """Return the lines in groups: one that begins in the first column and those indented below."""
    starts = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)])]


def pattern(line: str) -> str:
    """Return a regular expression for a line of a page.

    It accepts other times, ids, endpoints and rates, and the simulated users in another order.
    """
    made = re.escape(line)
    for shown, wanted in ((r"(?:\\ )+", r"\\s+"), (r"\b\d\d:\d\d:\d\d", r"\\d\\d:\\d\\d:\\d\\d"),
                          (r"\d+\\\.\d(?=\\s\+s\\s\+en)", r"\\d+\\.\\d"),
                          (r"(?<=d\\s\+)[0-9a-f]{8}\b", r"(?P<id>[0-9a-f]{8})"),  # id, or time
                          (r"(?<=HOLA\\-)[0-9a-f]{8}\b", r"[0-9a-f]{8}"),
                          (r"\b[A-Z][a-z]{2}\\s\+Prueba\\s\+\d{4}",
                           r"[A-Z][a-z]{2}\\s+Prueba\\s+\\d{4}"),
                          (r"\b[a-z]{3}\d{4}(?=@)", r"[a-z]{3}\\d{4}"),
                          (r"\d+(?=\\s\+eventos/s)", r"\\d+"),
                          (r"127\\\.0\\\.0\\\.1:5672", r"\\S+:\\d+"),
                          (r"(?<=^mensaje\\s\+fallido\\s\+)\d+", r"\\d+"),
                          (r"(?<=^Date:\\s\+).*(?=\\d\\d:)", r".*")):
        made = re.sub(shown, wanted, made)
    return made


def test_a_line_of_a_page_matches_only_equivalent_output():
    line = "10:31:02 falló → email_queue.retry.1s · id 2bd64516 · intento 1"
    printed = "08:00:00 falló → email_queue.retry.1s · id 2d74dd14 · intento 1"
    assert re.fullmatch(pattern(line), printed)
    assert not re.fullmatch(pattern(line), printed.replace("intento 1", "intento 2"))
    assert not re.fullmatch(pattern(line), printed.replace("1s", "2s"))


# ---------------------------------------------------------------- playing a page


class Terminal:
    """One terminal of the reader: it runs one program at a time and keeps all output."""

    def __init__(self):
        self.lines: list[str] = []
        self.shown = 0  # how many of them the page has shown or skipped
        self.running: Running | None = None
        self.taken = 0  # how many lines of the running program are in `lines`
        self.look = ""  # the last command, if it may be repeated

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

    def press(self, keys: str) -> None:
        """Press Ctrl-C once, for a clean exit, or twice."""
        if keys == "Ctrl-C":
            assert self.running.interrupt() == 0, self.running.text()
        else:
            while self.running.process.poll() is None:
                self.running.process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            assert self.running.end() == 130
        self.end()


class Lab:
    """Executes the steps of a page in its terminals, with the scripts in `root`."""

    def __init__(self, kit, record: bool, mail: MailServer | None = None, root: Path = ROOT):
        self.kit, self.record, self.mail, self.root = kit, record, mail, root
        self.terminals = {str(number): Terminal() for number in range(1, 6)}
        self.ids: dict[str, str] = {}  # event id on the page -> event id of this run
        self.recorded: list[str] = []
        self.matched = 0  # number of lines in the last match

    def play(self, page: str) -> None:
        terminal = None
        for step in STEP.finditer(page):
            if step["stop"]:
                terminal = self.terminals[step["stop"]]
                terminal.press(step["keys"])
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
            if terminal.running:
                terminal.press("Ctrl-C")

    def type(self, terminal: Terminal, line: str) -> None:
        terminal.end()
        for shown, used in ((MAILPIT, self.mail and self.mail.url),
                            (MANAGEMENT, self.kit.node and self.kit.node.management_url)):
            line = line.replace(shown, used or shown)
        words = shlex.split(line)
        terminal.look = line if LOOKS & set(words) else ""
        if words[0] == "docker":
            (self.mail.stop if "stop" in words else self.mail.start)()
        elif words[0] == "cp":
            shutil.copy(self.root / words[1], self.root / words[2])
        elif words[1] == "kit.py":
            {"down": self.kit.node.stop, "up": self.kit.node.start}[words[-1]]()
        else:
            terminal.start(Running([sys.executable, str(self.root / words[1]), *words[2:]],
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
            lines = self._recorded(terminal, lines)
        wait_until(lambda: self.shows(terminal, lines),
                   "what the page shows:\n" + "\n".join(lines),
                   lambda: "there is:\n" + "\n".join(terminal.new_lines()), timeout=60)
        terminal.shown += self.matched
        self.recorded.append("".join(f"{line}\n" for line in lines))

    def shows(self, terminal: Terminal, lines: list[str]) -> bool:
        if self.matches(lines, terminal.new_lines()):
            return True
        self._look_again(terminal)
        return False

    def _look_again(self, terminal: Terminal) -> None:
        if terminal.look:
            terminal.end()
            terminal.shown = len(terminal.lines)
            self.type(terminal, terminal.look)

    def _recorded(self, terminal: Terminal, old: list[str]) -> list[str]:
        def is_silent() -> bool:
            if not terminal.running or terminal.running.process.poll() is not None:
                terminal.end()
                return True
            count = len(terminal.new_lines())
            time.sleep(QUIET_S)
            is_paced = "--rate" in terminal.running.process.args
            return 0 < count == len(terminal.new_lines()) and not is_paced

        wait_until(is_silent, "silence", timeout=120)
        if terminal.look:
            time.sleep(QUIET_S)
            self._look_again(terminal)
            terminal.end()
        port = self.kit.url.rpartition(":")[2].partition("/")[0]
        lines = [line.replace(f"127.0.0.1:{port}", "127.0.0.1:5672")
                 for line in terminal.new_lines()]
        if old[-1] != MORE:
            return lines
        known = EVENT.search("\n".join(lines))
        about_one = [entry for entry in entries(lines) if not known or known[0] in entry[0]]
        return [*chain(*about_one[:len(entries(old[:-1]))]), MORE]

    def matches(self, shown: list[str], printed: list[str]) -> bool:
        """Compare line by line, with the same ids; of an excerpt, each entry anywhere."""
        if shown[-1] == MORE:
            left, ids = entries(printed), dict(self.ids)
            for entry in entries(shown[:-1]):
                found = next((real for real in left if self._equal(entry, real, ids)), None)
                if not found:
                    return False
                left.remove(found)
        else:  # repeated DISCONNECTED lines count as one
            rests, ids = [[line for line in lines if DISCONNECTED not in line]
                          for lines in (shown, printed)], dict(self.ids)
            lost = [any(DISCONNECTED in line for line in lines) for lines in (shown, printed)]
            if lost[0] != lost[1] or not self._equal(*rests, ids):
                return False
        self.ids, self.matched = ids, len(printed)
        return True

    def _equal(self, shown: list[str], printed: list[str], ids: dict[str, str]) -> bool:
        """Compare the lines, and add to `ids` if they are equal."""
        trial = dict(ids)
        for line, real in zip(shown, printed):
            found, known = re.fullmatch(pattern(line), real), EVENT.search(line)
            if not found or (known and trial.setdefault(known[1], found["id"]) != found["id"]):
                return False
        if len(shown) == len(printed):
            ids.update(trial)
        return len(shown) == len(printed)


def play(lab: Lab, pages: tuple[Path, Path], chosen=lambda part: True) -> None:
    """Play the chosen parts of the page; with --record, write what was printed into both twins."""
    lab.play("".join(filter(chosen, parts(read(pages[0])))))
    for path in pages if lab.record else ():
        bodies = iter(lab.recorded)
        path.write_text("".join(
            re.sub(r"^```text\n.*?^```$", lambda _: f"```text\n{next(bodies)}```", part,
                   flags=re.MULTILINE | re.DOTALL) if chosen(part) else part
            for part in parts(read(path))), encoding="utf-8")


@pytest.fixture
def record(request) -> bool:
    return request.config.getoption("--record")


def delays_on(page: Path) -> str:
    return re.search(r"^RETRY_DELAYS=(\S+)$", read(page), re.MULTILINE)[1]


def with_management(kit, pages: tuple[Path, Path]):
    """A Kit that asks the node's management API, with the delays of the page."""
    return kit.using(delays=delays_on(pages[0]), started=kit.started,
                     management=kit.node.management_url)


def test_the_readme_shows_what_the_scripts_print(kit, record):
    lab = Lab(with_management(kit, README), record)
    play(lab, README, lambda part: "\nTerminal 1:\n" in part)
    assert len(lab.recorded) > 5 and kit.report("email_consumer_simple.py") == {"emails": 1}


def test_the_lab_page_shows_what_the_scripts_print(own_kit, smtp_python, tmp_path, record):
    with MailServer(smtp_python, tmp_path / "mail") as mail:
        lab = Lab(with_management(own_kit, LAB), record, mail)
        play(lab, LAB, lambda part: not is_native(part))
    assert len(lab.recorded) > 20


def test_the_lab_page_shows_the_delayed_retries_of_rabbitmq_4_3(own_kit, record):
    if [int(number) for number in own_kit.node.ctl("version").split(".")] < [4, 3]:
        pytest.skip("the delayed retries of quorum queues came with RabbitMQ 4.3")
    lab = Lab(with_management(own_kit, LAB), record)
    play(lab, LAB, is_native)
    assert len(lab.recorded) > 3


def test_the_new_consumer_page_works_as_described(kit, tmp_path, record):
    copy = tmp_path / "kit"
    for folder in ("common", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "events_publisher_levels.py", copy)
    [names] = [body for language, body in blocks(read(NEW_CONSUMER[0])) if language == "python"]
    topology = copy / "common" / "exchange.py"
    changed, count = re.subn(r"^CONSUMERS = \{.*?\}\n", names, read(topology),
                             flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    topology.write_text(changed, encoding="utf-8")
    lab = Lab(kit, record, root=copy)
    play(lab, NEW_CONSUMER)
    assert len(lab.recorded) == 2


# ---------------------------------------------------------------- the text


@pytest.mark.parametrize("pages", PLAYED, ids=lambda pages: pages[0].name)
def test_both_languages_have_the_same_steps(pages):
    spanish, english = ([step[0] for step in STEP.finditer(read(path))] for path in pages)
    assert english == spanish


@pytest.mark.parametrize("path", LAB, ids=lambda path: path.name)
def test_each_experiment_has_six_steps_and_a_folded_answer(path):
    steps = {
        "laboratorio.md": ("Predice", "Ejecuta", "Debes ver", "Por qué", "Rómpelo", "Pregunta"),
        "laboratorio.en.md": ("Predict", "Run", "You should see", "Why", "Break it", "Question"),
    }[path.name]
    experiments = [part for part in parts(read(path)) if f"**{steps[0]}.**" in part]
    assert [re.match(r"## (\d*)", part)[1] for part in experiments] == [
        *map(str, range(1, 11)), ""]
    for part in experiments:
        positions = [part.index(f"**{step}.**") for step in steps]
        positions.append(part.index("<details><summary>"))
        assert positions == sorted(positions), part[:40]
        assert all(body.strip() for language, body in blocks(part) if language == "text"), part[:40]
