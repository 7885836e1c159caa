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
PIP_TIMEOUT_S = 600


class EnvironmentProblem(KitError):
    """The .venv could not be made."""


def enter(yes: bool) -> None:
    """Return only inside an up-to-date .venv; outside, run this same command in there."""
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    python = made(VENV, REQUIREMENTS, yes, inside)
    if not inside:
        _run_again_inside(python)


def made(venv: Path, requirements: Path, yes: bool, exists: bool = False) -> Path:
    """The Python of an environment that has what requirements asks for; what is missing is made."""
    python, stamp = _python(venv), _stamp(venv)
    if is_made(venv, requirements):
        return python
    if not exists:
        _make(venv, yes)
    stamp.unlink(missing_ok=True)
    _run([str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check",
          "-r", str(requirements)], f"pip no pudo instalar {requirements.name} (¿hay conexión a Internet?)")
    stamp.write_text(_wanted(requirements), encoding="utf-8")
    return python


def is_made(venv: Path, requirements: Path) -> bool:
    """Whether it is whole, and of this Python and these requirements."""
    stamp = _stamp(venv)
    return _python(venv).exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == _wanted(requirements)


def _python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _stamp(venv: Path) -> Path:
    """Written last: an environment without it was interrupted and is made again."""
    return venv / "kit-stamp"


def _wanted(requirements: Path) -> str:
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    return f"{sys.version_info.major}.{sys.version_info.minor} {digest}"


def _make(venv: Path, yes: bool) -> None:
    console.say(f"Preparando el entorno de Python ({venv.relative_to(ROOT)})…")
    if importlib.util.find_spec("ensurepip") is None:  # Debian's python3 without python3-venv
        _add_venv_module(yes)
    shutil.rmtree(venv, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(venv)], f"No se pudo crear {venv.name}")


def venv_package() -> str:
    """Debian's name for what its python3 lacks."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}-venv"


def _add_venv_module(yes: bool) -> None:
    package = venv_package()
    if not (yes and has_apt()):
        raise EnvironmentProblem(
            f"A este Python le falta el módulo venv. Instálalo con: sudo apt-get install {package}"
            " (o repite la orden con --yes).")
    apt_install(package)


def _run(command: list[str], problem: str) -> None:
    failure = failure_of(command, PIP_TIMEOUT_S)
    if failure is not None:
        raise EnvironmentProblem(f"{problem}:\n{failure}")


def _run_again_inside(python: Path) -> None:
    command = [str(python), *sys.argv]
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
