"""The peers that the kit is compared with: the same work with other libraries (see peers/)."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common import console
from common.config import ROOT
from tools import environment
from tools.command import failure_of

HERE = Path(__file__).resolve().parent
VENV, REQUIREMENTS = ROOT / ".state" / "bench-venv", HERE / "requirements.txt"
INSTALL_TIMEOUT_S = 300
PYTHON_PEERS = (  # name, package, program in peers/, whether it keeps many publishes in flight
    ("pika (blocking)", "pika", "with_pika.py", False),
    ("kombu", "kombu", "with_kombu.py", False),
    ("py-amqp", "amqp", "with_py_amqp.py", True),
    ("AMQPStorm", "AMQPStorm", "with_amqpstorm.py", False),
    ("aio-pika", "aio-pika", "with_aio_pika.py", True),
    ("CoolAMQP", "CoolAMQP", "with_coolamqp.py", True),
)


@dataclass(frozen=True)
class Peer:
    """window: whether it keeps many publishes in flight; multiple: whether one ack may be for many
    events."""

    name: str
    version: str
    command: list[str]
    window: bool
    multiple: bool = True

    @property
    def same_work(self) -> bool:
        """Whether its program can do the kit's work: those in Python can."""
        return self.command[-1].endswith(".py")


def available(folder: Path, yes: bool) -> list[Peer]:
    """Prepare and return the peers that this machine can run; print why the others cannot."""
    python = str(environment.ensure(VENV, REQUIREMENTS, yes))
    versions = dict(line.split("==") for line in REQUIREMENTS.read_text(encoding="utf-8").split())
    peers = [Peer(name, versions[package], [python, str(HERE / "peers" / program)], window,
                  name != "CoolAMQP")
             for name, package, program, window in PYTHON_PEERS]
    return peers + _amqplib() + _rabbitmq_c(folder)


def draw(folder: Path) -> None:
    """Draw performance.svg from the performance.json in the folder."""
    python = environment.ensure(VENV, REQUIREMENTS, yes=True)
    problem = failure_of([str(python), str(HERE / "plot.py"), str(folder.absolute())],
                         INSTALL_TIMEOUT_S)
    if problem is not None:
        console.print_line(f"Sin gráfico:\n{problem}", "warn")


def _amqplib() -> list[Peer]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        return _left_out("amqplib", "no hay node con npm")
    if not (HERE / "node_modules").is_dir():
        problem = failure_of([npm, "install", "--prefix", str(HERE), "--no-package-lock",
                              "--no-audit", "--no-fund"], INSTALL_TIMEOUT_S)
        if problem is not None:
            return _left_out("amqplib", f"npm no lo instala\n{problem}")
    package = json.loads((HERE / "package.json").read_text(encoding="utf-8"))
    command = [node, str(HERE / "peers" / "with_amqplib.js")]
    return [Peer("amqplib (node)", package["dependencies"]["amqplib"], command, True)]


def _rabbitmq_c(folder: Path) -> list[Peer]:
    compiler, program = shutil.which("cc"), folder / "with_rabbitmq_c"
    if not compiler:
        return _left_out("rabbitmq-c", "no hay compilador de C")
    source = HERE / "peers" / "with_rabbitmq_c.c"
    problem = failure_of([compiler, "-O2", "-o", str(program), str(source), "-lrabbitmq"],
                         INSTALL_TIMEOUT_S)
    if problem is not None:
        return _left_out("rabbitmq-c", "no se compila (en Debian, apt-get install"
                         f" librabbitmq-dev)\n{problem}")
    version = _output_of("pkg-config", "--modversion", "librabbitmq")
    return [Peer("rabbitmq-c", version, [str(program)], True)]


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True,
                              timeout=INSTALL_TIMEOUT_S).stdout.strip()
    except OSError:
        return ""


def _left_out(name: str, reason: str) -> list[Peer]:
    console.print_line(f"{name} no se mide: {reason}", "warn")
    return []
