"""`kit.py test`: run the tests on private brokers, which the tests may kill.

Most tests wait for a broker or a delay. So several pytests run at once; each takes one file after
the other that no other has taken (tests/conftest.py). They share the node that no test kills: a
start costs as much as fifty tests.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from common.cli import EXIT_INTERRUPTED
from common.config import ROOT
from tools import broker
from tools.command import failure_of
from tools.install import apt_install, has_apt
from tools.node import NodeError, new_node

SMTP_PYTHON = "/usr/bin/python3"  # Debian's packages are for Debian's Python
SMTP_PACKAGE, SMTP_MODULE = "python3-aiosmtpd", "aiosmtpd"
PROCESSES = 4  # on two cores: together they compute for half of the time
TAKEN = "KIT_TEST_TAKEN"  # environment: the folder with an entry for each file that is taken
NODE = "KIT_TEST_NODE"  # environment: the folder of the node that all share
STARTED, FAILED = "started", "failed"  # files beside that folder: the node has, or could not
CLOSING_LINE = re.compile(r"=+ (.+) in [\d.]+s.* =+$")


def main(yes: bool, faults: bool, pytest_arguments: list[str]) -> int:
    """Run pytest and return its exit code; its closing line is the last one printed."""
    broker.require_server(yes)
    if yes and has_apt() and not has_smtp_server():
        apt_install(SMTP_PACKAGE)
    sys.stdout.flush()
    # With this variable a missing broker fails the tests instead of skipping them.
    environment = os.environ | {"KIT_REQUIRE_BROKER": "1"}
    options = ["--faults"] if faults else []
    command = [sys.executable, "-m", "pytest", *options, *pytest_arguments]
    if not pytest_arguments:
        return at_once(command, environment | {"PYTHONUTF8": "1"})
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # pytest also receives the Ctrl-C and stops its brokers
        return EXIT_INTERRUPTED


def at_once(command: list[str], environment: dict[str, str]) -> int:
    """Run several pytests that share the files. Print what each printed, and their sum."""
    print(f"Pruebas en {PROCESSES} procesos a la vez: lo que imprime cada uno sale cuando termina.",
          flush=True)
    started_at, counts, codes = time.monotonic(), Counter[str](), []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        ExitStack() as node_stack,
        ThreadPoolExecutor(PROCESSES) as pool,
    ):
        environment |= {TAKEN: folder, NODE: str(Path(folder) / "node")}
        runs = [pool.submit(subprocess.run, command, cwd=ROOT, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            encoding="utf-8", errors="replace") for _ in range(PROCESSES)]
        try:
            node_stack.enter_context(new_node(Path(environment[NODE])))  # while they collect
            Path(folder, STARTED).touch()
            for run in as_completed(runs):
                printed = run.result().stdout.rstrip()
                print(printed, flush=True)
                codes.append(run.result().returncode)
                closing = CLOSING_LINE.search(printed)
                for count, outcome in re.findall(r"(\d+) (\w+)", closing[1] if closing else ""):
                    counts[outcome] += int(count)
        except KeyboardInterrupt:  # each pytest also receives it and stops its brokers
            return EXIT_INTERRUPTED
        except NodeError:
            Path(folder, FAILED).touch()
            raise
    total = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f" {total} in {time.monotonic() - started_at:.1f}s ".center(80, "="))
    return max(map(abs, codes))


def has_smtp_server() -> bool:
    """Whether this machine can run tests/smtp_server.py."""
    return failure_of([SMTP_PYTHON, "-c", f"import {SMTP_MODULE}"], 60) is None
