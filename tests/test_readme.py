"""The READMEs: their commands are run, and their output and tables are compared with the kit."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache

import pytest

import simulate_fail_publisher
from common import cli, config, exchange
from tests.conftest import DELAYS, ROOT, wait_until

README = (ROOT / "README.md").read_text(encoding="utf-8")
ENGLISH = (ROOT / "README.en.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "README.en.md": ENGLISH}
DOCS = [f"docs/{name}" for name in ("topologia.md", "reliability.md", "performance.md",
                                    "laboratorio.md", "laboratorio.en.md", "nuevo-consumidor.md")]
TOPOLOGY = (ROOT / "docs" / "topologia.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
CONSUMERS = {"email_consumer_simple.py": "email", "loyalty_consumer_simple.py": "loyalty",
             "analytics_consumer.py": "analytics"}
NEW_CONSUMER = (ROOT / "docs" / "nuevo-consumidor.md").read_text(encoding="utf-8")
FIVE_MINUTES, RETRIES, LEVELS, GUARANTEES = (
    "Demo de cinco minutos", "Demo de reintentos", "Los tres niveles", "Qué se garantiza")
# A consumer with one of these flags exits by itself.
ENDS = {"--report", "--summary", "--replay", "--discard", "--export"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")

both = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())


# ---------------------------------------------------------------- reading a README


def section(page: str, title: str) -> str:
    """Return the text below a heading, up to the next heading of level 1 or 2."""
    found = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^##? |\Z)", page,
                      re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[2]


def blocks(text: str) -> list[tuple[str, str]]:
    """Return (language, body) of every fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    return [line for language, body in blocks(text) if language in ("bash", "powershell")
            for line in body.splitlines()]


def spans(text: str) -> list[str]:
    """Return the code spans outside the fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row, without the rows of dashes."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()
             if line.startswith("|")]
    return [row for row in cells if not row[0].startswith("|--")
            and not set("".join(row)) <= set("-| ")]


def first_flag(row: list[str]) -> str:
    return FLAG.search(row[0])[0]


def option_tables(page: str) -> dict[str, list[list[str]]]:
    """Return script -> its table rows in the section of the options."""
    found = {}
    for heading, body in re.findall(r"^### ([^\n]*\.py[^\n]*)\n(.*?)(?=^##)", page,
                                    re.MULTILINE | re.DOTALL):
        for script in re.findall(r"[\w.]+\.py", heading):
            found[script] = [row for row in rows(body) if FLAG.search(row[0])]
    return found


@cache
def help_of(script: str) -> str:
    subcommands = [[]]
    if script == "kit.py":
        subcommands = [["demo"], ["test"], ["bench"], ["broker"], ["doctor"]]
    return "".join(subprocess.run([sys.executable, str(ROOT / script), *subcommand, "--help"],
                                  capture_output=True, text=True, encoding="utf-8",
                                  check=True).stdout for subcommand in subcommands)


def flags_of(script: str) -> set[str]:
    """Return every flag in the script's --help."""
    return set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", help_of(script), re.MULTILINE))


