"""`kit.py test`: run the tests on private brokers, which the tests may kill."""

import os
import subprocess
import sys

from common.cli import EXIT_INTERRUPTED
from common.config import ROOT
from tools import broker
from tools.command import failure_of
from tools.install import apt_install, has_apt

SMTP_PYTHON = "/usr/bin/python3"  # Debian's packages are for Debian's Python
SMTP_PACKAGE, SMTP_MODULE = "python3-aiosmtpd", "aiosmtpd"


def main(yes: bool, faults: bool, pytest_arguments: list[str]) -> int:
    """Run pytest and return its exit code; its closing line is the last one printed."""
    broker.require_server(yes)
    if yes and has_apt() and not has_smtp_server():
        apt_install(SMTP_PACKAGE)
    sys.stdout.flush()
    # With this variable a missing broker fails the tests instead of skipping them.
    environment = os.environ | {"KIT_REQUIRE_BROKER": "1"}
    options = ["--faults"] if faults else []
    process = subprocess.Popen([sys.executable, "-m", "pytest", *options, *pytest_arguments],
                               cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # pytest also receives the Ctrl-C and stops its brokers
        return EXIT_INTERRUPTED


def has_smtp_server() -> bool:
    """Whether this machine can run tests/smtp_server.py."""
    return failure_of([SMTP_PYTHON, "-c", f"import {SMTP_MODULE}"], 60) is None
