"""Run other programs: silent on success; on failure, the last lines they printed."""

import shutil
import socket
import subprocess
import sys
from typing import Any

from common.config import AMQP_PORTS, MANAGEMENT_PORT, ROOT

TAIL_LINES = 5
DOCKER_TIMEOUT_S = 20
CONNECT_TIMEOUT_S = 3
COMPOSE_PORTS = {AMQP_PORTS["amqp"]: "AMQP", MANAGEMENT_PORT: "página de gestión"}
NO_COMPOSE = ("Docker está en marcha y le falta el plugin compose: instálalo"
              " (https://docs.docker.com/compose/install/)")


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


def docker_problem() -> str | None:
    """Why docker compose cannot work here and what to do, for the person; None if it can."""
    if shutil.which("docker") is None:
        return "no hay Docker: instálalo (https://docs.docker.com/get-docker/)"
    engine = failure_of(["docker", "info"], DOCKER_TIMEOUT_S)
    if engine and "permission denied" in engine:
        return ("Docker no admite a este usuario: sudo usermod -aG docker $USER, y vuelve a iniciar"
                " sesión")
    if engine is not None:
        return ("Docker está instalado y su motor no responde: abre Docker Desktop (en Linux,"
                " sudo systemctl start docker) y espera a que arranque")
    if failure_of(["docker", "compose", "version"], DOCKER_TIMEOUT_S) is not None:
        return NO_COMPOSE
    return None


def taken_compose_port() -> str | None:
    """While compose is down: which of its ports another program has, as a clause of a sentence."""
    for port, use in COMPOSE_PORTS.items():
        if accepts("127.0.0.1", port):
            return f"otro programa usa el puerto {port} ({use}), que docker compose necesita"
    return None


def accepts(host: str, port: int) -> bool:
    """Whether a TCP connection to host:port succeeds."""
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
        return True
    except (OSError, UnicodeError):
        return False


def own_group(outlives_terminal: bool = False) -> dict[str, Any]:
    """Popen arguments for an own process group, which the terminal's Ctrl-C does not reach.

    outlives_terminal: on Windows a closed window ends what shares its console.
    """
    if sys.platform == "win32":
        own_console = subprocess.CREATE_NO_WINDOW if outlives_terminal else 0
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | own_console}
    return {"start_new_session": True}
