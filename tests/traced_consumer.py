"""Run the loyalty consumer and print which functions of the kit each event passes through.

The trace of an event begins when pika hands it over, and ends when its ack has been handed to pika
and its line is printed. Then stderr gets one line of JSON: a list of "file function", in the order
of the first calls, of both threads.
"""

import json
import os
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402
from loyalty_consumer_simple import main  # noqa: E402

PIKA_CHANNEL = os.path.join("pika", "channel.py")
trace: dict[str, None] = {}
waiting_for: set[str] = set()  # until the trace ends
lock = threading.Lock()


def profile(frame, what: str, _argument) -> None:
    code = frame.f_code
    called, file = what == "call", code.co_filename
    if called and code.co_name == "_on_message":
        waiting_for.update(("ack", "line"))
    if called and code.co_name == "basic_ack" and file.endswith(PIKA_CHANNEL):
        has_happened("ack")
    elif what == "return" and code.co_name == "print_deliveries":
        has_happened("line")
    elif called and own_end() in waiting_for and Path(file).is_relative_to(ROOT) and (
            ".venv" not in file and file != __file__):
        name = getattr(code, "co_qualname", code.co_name)  # Python 3.10 has no co_qualname
        trace[f"{Path(file).relative_to(ROOT)} {name}"] = None


def own_end() -> str:
    """What ends the trace of this thread: what it calls behind that is about the next event."""
    return "line" if threading.current_thread() is threading.main_thread() else "ack"


def has_happened(event: str) -> None:
    with lock:  # two threads
        waiting_for.discard(event)
        if trace and not waiting_for:
            print(json.dumps(list(trace)), file=sys.stderr, flush=True)
            trace.clear()


def traced_main() -> int:
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        return main() or 0
    finally:
        sys.setprofile(None)


if __name__ == "__main__":
    cli.run(traced_main)
