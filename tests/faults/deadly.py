"""Runs a consumer's script that every event of a Veneno kills: python deadly.py BATCH SCRIPT.

The first BATCH deliveries are handled in one transaction, however long they take to come.
"""

import os
import runpy
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as for a script that lies there

from common import config, consumer, consuming  # noqa: E402
from common.deliveries import Deliveries  # noqa: E402

POLL_S = 0.01


def handled_in_one_batch(size: int) -> None:
    take = Deliveries.take

    def take_all(self, most, timeout_s):
        while len(self._inbox) < size:
            time.sleep(POLL_S)
        Deliveries.take = take
        return take(self, most, timeout_s)

    Deliveries.take = take_all
    consuming.BATCH_S = 60


def killed_by_veneno() -> None:
    main = consumer.main

    def deadly(ours, *arguments):
        def handle(event, state):
            if event.nombre == "Veneno":
                os.kill(os.getpid(), signal.SIGKILL)
            return ours.handle(event, state)
        if not isinstance(ours, consumer.Consumer):  # made from the settings
            ours = ours(config.load())
        return main(replace(ours, handle=handle), *arguments)

    consumer.main = deadly


if __name__ == "__main__":
    size, *sys.argv = sys.argv[1:]
    handled_in_one_batch(int(size))
    killed_by_veneno()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
