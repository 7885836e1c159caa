"""Run a script that kills itself at a failpoint: python failpoints.py POINT SCRIPT.

The kit's own code has no failpoints. This script patches them in.
"""

import os
import runpy
import signal
import sys
import time
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as for a script in the root folder

from common.deliveries import Deliveries  # noqa: E402
from common.ledger import Ledger  # noqa: E402
from common.publishing import CONFIRMED, Publisher  # noqa: E402

LAST_EFFECT = 20  # in the middle of a batch
# In a batch that ends at 1600, after the first 1000, which are sent when the channel opens.
LAST_SENT = 1590
SENT_S = 0.3


def kill_self() -> None:
    """Send SIGKILL to this process, after the I/O thread has sent all that is pending.

    An ack that the consumer sends too early therefore reaches the broker.
    """
    time.sleep(SENT_S)
    os.kill(os.getpid(), signal.SIGKILL)


def before_effect() -> None:
    once, effects = Ledger.once, count(1)
    Ledger.once = lambda self, event_id, effect: once(
        self, event_id, effect if next(effects) <= LAST_EFFECT else kill_self)


def before_commit() -> None:
    Ledger.commit = lambda self: kill_self()


def after_commit() -> None:
    commit = Ledger.commit
    Ledger.commit = lambda self: (commit(self), kill_self())


def after_copy() -> None:
    """Die when the retry copy is confirmed and its original is not acked."""
    copied = Deliveries._copied

    def kill_self_if_confirmed(self, delivery, message, outcome):
        if outcome == CONFIRMED:
            kill_self()
        copied(self, delivery, message, outcome)

    Deliveries._copied = kill_self_if_confirmed


def in_mid_batch() -> None:
    """Die when a publisher has sent part of its batch."""
    send, sent = Publisher.send, count(1)
    Publisher.send = lambda self, *message: (
        kill_self() if next(sent) > LAST_SENT else send(self, *message))


POINTS = {point.__name__: point for point in (
    before_effect, before_commit, after_commit, after_copy, in_mid_batch)}

if __name__ == "__main__":
    point, *sys.argv = sys.argv[1:]
    POINTS[point]()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
