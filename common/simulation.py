"""Failures on purpose, for the class: the wish travels in the header x-simulate, not in the event.

x-simulate: a table {"consumer": email | loyalty | analytics | all, "mode": text, "number": whole number}:
`number` is how often flaky fails, or how many milliseconds slow sleeps.
Sent by simulate_fail_publisher.py.
"""

import os
import time

from common import console
from common.retry import PermanentError, attempt_of, replays_of

HEADER = "x-simulate"
MAX_NUMBER = 3_600_000
CRASH_CODE = 70


class SimulatedFailure(Exception):
    """A transient error: another try may help."""


def obey(headers: dict | None, consumer: str, tries: int) -> None:
    """Fail as the header says, if it means this consumer. tries: how many tries a round has."""
    wish = (headers or {}).get(HEADER)
    if not isinstance(wish, dict) or wish.get("consumer") not in (consumer, "all"):
        return
    mode, number = wish.get("mode"), wish.get("number")
    number = number if isinstance(number, int) and 0 <= number <= MAX_NUMBER else 0
    failed_before = replays_of(headers) * tries + attempt_of(headers) - 1
    if mode == "transient" or mode == "flaky" and failed_before < number:
        raise SimulatedFailure("fallo simulado: el servicio no responde")
    if mode == "permanent":
        raise PermanentError("fallo simulado: no tiene arreglo")
    if mode == "slow":
        time.sleep(number / 1000)
    if mode == "crash":
        console.complain(f"{console.clock()} fallo simulado: este proceso muere aquí (código {CRASH_CODE})")
        os._exit(CRASH_CODE)  # as a process that is killed: nothing is cleaned up
