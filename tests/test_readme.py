"""The README and the pages of docs/: their text, flags, tables and pictures are compared with the
kit. What their commands print is compared in test_lab.py."""

import re
import subprocess
import sys
from functools import cache

import pytest

import simulate_fail_publisher
from common import cli, config, exchange
from tests.conftest import ROOT, Kit
from tests.test_lab import blocks, pattern, read
from tools import pictures

PAGES = {path.relative_to(ROOT).as_posix(): read(path) for path in sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])}
TWINS = [(name, name.replace(".md", ".en.md")) for name in PAGES
         if name.replace(".md", ".en.md") in PAGES]
REFERENCE = {name: PAGES[name] for name in ("docs/referencia.md", "docs/referencia.en.md")}
GUARANTEES = {"docs/niveles.md": "Qué se garantiza", "docs/niveles.en.md": "What is guaranteed"}
TOPOLOGY = {name: PAGES[name] for name in ("docs/topologia.md", "docs/topologia.en.md")}
ONLY_ENGLISH = "In English only"
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Flags of other programs that pages name alone.
OTHERS: set[str] = {"--policy"}
SCREEN = 24  # lines of a projected terminal

every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
both = pytest.mark.parametrize("page", REFERENCE.values(), ids=REFERENCE.keys())
twins = pytest.mark.parametrize("spanish, english", TWINS, ids=[name for name, _ in TWINS])


# ---------------------------------------------------------------- reading a page


def section(page: str, title: str) -> str:
    """Return the text below a heading, up to the next heading of level 1 or 2."""
    found = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^##? |\Z)", page,
                      re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[2]


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
        subcommands = [["demo"], ["test"], ["bench"], ["broker"], ["grade"], ["doctor"]]
    kit = Kit("", ROOT / "state")  # it needs neither
    return "".join(kit.call_ok(script, *subcommand, "--help").stdout for subcommand in subcommands)


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


# ---------------------------------------------------------------- the shape of the pages


@pytest.mark.parametrize("name", ["README.md", "README.en.md"])
def test_the_readme_is_short_and_shows_the_first_event_on_its_first_two_screens(name):
    lines = PAGES[name].splitlines()
    assert len(lines) <= 200
    shown = next(number for number, line in enumerate(lines, 1) if " correo enviado a " in line)
    assert shown <= 2 * SCREEN


def test_every_page_has_a_twin_or_says_at_its_top_that_it_has_none():
    alone = set(PAGES) - {name for pair in TWINS for name in pair}
    for name in alone:
        assert ONLY_ENGLISH in "".join(PAGES[name].splitlines(keepends=True)[:5]), name
    assert len(TWINS) >= 7


@twins
def test_both_languages_have_the_same_commands_and_output(spanish, english):
    assert blocks(PAGES[english]) == blocks(PAGES[spanish])


@twins
def test_both_languages_have_the_same_sections_and_tables(spanish, english):
    def shape(page):
        without_blocks = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
        return [line.split()[0] if line.startswith("#") else len(line.split(" | "))
                for line in without_blocks.splitlines() if line.startswith(("#", "|"))]
    assert shape(PAGES[english]) == shape(PAGES[spanish])


@twins
def test_the_twins_link_to_each_other(spanish, english):
    for name, other in ((spanish, english), (english, spanish)):
        target = other.rpartition("/")[2]
        assert f"]({target})" in "".join(PAGES[name].splitlines(keepends=True)[:60]), name


@pytest.mark.parametrize("name", PAGES)
def test_links_to_local_files_resolve(name):
    folder = (ROOT / name).parent
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGES[name])
               if "://" not in target]
    assert [target for target in targets if not (folder / target).exists()] == []


@every_page
def test_no_page_claims_exactly_once_delivery(page):
    text = " ".join(page.lower().split())
    assert not re.search(
        r"exactly[- ]once|exactamente[- ]una|just once delivery|se entrega una( sola)? vez", text)


# ---------------------------------------------------------------- the pictures


