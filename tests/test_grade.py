"""The judge of retos/ is judged: what a starter is meant to fail for, and what a class would do.

More programs are in tests/faults/test_grade_programs.py. By hand, each solution with 20 seeds:
KIT_SEEDS=20 python -m pytest --faults tests/faults/test_grade_programs.py -k solution
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.grade.programs import FAKE, NUMBERS, STARTER_FAILS, solution, starter
from tools.grade import grade, show

PAGES = ["README.md", "README.en.md"]


def judged(node, text: str, number: int, folder: Path, seed: int = 1) -> dict:
    """Grade a program, given as text."""
    file = folder / "program.py"
    file.write_text(text, encoding="utf-8")
    return judged_file(node, file, number, seed)


def judged_file(node, file: Path, number: int, seed: int = 1) -> dict:
    """Grade it; on a busy machine, as the judge asks for, again."""
    for _ in range(3):
        result = grade(node, [sys.executable, str(file)], number, seed)
        if not result["reason"].startswith("no dio tiempo"):
            break
    return result


def run_grade(*arguments: str, cwd: Path = ROOT, timeout: float = 120):
    return subprocess.run([sys.executable, str(ROOT / "kit.py"), "grade", *arguments], cwd=cwd,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          encoding="utf-8", timeout=timeout,
                          env=os.environ | {"PYTHONUTF8": "1"})


@pytest.mark.parametrize("number", NUMBERS)
def test_a_starter_fits_on_the_wall_and_stands_on_both_pages(number):
    lines = starter(number).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for page in PAGES:
        assert f"retos/{starter(number).name}" in (ROOT / "retos" / page).read_text("utf-8")


@pytest.mark.parametrize("number", [6])
def test_a_starter_breaks_the_rule_it_is_meant_to_and_no_other(number, shared_node, tmp_path):
    result = judged(shared_node, starter(number).read_text("utf-8"), number, tmp_path)
    assert (result["verdict"], list(result["broken"])) == ("invalid", [STARTER_FAILS[number]])
    assert result["hint"]
    assert len(result["history"]) >= 3


def test_the_verdict_shows_the_second_effect_and_why(shared_node, tmp_path, capsys):
    result = judged(shared_node, starter(2).read_text("utf-8"), 2, tmp_path)
    show(result)
    text = capsys.readouterr().out
    end = 0
    for words in ("✘ ningún efecto ocurre dos veces: ", "publicado y confirmado",
                  "entregado al proceso", r"\(SIGKILL\)", "entregado otra vez al proceso",
                  r"efecto: la cuenta tiene [2-4]00 puntos",  # its user may have another event
                  "Pista: El mismo evento", "Veredicto del reto 2: NO VÁLIDO"):
        found = re.compile(words).search(text, end)
        assert found, (words, text)
        end = found.end()
    assert max(map(len, text.splitlines())) <= 80
    assert [entry["at"] for entry in result["history"]] == sorted(
        entry["at"] for entry in result["history"])


def test_a_program_in_any_language_is_graded_from_its_own_folder(server, tmp_path):
    (tmp_path / "mine.py").write_text(solution(4), encoding="utf-8")
    result = run_grade("--command", f'"{sys.executable}" mine.py', "--challenge", "4", "--seed",
                       "7", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    [verdict] = map(json.loads, result.stdout.splitlines())
    assert (verdict["verdict"], verdict["seed"], verdict["broken"]) == ("valid", 7, {})
    assert set(verdict["rules"].values()) == {True}
    assert "Reto 4: un mensaje venenoso · semilla 7" in result.stderr.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_program_cannot_print_the_verdict(server, tmp_path):
    (tmp_path / "reto1_fake.py").write_text(
        f"print('{{}}\\n{FAKE}' + chr(27) + '[2J')\nraise SystemExit(0)\n", encoding="utf-8")
    result = run_grade(str(tmp_path / "reto1_fake.py"))
    lines = result.stdout.splitlines()
    assert result.returncode == 3
    assert FAKE not in lines
    assert f"  │ {FAKE}�[2J" in lines
    assert lines[-1].startswith("Veredicto del reto 1: DESCONOCIDO: ")


@pytest.mark.parametrize("arguments, words", [
    ([], "di qué programa"),
    (["none.py"], "no existe el archivo none.py"),
    (["--command", "no-such-program x"], "no se encuentra el programa de --command"),
    (["--command", "python 'x"], "cerrar una comilla")],
    ids=["nothing", "no file", "no program", "quotes"])
def test_what_cannot_be_graded_is_one_sentence(arguments, words):
    result = run_grade(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error de uso: ")
    assert words in result.stderr