def common_flags() -> set[str]:
    return set.intersection(*(flags_of(script) for script in SCRIPTS if script != "kit.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_help_line_fits_in_80_columns(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of.__wrapped__(script).splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("  python ")] == []


# ---------------------------------------------------------------- running a README's section


class Player:
    """Runs the commands of a section and waits for the output that it shows."""

    def __init__(self, kit):
        self.kit = kit
        self.running = []
        self.finished: list[str] = []  # output of the scripts that exited
        self.marks: list[int] = []
        self.ids: dict[str, str] = {}  # event id in the README -> event id of this run
        self.last = ""

    def play(self, text: str) -> None:
        for language, body in blocks(text):
            if language == "bash":
                self.mark()
                for command in body.splitlines():
                    self.command(command)
            if language == "text":
                self.look_for(body.splitlines())

    def mark(self) -> None:
        """Ignore output from before the next commands."""
        self.finished.clear()
        self.marks = [len(process.out) for process in self.running]

    def command(self, line: str) -> None:
        self.last = line
        python, script, *arguments = shlex.split(line)
        assert python == "python", line
        if script == "kit.py":
            {"down": self.kit.node.stop, "up": self.kit.node.start}[arguments[-1]]()
        elif script in CONSUMERS and not ENDS & set(arguments):
            self.running.append(self.kit.start_consumer(CONSUMERS[script], *arguments))
        elif script == "dead_letter_consumer.py" and not ENDS & set(arguments):
            self.running.append(self.kit.start(script, *arguments))
        else:
            self.finished += self.kit.run_ok(script, *arguments).stdout.splitlines()

    def look_for(self, lines: list[str]) -> None:
        assert lines
        for line in lines:
            wait_until(lambda: self.shows(line), f"the README's line {line!r} after {self.last!r}",
                       lambda: "\n".join(self.lines()))

    def shows(self, line: str) -> bool:
        if "--summary" in self.last and not self.match(line):
            self.finished.clear()  # a summary may be repeated until it matches
            self.command(self.last)
        return self.match(line)

    def match(self, line: str) -> bool:
        known = re.search(r"evento ([0-9a-f]{8})\b", line)
        for printed in self.lines():
            found = re.fullmatch(pattern(line), printed)
            if found and known and self.ids.setdefault(known[1], found["id"]) != found["id"]:
                continue
            if found:
                return True
        return False

    def lines(self) -> list[str]:
        starts = self.marks + [0] * len(self.running)
        return self.finished + [line for process, start in zip(self.running, starts)
                                for line in process.out[start:]]


def pattern(line: str, delays: str = DELAYS) -> str:
    """Return a regular expression for a line of a page.

    It accepts other times, ids, endpoints and rates, and `delays` instead of the default ones.
    """
    for shown, used in zip(config.DEFAULTS["RETRY_DELAYS"].split(","),
                           filter(None, delays.split(","))):
        line = line.replace(exchange.retry_queue("", float(shown)),
                            exchange.retry_queue("", float(used)))
    made = re.escape(line)
    for shown, wanted in ((r"(?:\\ )+", r"\\s+"), (r"\b\d\d:\d\d:\d\d", r"\\d\\d:\\d\\d:\\d\\d"),
                          (r"\d+\\\.\d(?=\\s\+s\\s\+en)", r"\\d+\\.\\d"),
                          (r"(?<=evento\\s\+)[0-9a-f]{8}\b", r"(?P<id>[0-9a-f]{8})"),
                          ("…", r"\\S+"), (r"\d+(?=\\s\+eventos/s)", r"\\d+"),
                          (r"localhost:5672", r"\\S+:\\d+"),
                          (r"(?<=^mensaje\\s\+fallido\\s\+)\d+", r"\\d+"),
                          (r"(?<=^Date:\\s\+).*(?=\\d\\d:)", r".*")):
        made = re.sub(shown, wanted, made)
    return made


def test_a_readme_line_matches_only_equivalent_output():
    line = "10:31:02 falló → email_queue.retry.5s · evento 2bd64516 · intento 1"
    printed = "08:00:00 falló → email_queue.retry.300ms · evento 2d74dd14 · intento 1"
    assert re.fullmatch(pattern(line), printed)
    assert not re.fullmatch(pattern(line), printed.replace("intento 1", "intento 2"))
    assert not re.fullmatch(pattern(line), printed.replace("300ms", "600ms"))


# ---------------------------------------------------------------- running the commands


def test_the_five_minute_demo_prints_what_the_readme_shows(kit):
    player = Player(kit)
    player.play(section(README, FIVE_MINUTES))
    assert len(player.ids) == 1  # the same event in all three terminals
    assert kit.report("email_consumer_simple.py") == {"emails": 1}


def test_the_retry_demo_prints_what_the_readme_shows(kit):
    Player(kit).play(section(README, RETRIES))
    wait_until(lambda: kit.report("loyalty_consumer_simple.py") == {"accounts": 1, "points": 100},
               "the points of the replayed event only")


def test_the_levels_demo_loses_level_1_events_on_a_classic_queue(own_kit):
    Player(own_kit).play(section(README, LEVELS))
    assert own_kit.depth("analytics_queue") == 5


def test_the_new_consumer_page_works_as_described(kit, tmp_path):
    copy = tmp_path / "kit"
    shutil.copytree(ROOT / "common", copy / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("events_publisher_levels.py", "docs/coupon_consumer.py"):
        shutil.copy(ROOT / script, copy)
    [names] = [body for language, body in blocks(NEW_CONSUMER) if language == "python"]
    shown, report = [body for language, body in blocks(NEW_CONSUMER) if language == "text"]
    topology = copy / "common" / "exchange.py"
    changed, count = re.subn(r"^CONSUMERS = \{.*?\}\n", names, topology.read_text(encoding="utf-8"),
                             flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    topology.write_text(changed, encoding="utf-8")

    running = kit.start(str(copy / "coupon_consumer.py"))
    wait_until(lambda: kit.consumers("coupon_queue") > 0, "the new consumer to consume",
               running.text)
    kit.run_ok(str(copy / "events_publisher_levels.py"), "--level", "3", "--nombre", "Juan",
               "--email", "juan@eco.com")

    code = pattern(shown.strip()).replace("5e1f00d2", "[0-9a-f]{8}")
    wait_until(lambda: any(re.fullmatch(code, line) for line in running.out), shown, running.text)
    assert kit.run_ok(str(copy / "coupon_consumer.py"), "--report").stdout == report


# ---------------------------------------------------------------- checking the text


@both
def test_the_diagram_is_the_one_that_setup_queues_prints(page):
    printed = subprocess.run(
        [sys.executable, str(ROOT / "setup_queues.py"), "--show", "mermaid",
         "--queue-type", config.DEFAULTS["QUEUE_TYPE"],
         "--retry-delays", config.DEFAULTS["RETRY_DELAYS"]], capture_output=True, text=True,
        encoding="utf-8", check=True)
    assert [body for language, body in blocks(page) if language == "mermaid"] == [printed.stdout]


def test_both_readmes_have_the_same_commands_and_output():
    assert blocks(ENGLISH) == blocks(README)


def test_both_readmes_have_the_same_sections_and_tables():
    def shape(page):
        without_blocks = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
        return [line.split()[0] if line.startswith("#") else len(line.split(" | "))
                for line in without_blocks.splitlines() if line.startswith(("#", "|"))]
    assert shape(ENGLISH) == shape(README)


@both
def test_every_flag_named_with_a_script_exists(page):
    checked = 0
    for line in commands(page) + spans(page):
        for script in re.findall(r"[\w.]+\.py", line.partition(" -- ")[0]):
            if script in SCRIPTS:
                named = set(FLAG.findall(line.partition(" -- ")[0]))
                assert named <= flags_of(script) | {"--help"}, line
                checked += len(named)
    assert checked > 20


@both
def test_every_flag_named_alone_belongs_to_a_script(page):
    known = set.union(*(flags_of(script) for script in SCRIPTS))
    alone = [span for span in spans(page) if span.startswith("--")]
    assert alone and {flag for span in alone for flag in FLAG.findall(span)} <= known


@both
def test_every_flag_is_documented(page):
    tables = option_tables(page)
    assert sorted(tables) == SCRIPTS
    of_settings = {row[1].strip("`") for row in rows(page) if row[0].strip("`") in config.DEFAULTS}
    assert of_settings | {"--json", "--help"} == common_flags()
    assert all(f"`{flag}`" in page for flag in common_flags())
    for script, table in tables.items():
        expected = flags_of(script) - common_flags() - {"--help"}
        assert {first_flag(row) for row in table} == expected, script


@both
def test_the_documented_defaults_and_choices_are_correct(page):
    required = ["--level", "1", "--nombre", "Juan", "--email", "juan@eco.com"]
    given = {"events_publisher_levels.py": cli.publisher_options("", required),
             "email_consumer_simple.py": cli.consumer_options("", []),
             "dead_letter_consumer.py": cli.dead_letter_options("", [], ()),
             "simulate_fail_publisher.py": simulate_fail_publisher.parsed([])}
    checked = 0
    for script, options in given.items():
        for row in option_tables(page)[script]:
            stated = re.search(r"(?:Por defecto,|Default:) `?(\w+)`?\.$", row[1])
            name = first_flag(row).strip("-").replace("-", "_")
            default = getattr(options, name, None) if first_flag(row) not in required else None
            assert (stated and stated[1]) == (str(default) if default else None), row
            checked += bool(stated)
            choices = re.search(r"\{(.*?)\}", row[0])
            assert not choices or choices[0] in help_of(script), row
    assert checked > 5


@both
def test_the_documented_settings_are_correct(page):
    table = {row[0].strip("`"): row for row in rows(page) if row[0].strip("`") in config.DEFAULTS}
    # An empty default is the word "none", without backticks.
    defaults = {name: row[2].strip("`") if "`" in row[2] else "" for name, row in table.items()}
    assert defaults == config.DEFAULTS
    for name, row in table.items():
        assert re.search(rf"{row[1].strip('`')} .*\s*{name}\b", help_of("setup_queues.py"))


@both
def test_the_documented_exit_codes_are_correct(page):
    codes = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in rows(page) if row[0].isdigit()} == codes


@both
def test_every_failure_mode_is_documented(page):
    modes = [row[0].strip("`") for row in rows(page)
             if row[0].strip("`") in simulate_fail_publisher.MODES]
    assert modes == list(simulate_fail_publisher.MODES)


def test_every_test_named_by_a_guarantee_exists():
    for page in PAGES.values():
        cited = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
        assert len(cited) >= 4
        for file, name in cited:
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_the_reliability_page_names_exactly_the_existing_fault_tests():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:tests/faults/)?(test_\w+\.py::test_\w+)`", page))
    existing = {f"{file.name}::{name}" for file in (ROOT / "tests" / "faults").glob("test_*.py")
                if file.name != "test_grade_programs.py"  # it tests the judge, not the kit
                for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"),
                                       re.MULTILINE)}
    assert named == existing
    for file, name in re.findall(r"`(tests/test_\w+\.py)::(test_\w+)`", page):
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_every_guarantee_names_a_test():
    guarantees = rows(section(README, GUARANTEES))[1:]
    assert len(guarantees) >= 3
    assert all("::test_" in row[1] for row in guarantees)


@pytest.mark.parametrize("name", [*PAGES, *DOCS])
def test_links_to_local_files_resolve(name):
    file = ROOT / name
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8"))
             if "://" not in target]
    assert local
    for target in local:
        assert (file.parent / target).exists(), target


@both
def test_the_file_list_names_every_module_and_no_missing_file(page):
    named = {name for row in rows(page) if len(row) == 2
             for name in re.findall(r"`((?:[\w.-]+/)*[\w.-]+(?:\.\w+|/))`", row[0])
             if "::" not in name}
    assert all((ROOT / name).exists() for name in named), named
    modules = {path.relative_to(ROOT).as_posix()
               for folder in ("", "common", "common/views", "tools")
               for path in (ROOT / folder).glob("*.py")
               if path.name != "__init__.py"}
    assert modules <= named, modules - named


@pytest.mark.parametrize("name", [*PAGES, *DOCS])
def test_no_page_claims_exactly_once_delivery(name):
    text = " ".join((ROOT / name).read_text(encoding="utf-8").lower().split())
    assert not re.search(
        r"exactly[- ]once|exactamente[- ]una|just once delivery|se entrega una( sola)? vez", text)


def test_the_example_env_file_lists_the_settings_and_defaults():
    lines = re.findall(r"^(#?)([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"),
                       re.MULTILINE)
    docker_only = {"RABBITMQ_USER", "RABBITMQ_PASSWORD"}
    assert {name for _, name, _ in lines} == set(config.DEFAULTS) | docker_only
    assert all(value == config.DEFAULTS[name] for off, name, value in lines if off)


def test_the_topology_page_explains_every_queue_argument():
    settings = config.load(dict(config.DEFAULTS))
    arguments = {name for queue in exchange.topology(settings) for name in queue.arguments}
    assert "x-delivery-limit" in arguments
    assert all(f"`{name}`" in TOPOLOGY for name in arguments)
    assert f"| `x-delivery-limit` | {exchange.DELIVERY_LIMIT} |" in TOPOLOGY
    assert f"`x-delivery-limit` {exchange.DEAD_LETTER_DELIVERY_LIMIT}." in TOPOLOGY
