"""What the kit is measured beside: the same work with other libraries, one program each in peers/."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common import console
from tools import environment
from tools.command import failure_of

HERE = Path(__file__).resolve().parent
VENV, REQUIREMENTS = HERE / ".venv", HERE / "requirements.txt"
INSTALL_TIMEOUT_S = 300


@dataclass(frozen=True)
class Peer:
    """window: whether it keeps many publishes under way."""

    name: str
    version: str
    command: list[str]
    window: bool


def available(folder: Path, yes: bool) -> list[Peer]:
    """Those that this machine can run, made ready; why the others are left out is said."""
    python = str(environment.made(VENV, REQUIREMENTS, yes))
    versions = dict(line.split("==") for line in REQUIREMENTS.read_text(encoding="utf-8").split())
    peers = [Peer(name, versions[package], [python, str(HERE / "peers" / f"with_{file}.py")], window)
             for name, package, file, window in (
                 ("pika (blocking)", "pika", "pika", False), ("kombu", "kombu", "kombu", False),
                 ("py-amqp", "amqp", "py_amqp", True), ("AMQPStorm", "AMQPStorm", "amqpstorm", False),
                 ("aio-pika", "aio-pika", "aio_pika", True))]
    return peers + _amqplib() + _rabbitmq_c(folder)


def draw(folder: Path) -> None:
    """performance.svg from the performance.json there."""
    python = environment.made(VENV, REQUIREMENTS, True)
    problem = failure_of([str(python), str(HERE / "plot.py"), str(folder.absolute())], INSTALL_TIMEOUT_S)
    if problem is not None:
        console.say(f"Sin gráfico:\n{problem}", "warn")


def _amqplib() -> list[Peer]:
    npm = shutil.which("npm")
    if not (shutil.which("node") and npm):
        return _left_out("amqplib", "no hay node con npm")
    modules = HERE / "node_modules"
    if not modules.is_dir():
        problem = failure_of([npm, "install", "--prefix", str(HERE), "--no-package-lock", "--no-audit", "--no-fund"],
                             INSTALL_TIMEOUT_S)
        if problem is not None:
            return _left_out("amqplib", f"npm no lo instala\n{problem}")
    version = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]["amqplib"]
    return [Peer("amqplib (node)", version, ["node", str(HERE / "peers" / "with_amqplib.js")], True)]


def _rabbitmq_c(folder: Path) -> list[Peer]:
    compiler, program = shutil.which("cc"), folder / "with_rabbitmq_c"
    if not compiler:
        return _left_out("rabbitmq-c", "no hay compilador de C")
    source = HERE / "peers" / "with_rabbitmq_c.c"
    problem = failure_of([compiler, "-O2", "-o", str(program), str(source), "-lrabbitmq"], INSTALL_TIMEOUT_S)
    if problem is not None:
        return _left_out("rabbitmq-c", f"no se compila (en Debian, apt-get install librabbitmq-dev)\n{problem}")
    return [Peer("rabbitmq-c", _asked("pkg-config", "--modversion", "librabbitmq"), [str(program)], True)]


def _asked(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S).stdout.strip()
    except OSError:
        return ""


def _left_out(name: str, why: str) -> list[Peer]:
    console.say(f"{name} no se mide: {why}", "warn")
    return []
