"""Run a script that kills itself at a failpoint: python failpoints.py POINT SCRIPT.

The kit's own code has no failpoints. This script patches them in, at public names only.
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

from common.consuming import Consumer  # noqa: E402
from common.ledger import Ledger  # noqa: E402
from common.outbox import Outbox  # noqa: E402
from common.publishing import ConfirmedChannel  # noqa: E402

LAST_EFFECT = 20  # in the middle of a batch
LAST_WRITTEN = 1500  # more than a window: the broker has confirmed some
SENT_S = 0.3


def kill_self(*_, **__) -> None:
    """Send SIGKILL to this process, after the I/O thread has sent all that is pending.

    What is sent too early therefore reaches the broker.
    """
    time.sleep(SENT_S)
    os.kill(os.getpid(), signal.SIGKILL)


def before_effect() -> None:
    once, effects = Consumer.once, count(1)
    Consumer.once = lambda self, delivery, handler, before=None: once(
        self, delivery, handler if next(effects) <= LAST_EFFECT else kill_self, before)


def before_commit() -> None:
    """Die when the first batch is complete and its transaction is not committed.

    Other transactions, such as the one that deletes old rows, are committed.
    """
    finish = Consumer.finish

    def finish_without_commit(self) -> None:
        commit, Ledger.commit = Ledger.commit, kill_self
        finish(self)
        Ledger.commit = commit

    Consumer.finish = finish_without_commit


def after_commit() -> None:
    """Die when the first batch is committed and nothing of it is acked."""
    kill_before_ack(of_copied=False)


def before_copy() -> None:
    """Die when a consumer is about to publish its first retry copy."""
    ConfirmedChannel.basic_publish = kill_self


def after_copy() -> None:
    """Die when the retry copies of a batch are confirmed and their originals are not acked."""
    kill_before_ack(of_copied=True)


def kill_before_ack(of_copied: bool) -> None:
    ack = Consumer._ack

    def ack_or_die(self, deliveries, multiple) -> None:
        if any(bool(delivery.copy) is of_copied for delivery in deliveries):
            kill_self()
        ack(self, deliveries, multiple)

    Consumer._ack = ack_or_die


def before_write() -> None:
    """Die before a publisher writes its next batch to the outbox."""
    write, written = Outbox.write, 0

    def write_or_die(self, events, confirmed=()) -> None:
        nonlocal written
        written += len(events)
        if written > LAST_WRITTEN:
            kill_self()
        write(self, events, confirmed)

    Outbox.write = write_or_die


POINTS = {point.__name__: point for point in (
    before_effect, before_commit, after_commit, before_copy, after_copy, before_write)}

if __name__ == "__main__":
    point, *sys.argv = sys.argv[1:]
    POINTS[point]()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
