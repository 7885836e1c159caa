"""Install what the machine lacks, with apt-get or Homebrew. Standard library only."""

import os
import shutil
from pathlib import Path

from common import console
from common.config import KitError
from tools.command import failure_of
from tools.node import kill_epmd

INSTALL_TIMEOUT_S = 1800
EPMD_PORT = 4369


class InstallError(KitError):
    """A package could not be installed."""


def has_apt() -> bool:
    return shutil.which("apt-get") is not None


def has_brew() -> bool:
    return shutil.which("brew") is not None


def apt_install(package: str) -> None:
    console.print_line(f"Instalando {package} con apt-get…")
    _run([*_sudo(), "apt-get", "-q", "update"], may_fail=True)
    _run([*_sudo(), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "install", "-y",
          "--no-install-recommends", package])


def install_rabbitmq() -> None:
    """Install rabbitmq-server; leave no service running."""
    if has_brew():
        console.print_line("Instalando rabbitmq con Homebrew…")
        _run(["brew", "install", "rabbitmq"])
        return
    apt_install("rabbitmq-server")
    _stop_debian_service()


def _stop_debian_service() -> None:
    """Stop the service that Debian starts on installation; the kit runs its own node."""
    if Path("/run/systemd/system").is_dir():
        _run([*_sudo(), "systemctl", "disable", "--now", "rabbitmq-server"], may_fail=True)
    elif Path("/etc/init.d/rabbitmq-server").exists():
        _run([*_sudo(), "/etc/init.d/rabbitmq-server", "stop"], may_fail=True)
        kill_epmd(EPMD_PORT)
    console.print_line("El servicio rabbitmq-server que instala Debian queda parado y desactivado:"
                       " el kit arranca su propio nodo.")


def _sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo"]


def _run(command: list[str], may_fail: bool = False) -> None:
    failure = failure_of(command, INSTALL_TIMEOUT_S, may_ask=command[0] == "sudo")
    if failure is not None and not may_fail:
        raise InstallError(f"No funcionó {' '.join(command)}:\n{failure}")
