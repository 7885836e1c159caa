"""More programs before the judge of retos/: solutions, the kit's own consumer, wrong and hostile
ones. KIT_SEEDS: with how many seeds the solutions are graded; more than one adds the slow ones."""

import os
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.grade.programs import (
    COUNTS_A_MULTIPLE_ACK_ONCE,
    HOSTILE,
    NEVER_ASKS,
    NUMBERS,
    SIMILAR,
    STARTER_FAILS,
    WRONG,
    changed,
    kit_with_service,
    solution,
    starter,
)
from tests.test_grade import judged, judged_file
from tools.grade.program import Program
from tools.grade.stage import Stage

SEEDS = int(os.environ.get("KIT_SEEDS", "1"))
by_seed = pytest.mark.parametrize("seed", range(1, SEEDS + 1))


@by_seed
@pytest.mark.parametrize("number", NUMBERS if SEEDS > 1 else (2, 3, 6, 7))
def test_a_solution_passes(number, seed, mortal_node, tmp_path):
    mortal_node.start()
    result = judged(mortal_node, solution(number), number, tmp_path, seed)
    assert result["verdict"] == "valid", result


@by_seed
@pytest.mark.parametrize("number", (1, 2, 3, 4, 5, 7) if SEEDS > 1 else (3,))
def test_the_kits_own_consumer_passes_as_it_is_or_with_one_call(number, seed, mortal_node,
                                                                tmp_path):
    mortal_node.start()
    file = ROOT / "loyalty_consumer_simple.py"
    if number in (3, 7):
        file = tmp_path / "loyalty.py"
        file.write_text(kit_with_service(), encoding="utf-8")
    result = judged_file(mortal_node, file, number, seed)
    assert result["verdict"] == "valid", result


@by_seed
@pytest.mark.parametrize("number", NUMBERS if SEEDS > 1 else (1, 3, 4, 5, 7))
def test_a_starter_breaks_the_rule_it_is_meant_to_and_no_other(number, seed, mortal_node,
                                                               tmp_path):
    mortal_node.start()
    result = judged(mortal_node, starter(number).read_text("utf-8"), number, tmp_path, seed)
    assert (result["verdict"], list(result["broken"])) == ("invalid", [STARTER_FAILS[number]])


@by_seed
@pytest.mark.parametrize("name", [name for name in WRONG if SEEDS > 1 or name not in SIMILAR])
def test_a_wrong_program_is_caught_with_the_right_rule(name, seed, mortal_node, tmp_path):
    mortal_node.start()
    number, rule, changes = WRONG[name]
    result = judged(mortal_node, changed(solution(number), changes), number, tmp_path, seed)
    assert result["verdict"] == "invalid", result
    assert rule in result["broken"], result


@pytest.mark.parametrize("text, first", [(NEVER_ASKS, "answers"), (solution(6), None)],
                         ids=["never asks", "right"])
def test_a_slow_machine_changes_no_verdict_on_a_publisher(text, first, mortal_node, tmp_path,
                                                          monkeypatch):
    """The judge hears late what the broker has, and what the program says."""
    def slowed(function):
        def late(*arguments):
            time.sleep(0.03)
            function(*arguments)
        return late

    monkeypatch.setattr(Stage, "_note_traced", slowed(Stage._note_traced))
    monkeypatch.setattr(Program, "_note_claim", slowed(Program._note_claim))
    mortal_node.start()
    result = judged(mortal_node, text, 6, tmp_path)
    assert result["verdict"] == ("invalid" if first else "valid"), result
    assert next(iter(result["broken"]), None) == first, result


def test_a_publisher_that_counts_a_multiple_ack_once_is_caught(mortal_node, tmp_path):
    mortal_node.start()
    result = judged(mortal_node, COUNTS_A_MULTIPLE_ACK_ONCE, 6, tmp_path)
    assert "answers" in result["broken"]


def test_a_judge_whose_broker_does_not_answer_says_so(mortal_node, tmp_path):
    mortal_node.start()
    mortal_node.kill()
    result = judged(mortal_node, solution(1), 1, tmp_path)
    assert result["verdict"] == "unknown" and "falló el broker del juez" in result["reason"]


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_left_of_a_hostile_program(name, mortal_node, tmp_path):
    mortal_node.start()
    text, verdict, rule = HOSTILE[name]
    result = judged(mortal_node, text.replace("LEFT", str(tmp_path / "left")), 1, tmp_path)
    assert (result["verdict"], next(iter(result["broken"]), None)) == (verdict, rule), result
    for pid in (tmp_path / "left").read_text("utf-8").split() if "LEFT" in text else ():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or ") Z " in state.read_text("utf-8")
