"""Installing what the machine lacks, with apt-get or Homebrew. Standard library only."""

import os
import shutil
import subprocess
from pathlib import Path

from common import console
from common.config import KitError

INSTALL_TIMEOUT_S = 1800


class InstallProblem(KitError):
    """A package could not be installed."""


def has_apt() -> bool:
    return shutil.which("apt-get") is not None


def has_brew() -> bool:
    return shutil.which("brew") is not None


def apt_install(package: str) -> None:
    console.say(f"Instalando {package} con apt-get…")
    _run([*_sudo(), "apt-get", "-q", "update"], may_fail=True)
    _run([*_sudo(), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "install", "-y",
          "--no-install-recommends", package])


def install_rabbitmq() -> None:
    """Install rabbitmq-server; nothing of it keeps running afterwards."""
    if has_brew():
        console.say("Instalando rabbitmq con Homebrew…")
        _run(["brew", "install", "rabbitmq"])
        return
    apt_install("rabbitmq-server")
    _stop_debian_service()


def _stop_debian_service() -> None:
    """Debian starts what it installs; a class that asked for a demo did not ask for a service."""
    if Path("/run/systemd/system").is_dir():
        _run([*_sudo(), "systemctl", "disable", "--now", "rabbitmq-server"], may_fail=True)
    elif Path("/etc/init.d/rabbitmq-server").exists():
        _run([*_sudo(), "/etc/init.d/rabbitmq-server", "stop"], may_fail=True)
    console.say("El servicio rabbitmq-server que instala Debian queda parado y desactivado:"
                " el kit arranca su propio nodo.")


def _sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo"]


def _run(command: list[str], may_fail: bool = False) -> None:
    try:
        done = subprocess.run(command, stdin=None if command[0] == "sudo" else subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              encoding="utf-8", errors="replace", timeout=INSTALL_TIMEOUT_S)
        tail, failed = done.stdout.strip().splitlines()[-5:], done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        tail, failed = [str(error)], True
    if failed and not may_fail:
        raise InstallProblem(f"No funcionó: {' '.join(command)}\n  " + "\n  ".join(tail))
