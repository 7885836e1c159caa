"""Run other programs: silent on success; on failure, the last lines they printed."""

import subprocess
import sys
from typing import Any

from common.config import ROOT

TAIL_LINES = 5
DOCKER_TIMEOUT_S = 20


def failure_of(command: list[str], timeout: float, may_ask: bool = False) -> str | None:
    """Run a command in the kit's folder; return None on success, else its last lines, indented.

    may_ask: the command may read from the terminal, as sudo does for a password.
    """
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=None if may_ask else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            errors="replace", timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"  {error}"
    if done.returncode == 0:
        return None
    return "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-TAIL_LINES:])


def docker_answers() -> bool:
    """Whether `docker` has a running engine and the compose plugin."""
    return all(failure_of(["docker", *words], DOCKER_TIMEOUT_S) is None
               for words in (["info"], ["compose", "version"]))


def own_group() -> dict[str, Any]:
    """Popen arguments for an own process group, which the terminal's Ctrl-C does not reach."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
