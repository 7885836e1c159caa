"""Running other programs: silent when they work, their last lines when they do not."""

import subprocess

from common.config import ROOT

TAIL_LINES = 5
DOCKER_TIMEOUT_S = 20


def failure_of(command: list[str], timeout: float, may_ask: bool = False) -> "str | None":
    """Run it in the kit's folder: None if it worked, else its last lines, indented.

    may_ask: whether it may read the terminal, as sudo does for a password.
    """
    try:
        done = subprocess.run(command, cwd=ROOT, stdin=None if may_ask else subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              encoding="utf-8", errors="replace", timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"  {error}"
    if done.returncode == 0:
        return None
    return "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-TAIL_LINES:])


def docker_answers() -> bool:
    """A `docker` on PATH may have no engine behind it, and an engine no compose."""
    return all(failure_of(["docker", *words], DOCKER_TIMEOUT_S) is None
               for words in (["info"], ["compose", "version"]))
