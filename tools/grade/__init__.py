"""`kit.py grade`: run a student's program on a private broker, break things, and judge it."""

import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from pika.exceptions import AMQPError, ChannelClosedByBroker, UnroutableError

from common import cli, console
from common.problems import describe
from tools import broker
from tools.grade.challenges import CHALLENGES, COUNT, NeverConsumed
from tools.grade.stage import ProgramEnded, Stage
from tools.grade.verdict import HINTS, RULES, Broken, history, judge
from tools.node import Node, NodeError, new_node

VERDICTS = {"valid": ("VÁLIDO", "ok"), "invalid": ("NO VÁLIDO", "error"),
            "unknown": ("DESCONOCIDO", "warn")}
WITHOUT_SERVICE = (1, 2, 4, 5)  # ask nothing of a consumer but the kit's own contract
MOST_CALLS = 20  # of the service for an event, then it answers 200
CONFIGURATION = "collect_statistics_interval = 1000\n"  # message counts at most a second old
SHOWN_FIRST, SHOWN_LAST = 7, 4  # entries of a history
GAP = "     …"
WIDTH = 78


def main(file: Path | None, command: str | None, challenges: list[int] | None, seed: int | None,
         yes: bool) -> int:
    """Grade the program in each of the challenges; one node serves them all."""
    words = _command(file, command)
    broker.stop_it_on_signals()
    broker.require_server(yes)
    seed = random.randrange(10_000) if seed is None else seed
    verdicts = []
    console.print_line(broker.STARTING)
    with new_node(Path(tempfile.mkdtemp(prefix="kit-grade-")), CONFIGURATION) as node:
        for number in challenges or _challenges_of(file):
            title = f"Reto {number}: {CHALLENGES[number].title} · semilla {seed}"
            console.print_line("\n" + console.paint(title, "bold"))
            result = grade(node, words, number, seed, None if file else Path.cwd())
            (console.print_json if console.json_mode else show)(result)
            verdicts.append(result["verdict"])
    if "invalid" in verdicts:
        return cli.EXIT_CHECK_FAILED
    return cli.EXIT_PARTLY if "unknown" in verdicts else cli.EXIT_OK


def _command(file: Path | None, command: str | None) -> list[str] | str:
    """What to run. A command is split as the shell of this system does it."""
    if (file is None) == (command is None):
        cli.wrong_usage("di qué programa: un archivo .py o --command \"node consumer.js\"")
    if file:
        if not file.is_file():
            cli.wrong_usage(f"no existe el archivo {file}")
        return [sys.executable, str(file.resolve())]
    try:
        words = shlex.split(command or "", posix=os.name != "nt")
    except ValueError:
        cli.wrong_usage("a --command le falta cerrar una comilla")
    if not words or not shutil.which(words[0].strip('"')):
        cli.wrong_usage(f"no se encuentra el programa de --command: {' '.join(words[:1])}")
    return command or "" if os.name == "nt" else words


def _challenges_of(file: Path | None) -> tuple[int, ...]:
    """retos/reto3_servicio.py is for challenge 3."""
    number = re.match(r"reto_?([1-7])", file.name) if file else None
    return (int(number[1]),) if number else WITHOUT_SERVICE


def grade(node: Node, command: list[str] | str, number: int, seed: int, cwd: Path | None = None
          ) -> dict[str, Any]:
    """One challenge, on a running node; the object that --json prints. cwd: the program's folder;
    by default one that is deleted afterwards."""
    challenge = CHALLENGES[number]
    rules: dict[str, Broken | bool | None] = dict.fromkeys(challenge.rules)
    trouble = ""
    with (
        tempfile.TemporaryDirectory(prefix="kit-grade-", ignore_cleanup_errors=True) as work,
        Stage(node, command, Path(work), cwd, seed, MOST_CALLS, {"COUNT": str(COUNT)}) as stage,
    ):
        try:
            stage.prepare()
            try:
                challenge.acts(stage)
            except ProgramEnded:
                pass
            except (UnroutableError, ChannelClosedByBroker):  # it deleted what the judge declared
                stage.late = True
            rules = judge(stage, challenge)
            if stage.late and not any(isinstance(rule, Broken) for rule in rules.values()):
                trouble = "no dio tiempo: este equipo está muy ocupado; califica otra vez"
        except NeverConsumed:
            trouble = ("el programa no publicó nada" if number == 6 else
                       "el programa no consumió ningún evento")
        except (NodeError, AMQPError, OSError) as error:
            words = error if isinstance(error, NodeError) else describe(error)
            trouble = f"falló el broker del juez ({words}): califica otra vez"
        stage.program.end()
        broken = [result for result in rules.values() if isinstance(result, Broken)]
        first = broken[0] if broken else None
        quotes = trouble or (first and (first.hint or first.rule).startswith(
            ("ended", "answers: died")))
        return {
            "challenge": number, "seed": seed, "reason": trouble,
            "verdict": "unknown" if trouble else "invalid" if broken else "valid",
            "rules": {rule: None if result is None else result is True
                      for rule, result in rules.items()},
            "broken": {each.rule: {"detail": each.text, "events": each.events} for each in broken},
            "history": history(stage, first) if first else [],
            "hint": HINTS[first.hint or first.rule] if first else "",
            "output": stage.program.last_lines() if quotes else []}


def show(result: dict[str, Any]) -> None:
    """For people: the rules, the history of the first event that breaks one, and a hint."""
    console.print_line("")
    for rule, holds in result["rules"].items() if not result["reason"] else ():
        if holds:
            console.print_line(f"  ✔ {RULES[rule]}", "ok")
        elif holds is None:
            console.print_line(f"  · {RULES[rule]}: sin juzgar")
        else:
            text = f"  ✘ {RULES[rule]}: {result['broken'][rule]['detail']}"
            console.print_line(textwrap.fill(text, WIDTH, subsequent_indent="    "), "error")
    if result["history"]:
        [event] = next(iter(result["broken"].values()))["events"][:1] or [""]
        _print_block(f"Qué pasó con el evento {console.short(event)}:" if event else "Qué pasó:",
                     _shortened(result["history"]))
    if result["output"]:
        _print_block("Lo último que imprimió el programa (palabras suyas, no del juez):",
                     [f"│ {part}" for line in result["output"]
                      for part in textwrap.wrap(console.clean(line), WIDTH - 4) or [""]])
    if result["hint"]:
        console.print_line("\n" + textwrap.fill(f"Pista: {result['hint']}", WIDTH))
    words, colour = VERDICTS[result["verdict"]]
    console.print_line(f"\nVeredicto del reto {result['challenge']}: {words}"
                       + f": {result['reason']}." * bool(result["reason"]), colour)


def _print_block(title: str, lines: list[str]) -> None:
    console.print_line(f"\n{title}")
    for line in lines:
        console.print_line(f"  {line[:WIDTH - 2]}")


def _shortened(entries: list[dict]) -> list[str]:
    """A line for each entry; of many, the first and the last ones, and those around an effect."""
    kept = {*range(SHOWN_FIRST), *range(len(entries) - SHOWN_LAST, len(entries))}
    for number, entry in enumerate(entries):
        if entry["kind"] == "effect":
            kept |= {number - 1, number, number + 1, number + 2}
    lines: list[str] = []
    for number, entry in enumerate(entries):
        if number in kept:
            lines.append(f"{entry['at']:6.2f} s  {console.clean(entry['what'])}")
        elif lines[-1] != GAP:
            lines.append(GAP)
    return lines
