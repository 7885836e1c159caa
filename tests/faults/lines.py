"""Run a script with one thing that goes wrong: python lines.py ORDER SCRIPT …. ORDER is JSON:

{"list": FILE}          nothing; write the lines of common/ and of the script that are executed, as
                        [[file, line, thread, on import], executions], to FILE
{"at": LINE, "nth": N}  SIGKILL at the N-th execution of such a line; "pause_s": first, this thread
                        waits, and the other goes on; "stop_s": SIGSTOP, and SIGCONT so much later
{"call": N, "error": TEXT, "calls": M}
                        from its N-th call on, SQLite fails M times, and rolls back
{"file_size": BYTES}    no file may grow beyond (RLIMIT_FSIZE)
{"signals": 1}          a signal comes every 2 ms
{"clock": SEED}         the clock is right, an hour late or an hour early, anew at each look
"""

import importlib
import json
import os
import random
import resource
import runpy
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = str(ROOT) + os.sep
PUBLISHER = "events_publisher_levels.py"
HOUR_S = 3600
sys.path[0] = str(ROOT)  # as for a script in the root folder

executed: Counter = Counter()
on_import = True


def thread() -> str:
    return "main" if threading.get_ident() == threading.main_thread().ident else "other"


def listing(script: str):
    """Return a trace function that counts the lines of common/ and of the script."""
    files = (FOLDER + "common" + os.sep, FOLDER + script)

    def count_line(frame, event: str, _):
        if event == "line":
            executed[frame.f_code.co_filename.removeprefix(FOLDER), frame.f_lineno, thread(),
                     on_import] += 1
        return count_line

    return lambda frame, *_: count_line if frame.f_code.co_filename.startswith(files) else None


def deadly(order: dict):
    """Return a trace function that ends or stops the process at a line."""
    file, line, its_thread, _ = order["at"]
    left = order["nth"]

    def at_line(frame, event: str, _):
        nonlocal left
        if event == "line" and frame.f_lineno == line and thread() == its_thread:
            left -= 1
            if not left:
                time.sleep(order.get("pause_s", 0))
                stop(order["stop_s"]) if "stop_s" in order else os.kill(os.getpid(), signal.SIGKILL)
        return at_line

    return lambda frame, *_: at_line if frame.f_code.co_filename == FOLDER + file else None


def stop(seconds: float) -> None:
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"],
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.kill(os.getpid(), signal.SIGSTOP)


def set_trace(trace) -> None:
    threading.settrace(trace)
    sys.settrace(trace)


def fail_disk(order: dict) -> None:
    calls = count(1)

    class Failing(sqlite3.Connection):
        def attempt(self, method: str, *values):
            if order["call"] <= next(calls) < order["call"] + order["calls"]:
                if self.in_transaction:
                    self.set_authorizer(None)  # it is SQLite itself that rolls back
                    super().execute("ROLLBACK")
                raise sqlite3.OperationalError(order["error"])
            return getattr(super(), method)(*values)

        def execute(self, *values):
            return self.attempt("execute", *values)

        def executemany(self, *values):
            return self.attempt("executemany", *values)

        def executescript(self, *values):
            return self.attempt("executescript", *values)

    sqlite3.connect = partial(sqlite3.connect, factory=Failing)


def limit_files(order: dict) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))


def send_signals(_) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)


def move_clock(order: dict) -> None:
    from common import events

    rng, seconds, nanoseconds = random.Random(order["clock"]), time.time, time.time_ns

    def error_s() -> int:
        return rng.choice((0, HOUR_S, -HOUR_S))

    class Moved(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + timedelta(seconds=error_s())

    time.time = lambda: seconds() + error_s()
    time.time_ns = lambda: nanoseconds() + error_s() * 10**9
    events.datetime = Moved


if __name__ == "__main__":
    order, *sys.argv = sys.argv[1:]
    order = json.loads(order)
    trace = listing(sys.argv[0]) if "list" in order else deadly(order) if "at" in order else None
    if trace and ("list" in order or order["at"][-1]):
        set_trace(trace)
    importlib.import_module(Path(sys.argv[0]).stem)
    on_import = False
    for kind, do in (("call", fail_disk), ("file_size", limit_files), ("signals", send_signals),
                     ("clock", move_clock)):
        if kind in order:
            do(order)
    set_trace(trace)
    if sys.argv[0] == PUBLISHER:  # a few events are several windows
        from common import confirms, publishing
        confirms.WINDOW, publishing.BATCH = 20, 5
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)  # Python restores the default at its end: death
        if "list" in order:
            Path(order["list"]).write_text(json.dumps(list(executed.items())), encoding="utf-8")
