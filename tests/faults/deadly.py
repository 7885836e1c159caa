"""Run a consumer that dies on every event with the name Veneno: python deadly.py HOW SCRIPT.

HOW is `in_mid_batch`, so that no batch ends before the event that kills, or `as_usual`.
"""

import os
import runpy
import signal
import sys
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as for a script in the root folder

from common.consuming import Consumer  # noqa: E402


def in_mid_batch() -> None:
    Consumer.finish = lambda self: None
    as_usual()


def as_usual() -> None:
    once, effects = Consumer.once, count()

    def deadly_once(self, delivery, handler, before=None):
        def handle_or_die(event, db):
            if event.nombre == "Veneno":
                print(f"dies after {next(effects)} effects", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            next(effects)
            return handler(event, db)
        return once(self, delivery, handle_or_die, before)

    Consumer.once = deadly_once


if __name__ == "__main__":
    how, *sys.argv = sys.argv[1:]
    {"in_mid_batch": in_mid_batch, "as_usual": as_usual}[how]()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
