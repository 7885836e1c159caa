"""Run a consumer that dies on every event with the name Veneno: python deadly.py BATCH SCRIPT.

The consumer handles the first BATCH deliveries in one transaction.
"""

import os
import runpy
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as for a script in the root folder

from common import config, consumer, consuming  # noqa: E402
from common.deliveries import Deliveries  # noqa: E402

POLL_S = 0.01


def handle_first_deliveries_in_one_batch(size: int) -> None:
    take = Deliveries.take

    def take_all(self, most, timeout_s):
        while len(self._inbox) < size:
            time.sleep(POLL_S)
        Deliveries.take = take
        return take(self, most, timeout_s)

    Deliveries.take = take_all
    consuming.BATCH_S = 60


def kill_on_veneno() -> None:
    main = consumer.main

    def deadly_main(definition, *arguments):
        def handle(event, state):
            if event.nombre == "Veneno":
                os.kill(os.getpid(), signal.SIGKILL)
            return definition.handle(event, state)
        if not isinstance(definition, consumer.Consumer):  # a function of the settings
            definition = definition(config.load())
        return main(replace(definition, handle=handle), *arguments)

    consumer.main = deadly_main


if __name__ == "__main__":
    size, *sys.argv = sys.argv[1:]
    handle_first_deliveries_in_one_batch(int(size))
    kill_on_veneno()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