def words(svg: str) -> list[str]:
    """Return the text of each line of a picture, in order."""
    return re.sub(r"<[^>]*>", "", svg.replace("</text><text", "<")).split("\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_pictures_show_what_the_scripts_print(kit, tmp_path, request):
    docs = ROOT / "docs"
    made = docs if request.config.getoption("--record") else tmp_path
    pictures.make(kit.url, kit.node.management_url, made)
    for name in ("terminales.svg", "watch.svg"):
        for line, real in zip(words(read(docs / name)), words(read(made / name)), strict=True):
            wanted = re.sub(r"(?<=vuelve\\s\+en\\s\+)\d+", r"\\d+", pattern(line))
            assert re.fullmatch(wanted, real), real
    assert "correo enviado" in read(docs / "terminales.svg") and "█" in read(docs / "watch.svg")


# ---------------------------------------------------------------- flags, settings, tables


@pytest.mark.parametrize("page", TOPOLOGY.values(), ids=TOPOLOGY.keys())
def test_the_diagram_is_the_one_that_setup_queues_prints(page):
    printed = subprocess.run(
        [sys.executable, str(ROOT / "setup_queues.py"), "--show", "mermaid",
         "--queue-type", config.DEFAULTS["QUEUE_TYPE"],
         "--retry-delays", config.DEFAULTS["RETRY_DELAYS"]], capture_output=True, text=True,
        encoding="utf-8", check=True)
    assert [body for language, body in blocks(page) if language == "mermaid"] == [printed.stdout]


@every_page
def test_every_flag_named_with_a_script_exists(page):
    for line in commands(page) + spans(page):
        own, _, _ = line.partition(" -- ")
        for script in re.findall(r"(?<![\w/])[\w.]+\.py", own):
            if script in SCRIPTS and "::" not in line:
                assert set(FLAG.findall(own)) <= flags_of(script) | {"--help"}, line


@every_page
def test_every_flag_named_alone_belongs_to_a_script(page):
    known = set.union(*(flags_of(script) for script in SCRIPTS)) | OTHERS
    alone = [span for span in spans(page) if span.startswith("--")]
    assert {flag for span in alone for flag in FLAG.findall(span)} <= known


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


@every_page
def test_every_test_named_on_a_page_exists(page):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page):
        assert f"\ndef {name}(" in read(ROOT / file), f"{file}::{name}"


def test_the_reliability_page_names_exactly_the_existing_fault_tests():
    page = PAGES["docs/reliability.md"]
    named = set(re.findall(r"`(?:tests/faults/)?(test_\w+\.py::test_\w+)`", page))
    existing = {f"{file.name}::{name}" for file in (ROOT / "tests" / "faults").glob("test_*.py")
                if file.name != "test_grade_programs.py"  # it tests the judge, not the kit
                for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"),
                                       re.MULTILINE)}
    assert named == existing


@pytest.mark.parametrize("name", GUARANTEES)
def test_every_guarantee_names_a_test(name):
    guarantees = rows(section(PAGES[name], GUARANTEES[name]))[1:]
    assert len(guarantees) >= 3
    assert all("::test_" in row[1] for row in guarantees)


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


def test_the_example_env_file_lists_the_settings_and_defaults():
    lines = re.findall(r"^(#?)([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"),
                       re.MULTILINE)
    docker_only = {"RABBITMQ_USER", "RABBITMQ_PASSWORD"}
    assert {name for _, name, _ in lines} == set(config.DEFAULTS) | docker_only
    assert all(value == config.DEFAULTS[name] for off, name, value in lines if off)


@pytest.mark.parametrize("page", TOPOLOGY.values(), ids=TOPOLOGY.keys())
def test_the_topology_page_explains_every_queue_argument(page):
    settings = config.load(dict(config.DEFAULTS))
    arguments = {name for queue in exchange.topology(settings) for name in queue.arguments}
    assert "x-delivery-limit" in arguments
    assert all(f"`{name}`" in page for name in arguments)
    assert f"| `x-delivery-limit` | {exchange.DELIVERY_LIMIT} |" in page
    assert f"`x-delivery-limit` {exchange.DEAD_LETTER_DELIVERY_LIMIT}." in page
