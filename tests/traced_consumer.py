"""Run the loyalty consumer and print which functions of the kit each event passes through.

The trace of an event begins when pika hands it over, and ends when its ack has been handed to pika
and its line is printed. At the end stderr has one line of JSON: a list of "file function" for each
event, in the order of the first calls, of both threads.
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
traces: list[dict[str, None]] = []
waiting_for: set[str] = set()  # until the trace ends


def profile(frame, what: str, _argument) -> None:
    code = frame.f_code
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.10 has no co_qualname
    if what == "call" and code.co_name == "_on_message":
        traces.append({})
        waiting_for.update(("ack", "line"))
    if what == "call" and code.co_name == "basic_ack" and code.co_filename.endswith(PIKA_CHANNEL):
        waiting_for.discard("ack")
    elif what == "call" and waiting_for and Path(code.co_filename).is_relative_to(ROOT) and (
            ".venv" not in code.co_filename and code.co_filename != __file__):
        traces[-1][f"{Path(code.co_filename).relative_to(ROOT)} {name}"] = None
    if what == "return" and code.co_name == "print_deliveries":
        waiting_for.discard("line")


def traced_main() -> int:
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        return main() or 0
    finally:
        sys.setprofile(None)
        print(json.dumps([list(trace) for trace in traces]), file=sys.stderr)


if __name__ == "__main__":
    cli.run(traced_main)
