"""Make `.venv` from requirements.txt, and remake it when the file or the Python version changes.

Standard library only: this runs before any package is installed.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from common import console
from common.config import ROOT, KitError
from tools.command import failure_of
from tools.install import apt_install, has_apt

VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements.txt"
PIP_TIMEOUT_S = 600


class VenvError(KitError):
    """The virtual environment cannot be made."""


def enter(yes: bool) -> None:
    """Return only inside an up-to-date `.venv`; outside it, run the same command again inside."""
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    python = ensure(VENV, REQUIREMENTS, yes, inside)
    if not inside:
        _run_again_inside(python)


def ensure(venv: Path, requirements: Path, yes: bool, exists: bool = False) -> Path:
    """Make the environment if it is missing or out of date; return its Python."""
    python, stamp = _python(venv), _stamp(venv)
    if is_current(venv, requirements):
        return python
    if not exists:
        _make(venv, yes)
    stamp.unlink(missing_ok=True)
    _run([str(python), "-m", "pip", "install", "--quiet", "--no-input",
          "--disable-pip-version-check", "-r", str(requirements)],
         f"pip no pudo instalar {requirements.name} (¿hay conexión a Internet?)")
    stamp.write_text(_stamp_text(requirements), encoding="utf-8")
    return python


def is_current(venv: Path, requirements: Path) -> bool:
    """Whether the environment is complete and made from this Python and these requirements."""
    stamp = _stamp(venv)
    return (_python(venv).exists() and stamp.exists()
            and stamp.read_text(encoding="utf-8") == _stamp_text(requirements))


def _python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _stamp(venv: Path) -> Path:
    """The file that is written last: without it the environment is incomplete and is remade."""
    return venv / "kit-stamp"


def _stamp_text(requirements: Path) -> str:
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    return f"{sys.version_info.major}.{sys.version_info.minor} {digest}"


def _make(venv: Path, yes: bool) -> None:
    console.print_line(f"Preparando el entorno de Python ({venv.relative_to(ROOT)})…")
    if importlib.util.find_spec("ensurepip") is None:  # Debian's python3 without python3-venv
        _install_venv_module(yes)
    shutil.rmtree(venv, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(venv)], f"No se pudo crear {venv.name}")


def venv_package() -> str:
    """Debian's package with the venv module for this Python."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}-venv"


def _install_venv_module(yes: bool) -> None:
    package = venv_package()
    if not (yes and has_apt()):
        raise VenvError(
            "A este Python le falta el módulo venv. Instálalo con:"
            f" sudo apt-get install {package} (o repite la orden con --yes).")
    apt_install(package)


def _run(command: list[str], problem: str) -> None:
    failure = failure_of(command, PIP_TIMEOUT_S)
    if failure is not None:
        raise VenvError(f"{problem}:\n{failure}")


def _run_again_inside(python: Path) -> NoReturn:
    command = [str(python), *sys.argv]
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    # On Windows, exec returns to the shell before the new program ends.
    process = subprocess.Popen(command)
    while True:
        with suppress(KeyboardInterrupt):  # the child also receives the Ctrl-C and exits
            sys.exit(process.wait())
