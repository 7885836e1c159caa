"""`kit.py grade`: run a student's program on a private broker, break things, and judge it."""

import os
import random
import re
import shlex
import signal
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path

from pika.exceptions import AMQPError

from common import cli, console
from tools import broker
from tools.grade.challenges import CHALLENGES, COUNT, NeverConsumed
from tools.grade.stage import Entry, ProgramEnded, Stage
from tools.grade.verdict import HINTS, RULES, Broken, history, judge
from tools.node import Node, NodeError

VERDICTS = {"valid": ("VÁLIDO", "ok"), "invalid": ("NO VÁLIDO", "error"),
            "unknown": ("DESCONOCIDO", "warn")}
WITHOUT_SERVICE = (1, 2, 4, 5)  # ask nothing of a consumer but the kit's own contract
MOST_CALLS = 20  # of the service for an event, then it answers 200
CONFIGURATION = "collect_statistics_interval = 1000\n"  # message counts at most a second old
SHOWN_FIRST, SHOWN_LAST = 9, 5  # entries of a history
WIDTH = 78


def main(file: Path | None, command: str | None, challenges: list[int] | None, seed: int | None,
         yes: bool) -> int:
    """Grade the program in each of the challenges; one node serves them all."""
    if (file is None) == (command is None):
        cli.wrong_usage("di qué programa: un archivo .py, o --command \"node consumer.js\"")
    if file and not file.is_file():
        cli.wrong_usage(f"no existe el archivo {file}")
    _exit_cleanly_on_signals()
    broker.require_server(yes)
    seed = random.randrange(10_000) if seed is None else seed
    verdicts = []
    with Node(Path(tempfile.mkdtemp(prefix="kit-grade-")), configuration=CONFIGURATION) as node:
        broker.start(node)
        for challenge in challenges or _challenges_of(file):
            verdicts.append(_grade(node, _command(file, command), file is not None, challenge,
                                   seed))
    if "invalid" in verdicts:
        return cli.EXIT_CHECK_FAILED
    return cli.EXIT_PARTLY if "unknown" in verdicts else cli.EXIT_OK


def _exit_cleanly_on_signals() -> None:
    """A closed terminal or a cancelled CI job must leave neither a program nor a broker running."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))


def _challenges_of(file: Path | None) -> tuple[int, ...]:
    """retos/reto3_servicio.py is for challenge 3."""
    number = re.match(r"reto_?([1-7])", file.name) if file else None
    return (int(number[1]),) if number else WITHOUT_SERVICE


def _command(file: Path | None, command: str | None) -> list[str] | str:
    if file:
        return [sys.executable, str(file.resolve())]
    return command or "" if os.name == "nt" else shlex.split(command or "")


def _grade(node: Node, command: list[str] | str, own_folder: bool, number: int, seed: int) -> str:
    """One challenge; returns its verdict."""
    challenge = CHALLENGES[number]
    title = f"Reto {number}: {challenge.title} · semilla {seed}"
    console.print_line(f"\n{console.paint(title, 'bold', console.out())}")
    with tempfile.TemporaryDirectory(prefix="kit-grade-", ignore_cleanup_errors=True) as work:
        cwd = None if own_folder else Path.cwd()
        rules: dict[str, Broken | bool | None] = dict.fromkeys(challenge.rules)
        trouble = ""
        with Stage(node, command, Path(work), cwd, seed, MOST_CALLS,
                   {"COUNT": str(COUNT)}) as stage:
            try:
                with suppress(ProgramEnded):
                    challenge.acts(stage)
                rules = judge(stage, challenge)
            except NeverConsumed:
                trouble = ("el programa no publicó nada" if number == 6 else
                           "el programa no consumió ningún evento")
            except (NodeError, AMQPError, OSError) as error:
                trouble = f"falló el broker del juez ({type(error).__name__}); califica otra vez"
            stage.program.end()
            return _report(stage, number, seed, rules, trouble)


def _report(stage: Stage, number: int, seed: int, rules: dict[str, Broken | bool | None],
            trouble: str) -> str:
    broken = [result for result in rules.values() if isinstance(result, Broken)]
    verdict = "unknown" if trouble else "invalid" if broken else "valid"
    first = broken[0] if broken else None
    event = first.events[0] if first and first.events else None
    shown = history(stage, event) if first else []
    hint = HINTS[first.hint or first.rule] if first else ""
    said = stage.program.last_lines() if trouble or (first and first.rule == "ended") else []
    if console.json_mode:
        console.print_json({
            "challenge": number, "verdict": verdict, "seed": seed, "reason": trouble,
            "rules": {rule: None if result is None else result is True
                      for rule, result in rules.items()},
            "broken": {each.rule: {"detail": each.text, "events": each.events} for each in broken},
            "event": event,
            "history": [{"at": round(entry.at, 3), "what": entry.text} for entry in shown],
            "hint": hint, "output": said})
        return verdict
    if not trouble:
        console.print_line("")
        for rule, result in rules.items():
            _print_rule(rule, result)
    if shown:
        _print_block(f"Qué pasó con el evento {console.short(event)}:" if event else "Qué pasó:",
                     _shortened(shown))
    if said:
        _print_block("Lo último que imprimió el programa (palabras suyas, no del juez):",
                     [f"│ {console.clean(line)}" for line in said])
    if hint:
        console.print_line("\n" + textwrap.fill(f"Pista: {hint}", WIDTH))
    words, colour = VERDICTS[verdict]
    console.print_line(f"\nVeredicto del reto {number}: {words}"
                       + f": {trouble}." * bool(trouble), colour)
    return verdict


def _print_block(title: str, lines: list[str]) -> None:
    console.print_line(f"\n{title}")
    for line in lines:
        console.print_line(f"  {line[:WIDTH - 2]}")


def _print_rule(rule: str, result: Broken | bool | None) -> None:
    if isinstance(result, Broken):
        console.print_line(f"  ✘ {RULES[rule]}: {result.text}", "error")
    elif result:
        console.print_line(f"  ✔ {RULES[rule]}", "ok")
    else:
        console.print_line(f"  · {RULES[rule]}: sin juzgar")


def _shortened(entries: list[Entry]) -> list[str]:
    lines = [f"{entry.at:6.2f} s  {console.clean(entry.text)}" for entry in entries]
    if len(lines) > SHOWN_FIRST + SHOWN_LAST + 1:
        left_out = len(lines) - SHOWN_FIRST - SHOWN_LAST
        lines[SHOWN_FIRST:-SHOWN_LAST] = [f"     …    y {left_out} más"]
    return lines
