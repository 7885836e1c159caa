"""Runs a script that kills itself at a point that matters: python failpoints.py POINT SCRIPT.

The kit's own code has no such points; they are put in from outside, here.
"""

import os
import runpy
import signal
import sys
import time
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as for a script that lies there

from common.deliveries import Deliveries  # noqa: E402
from common.ledger import Ledger  # noqa: E402
from common.publishing import CONFIRMED, Publisher  # noqa: E402

LAST_EFFECT = 20  # in the midst of a batch
LAST_SENT = 1590  # of a batch that ends at 1600; behind the first 1000, which are sent once there is a channel
SENT_S = 0.3


def die() -> None:
    """kill -9, once the I/O thread has sent what it was asked to send before: an ack too early goes out."""
    time.sleep(SENT_S)
    os.kill(os.getpid(), signal.SIGKILL)


def before_effect() -> None:
    once, effects = Ledger.once, count(1)
    Ledger.once = lambda self, event_id, effect: once(
        self, event_id, effect if next(effects) <= LAST_EFFECT else die)


def before_commit() -> None:
    Ledger.commit = lambda self: die()


def after_commit() -> None:
    commit = Ledger.commit
    Ledger.commit = lambda self: (commit(self), die())


def after_copy() -> None:
    """The retry copy is confirmed, its original not yet acked."""
    copied = Deliveries._copied

    def die_if_confirmed(self, delivery, message, outcome):
        if outcome == CONFIRMED:
            die()
        copied(self, delivery, message, outcome)

    Deliveries._copied = die_if_confirmed


def in_mid_batch() -> None:
    """A publisher has sent a part of its batch."""
    send, sent = Publisher.send, count(1)
    Publisher.send = lambda self, *message: die() if next(sent) > LAST_SENT else send(self, *message)


POINTS = {point.__name__: point for point in (before_effect, before_commit, after_commit, after_copy,
                                            in_mid_batch)}

if __name__ == "__main__":
    point, *sys.argv = sys.argv[1:]
    POINTS[point]()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
