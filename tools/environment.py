"""`.venv`: made from requirements.txt, made again when that (or the Python) changed.

Standard library only: this runs before anything is installed.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from common import console
from common.config import ROOT, KitError
from tools.command import failure_of
from tools.install import apt_install, has_apt

VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements.txt"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Written last: a .venv without it was interrupted and is made again.
STAMP = VENV / "kit-stamp"
PIP_TIMEOUT_S = 600


class EnvironmentProblem(KitError):
    """The .venv could not be made."""


def enter(yes: bool) -> None:
    """Return only inside an up-to-date .venv; outside, run this same command in there."""
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    if not _is_current():
        if not inside:
            _make(yes)
        _install()
    if not inside:
        _run_again_inside()


def _is_current() -> bool:
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == _stamp()


def _stamp() -> str:
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return f"{sys.version_info.major}.{sys.version_info.minor} {digest}"


def _make(yes: bool) -> None:
    console.say("Preparando el entorno de Python (.venv)…")
    if importlib.util.find_spec("ensurepip") is None:  # Debian's python3 without python3-venv
        _add_venv_module(yes)
    shutil.rmtree(VENV, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(VENV)], "No se pudo crear .venv")


def _add_venv_module(yes: bool) -> None:
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if not (yes and has_apt()):
        raise EnvironmentProblem(
            f"A este Python le falta el módulo venv. Instálalo con: sudo apt-get install {package}"
            " (o repite la orden con --yes).")
    apt_install(package)


def _install() -> None:
    STAMP.unlink(missing_ok=True)
    _run([str(PYTHON), "-m", "pip", "install", "--quiet", "--no-input",
          "--disable-pip-version-check", "-r", str(REQUIREMENTS)],
         "pip no pudo instalar requirements.txt (¿hay conexión a Internet?)")
    STAMP.write_text(_stamp(), encoding="utf-8")


def _run(command: list[str], problem: str) -> None:
    failure = failure_of(command, PIP_TIMEOUT_S)
    if failure is not None:
        raise EnvironmentProblem(f"{problem}:\n{failure}")


def _run_again_inside() -> None:
    command = [str(PYTHON), *sys.argv]
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    # Windows' exec returns to the shell before the new program is done.
    process = subprocess.Popen(command)
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:
            pass  # the child got the same Ctrl-C and ends by itself
