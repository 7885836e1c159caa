"""Run a script and list its lines, or kill it at one of them: python lines.py ORDER SCRIPT ….

ORDER is JSON. {"list": FILE}: write to FILE each line of common/ and of the script that is executed,
as [[file, line, thread, on import], executions]. {"at": such a line, "nth": N, "pause_s": S}: stop
this thread for S seconds at the N-th execution, while the other thread goes on, and then send SIGKILL
to the process.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = str(ROOT) + os.sep
PUBLISHER = ROOT / "events_publisher_levels.py"
sys.path[0] = str(ROOT)  # as for a script in the root folder

executed: Counter = Counter()
on_import = True


def thread() -> str:
    return "main" if threading.get_ident() == threading.main_thread().ident else "other"


def listing(script: str):
    """Return a trace function that counts the lines of common/ and of the script."""
    files = (FOLDER + "common" + os.sep, FOLDER + script)

    def count(frame, event: str, _):
        if event == "line":
            executed[frame.f_code.co_filename.removeprefix(FOLDER), frame.f_lineno, thread(),
                     on_import] += 1
        return count

    return lambda frame, *_: count if frame.f_code.co_filename.startswith(files) else None


def deadly(order: dict):
    """Return a trace function that ends the process at a line."""
    file, line, its_thread, _ = order["at"]
    left = order["nth"]

    def die(frame, event: str, _):
        nonlocal left
        if event == "line" and frame.f_lineno == line and thread() == its_thread:
            left -= 1
            if not left:
                time.sleep(order["pause_s"])
                os.kill(os.getpid(), signal.SIGKILL)
        return die

    return lambda frame, *_: die if frame.f_code.co_filename == FOLDER + file else None


def set_trace(trace) -> None:
    threading.settrace(trace)
    sys.settrace(trace)


if __name__ == "__main__":
    order, *sys.argv = sys.argv[1:]
    order = json.loads(order)
    trace = listing(sys.argv[0]) if "list" in order else deadly(order)
    if "list" in order or order["at"][-1]:
        set_trace(trace)
    importlib.import_module(Path(sys.argv[0]).stem)
    on_import = False
    set_trace(trace)
    if sys.argv[0] == PUBLISHER.name:  # a few events are several windows
        from common import confirms, publishing
        confirms.WINDOW, publishing.BATCH = 20, 5
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    finally:
        sys.settrace(None)
        if "list" in order:
            Path(order["list"]).write_text(json.dumps(list(executed.items())), encoding="utf-8")
