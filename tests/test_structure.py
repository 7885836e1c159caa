"""The layout that the design promises: a short reading path, imports one way, narrow lines."""

import ast
import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from tests.conftest import ROOT, Running

CONSUMERS = ["email_consumer_simple.py", "loyalty_consumer_simple.py", "analytics_consumer.py"]
SCRIPTS = [*CONSUMERS, "events_publisher_levels.py", "simulate_fail_publisher.py",
           "setup_queues.py", "dead_letter_consumer.py"]


def python_files(*folders: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for folder in folders
            for path in sorted((ROOT / folder).rglob("*.py"))]


COMMON = python_files("common")

# ---------------------------------------------------------------- lines

# What an event passes through from publish to ack, dead letter and replay, without the scripts,
# what prints it (console, tally) and what only some events meet (simulation, mail).
PATH_OF_AN_EVENT = [f"common/{name}.py" for name in (
    "consuming", "subscription", "connection", "publishing", "confirms", "exchange", "retry",
    "events", "ledger", "outbox", "database", "crash_loop", "views/dead_letters")]

BUDGETS = {  # title, or the one file: (lines together, files)
    **dict.fromkeys(CONSUMERS, (80, ())),
    "events_publisher_levels.py": (120, ()),
    "dead_letter_consumer.py": (200, ()),
    "common/consuming.py": (250, ()),
    "common/connection.py": (250, ()),
    "common/publishing.py": (200, ()),
    "common/exchange.py": (120, ()),
    "common/retry.py": (120, ()),
    "common/events.py": (120, ()),
    "common/ledger.py and outbox.py": (120, ["common/ledger.py", "common/outbox.py"]),
    f"the path of an event: {len(PATH_OF_AN_EVENT)} files": (1300, PATH_OF_AN_EVENT),
    "common and the seven scripts": (3000, [*COMMON, *SCRIPTS]),
}


# What is still over its budget may only shrink: lower the number with each line that goes.
CEILINGS = {"common and the seven scripts": 4233,
            f"the path of an event: {len(PATH_OF_AN_EVENT)} files": 1644}


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def test_the_budgets_of_the_design_hold_and_what_is_over_one_does_not_grow(capsys):
    counted = {name: sum(len(lines_of(file)) for file in files or [name])
               for name, (_, files) in BUDGETS.items()}
    over = {name: lines for name, lines in counted.items() if lines > BUDGETS[name][0]}
    with capsys.disabled():
        print("\n", *(f"{lines:5} of {BUDGETS[name][0]:5}  {name}{'  <- OVER' * (name in over)}\n"
                      for name, lines in counted.items()))
    assert {name: lines for name, lines in over.items() if lines > CEILINGS.get(name, 0)} == {}
    assert set(CEILINGS) <= set(over), "a ceiling that is no longer needed"


@pytest.mark.parametrize("names, columns", [
    ([*SCRIPTS, *python_files("docs")], 80),
    (["kit.py", *python_files("common", "tools", "tests", "benchmarks")], 100)],
    ids=["scripts", "code"])
def test_no_line_is_wider_than_its_page(names, columns):
    assert [f"{name}:{number} has {len(line)} columns" for name in names
            for number, line in enumerate(lines_of(name), start=1) if len(line) > columns] == []


# ---------------------------------------------------------------- imports

# From top to bottom, as in the design; a module imports from its own layer and from those below.
LAYERS = {
    "scripts": [Path(name).stem for name in SCRIPTS],
    "verbs": ["common.consuming", "common.subscription", "common.publishing", "common.confirms",
              "common.mail", *(f"common.views.{Path(name).stem}"
                               for name in python_files("common/views"))],
    "engine": [f"common.{name}" for name in (
        "connection", "problems", "ledger", "outbox", "database", "crash_loop", "retry",
        "exchange", "events", "simulation")],
    "ground": [f"common.{name}" for name in ("config", "console", "cli", "patches", "__init__")],
}
RANK = {module: rank for rank, modules in enumerate(LAYERS.values()) for module in modules}
MODULES = {name.removesuffix(".py").replace("/", "."): name for name in [
    *SCRIPTS, "kit.py", *COMMON, *python_files("tools")]}


def imports_of(module: str) -> set[str]:
    """Return the modules of the kit that it imports anywhere, also within a function."""
    found = set()
    for node in ast.walk(ast.parse("\n".join(lines_of(MODULES[module])))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found & set(MODULES)


def test_no_import_makes_a_circle():
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join([*above, module])
        if module not in done:
            for imported in imports_of(module):
                visit(imported, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert len(done) == len(MODULES)


def test_every_module_of_common_has_its_layer():
    assert set(RANK) == {module for module in MODULES if MODULES[module] in (*COMMON, *SCRIPTS)}


@pytest.mark.parametrize("module", RANK)
def test_imports_run_one_way(module):
    """So common imports no script, and neither imports tools or kit.py."""
    upward = [imported for imported in imports_of(module)
              if RANK.get(imported, -1) < RANK[module]]
    assert upward == []


@pytest.mark.parametrize("name", [*COMMON, *SCRIPTS])
def test_imports_stand_at_the_top(name):
    """But for python-dotenv: kit.py reads the settings before it is installed."""
    tree = ast.parse("\n".join(lines_of(name)))
    late = [ast.unparse(node) for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in tree.body]
    assert [line for line in late if not line.startswith("from dotenv")] == []


@pytest.mark.parametrize("flags", [["-S"], []], ids=["no packages", "all packages"])
def test_what_runs_before_the_packages_are_installed_imports_none_of_them(flags):
    program = ("import sys; import kit, tools.environment, tools.doctor;"
               " print(sorted(set(sys.modules) & {'pika', 'dotenv', 'common.connection'}))")
    result = subprocess.run([sys.executable, *flags, "-c", program], cwd=ROOT,
                            capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")


# ---------------------------------------------------------------- from arrival to ack


def test_an_event_passes_through_at_most_20_functions_in_6_files(kit, capsys):
    running = Running([sys.executable, str(ROOT / "tests" / "traced_consumer.py"), "--limit", "5"],
                      kit.environment(), kit.state.parent)
    kit.started.append(running)
    running.wait_for("escucha")
    for number in range(1, 6):  # one by one: each is a batch of its own
        kit.publish_event()
        traces = running.wait_for("_on_message", count=number)
    assert running.end() == 0, running.text()
    # The shortest: now and then what runs once a second runs within.
    trace = min(map(json.loads, traces), key=len)
    with capsys.disabled():
        print(f"\n {len(trace)} functions")
        for file, names in groupby(trace, key=lambda entry: entry.partition(" ")[0]):
            print(f"  {file}: {', '.join(name.partition(' ')[2] for name in names)}")
    files = {entry.partition(" ")[0] for entry in trace}
    assert {"loyalty_consumer_simple.py", "common/consuming.py"} <= files
    assert len(trace) <= 20
    assert len(files) <= 6
