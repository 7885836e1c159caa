"""Failures on purpose, for the class: the instruction travels in the header x-simulate.

x-simulate: a table {"consumer": email | loyalty | analytics | all, "mode": text, "number": int}:
how often flaky fails, or how many milliseconds slow sleeps. Sent by simulate_fail_publisher.py.
"""

import os
import time

from common import console
from common.retry import PermanentError, attempt_of, replays_of

HEADER = "x-simulate"
MAX_NUMBER = 3_600_000
CRASH_CODE = 70
ALWAYS = "falla siempre"


class SimulatedFailure(Exception):
    """A transient error: another attempt may succeed."""


def stands_alone(headers: dict) -> bool:
    """Whether it kills or delays the process: the events beside it must not suffer from it."""
    instruction = headers.get(HEADER)
    return isinstance(instruction, dict) and instruction.get("mode") in ("crash", "slow")


def obey(headers: dict, consumer: str, attempts: int) -> None:
    """Fail as the header says, if it names this consumer. attempts: how many each replay has."""
    instruction = headers.get(HEADER)
    if not isinstance(instruction, dict) or instruction.get("consumer") not in (consumer, "all"):
        return
    mode, number = instruction.get("mode"), instruction.get("number")
    number = number if isinstance(number, int) and 0 <= number <= MAX_NUMBER else 0
    failed_before = replays_of(headers) * attempts + attempt_of(headers) - 1
    if mode == "transient":
        raise SimulatedFailure(ALWAYS)
    if mode == "flaky" and failed_before < number:
        raise SimulatedFailure(f"fallo {failed_before + 1} de {number}")
    if mode == "permanent":
        raise PermanentError(f"{ALWAYS} (simulado)")
    if mode == "slow":
        time.sleep(number / 1000)
    if mode == "crash":
        console.print_error(f"{console.clock()} fallo simulado: este proceso muere aquí"
                            f" (código {CRASH_CODE})")
        os._exit(CRASH_CODE)  # like a killed process: nothing is cleaned up
