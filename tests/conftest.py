"""The tests' hands: private brokers that may be killed, and the kit's scripts as processes.

No test touches a broker that it did not start. Without a rabbitmq-server on this machine the tests
that need one are skipped, or fail where KIT_REQUIRE_BROKER is set (kit.py test, CI).
"""

import email
import email.policy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import pika
import pytest

from common import config, events
from tools import run_tests
from tools.node import Node, create_vhost, delete_vhost, find_server, free_port

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 30
DELAYS = "0.3,0.6,0.9"


def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true", help="also tests/faults: a quarter of an hour more")
    parser.addoption("--record", action="store_true", help="write what the lab prints now into its pages")


def pytest_ignore_collect(collection_path, config):
    """None leaves it to pytest."""
    return True if collection_path.name == "faults" and not config.getoption("--faults") else None


@pytest.fixture(scope="session")
def server():
    """The rabbitmq-server of this machine."""
    found = find_server()
    if found is None and (os.environ.get("KIT_REQUIRE_BROKER") or os.environ.get("CI")):
        pytest.fail("no rabbitmq-server on this machine: python kit.py test --yes installs one")
    if found is None:
        pytest.skip("no rabbitmq-server on this machine: python kit.py test --yes installs one")
    return found


@pytest.fixture(scope="session")
def shared_node(server, tmp_path_factory):
    """A node for the tests that leave it alive; each gets a vhost of its own."""
    with Node(tmp_path_factory.mktemp("node")) as node:
        node.start()
        yield node


@pytest.fixture
def node(server, tmp_path):
    """A node for one test to kill, freeze and restart."""
    with Node(tmp_path / "node") as own:
        own.start()
        yield own


@pytest.fixture
def kit(shared_node, tmp_path):
    """The kit in a vhost of its own on the shared node."""
    vhost = f"test-{uuid.uuid4().hex[:8]}"
    create_vhost(shared_node.management_url, "guest", "guest", vhost)
    hands = Kit(shared_node.url.replace("%2F", vhost), tmp_path / "state")
    yield hands
    hands.close()
    delete_vhost(shared_node.management_url, "guest", "guest", vhost)


@pytest.fixture
def own_kit(node, tmp_path):
    """The kit on a node that the test may kill: own_kit.node."""
    hands = Kit(node.url, tmp_path / "state", node=node)
    yield hands
    hands.close()


@dataclass
class Kit:
    """Runs the scripts against one broker and looks at where messages went."""

    url: str
    state: Path
    delays: str = DELAYS
    queue_type: str = "quorum"
    node: Node | None = None
    started: list = field(default_factory=list)

    @property
    def settings(self) -> config.Settings:
        return config.load({"RABBITMQ_URL": self.url, "RETRY_DELAYS": self.delays,
                            "STATE_DIR": str(self.state), "QUEUE_TYPE": self.queue_type})

    def using(self, **changes) -> "Kit":
        """The same with other settings."""
        return replace(self, **changes)

    def environment(self, **more) -> dict:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        return kept | {"RABBITMQ_URL": self.url, "RETRY_DELAYS": self.delays, "STATE_DIR": str(self.state),
                       "QUEUE_TYPE": self.queue_type, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"} | more

    def run(self, script: str, *arguments: str, timeout: float = 60, stdin: str | None = None, **environment):
        """Run a script to its end: .returncode, .stdout, .stderr."""
        return subprocess.run([sys.executable, str(ROOT / script), *arguments], env=self.environment(**environment),
                              cwd=self.state.parent, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                              capture_output=True, text=True, encoding="utf-8", timeout=timeout)

    def done(self, script: str, *arguments: str, **more):
        """Run a script that must end in 0."""
        ended = self.run(script, *arguments, **more)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def run_at_terminal(self, typed: str, script: str, *arguments: str, timeout: float = 60):
        """Run a script that asks, and answer it (POSIX): .returncode, .stdout with all it said."""
        import pty  # late: Windows has none

        keyboard, terminal = pty.openpty()
        try:
            os.write(keyboard, typed.encode())
            return subprocess.run([sys.executable, str(ROOT / script), *arguments], env=self.environment(),
                                  cwd=self.state.parent, stdin=terminal, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=timeout)
        finally:
            os.close(keyboard)
            os.close(terminal)

    def report(self, script: str) -> dict:
        return json.loads(self.done(script, "--report", "--json").stdout)

    def start(self, script: str, *arguments: str, **environment) -> "Running":
        """Start a script that goes on until it is stopped."""
        running = Running([sys.executable, str(ROOT / script), *arguments], self.environment(**environment),
                          self.state.parent)
        self.started.append(running)
        return running

    def start_consumer(self, name: str, *arguments: str) -> "Running":
        """Start email, loyalty or analytics and wait until it consumes."""
        script = {"email": "email_consumer_simple.py", "loyalty": "loyalty_consumer_simple.py",
                  "analytics": "analytics_consumer.py"}[name]
        running = self.start(script, *arguments)
        wait_until(lambda: self.consumers(f"{name}_queue") > 0, f"{script} to consume", running.text)
        return running

    def channel(self):
        """A blocking channel for the test itself; close it with `with`."""
        return _Channel(self.url)

    def depth(self, queue: str) -> int:
        """Messages ready in a queue; 0 if it is not there."""
        return self._passive(queue).message_count

    def consumers(self, queue: str) -> int:
        return self._passive(queue).consumer_count

    def _passive(self, queue: str):
        try:
            with self.channel() as channel:
                return channel.queue_declare(queue, passive=True).method
        except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.AMQPConnectionError):
            return pika.spec.Queue.DeclareOk(message_count=0, consumer_count=0)

    def wait_for_depth(self, queue: str, count: int, timeout: float = WAIT_S) -> None:
        wait_until(lambda: self.depth(queue) == count, f"{count} messages in {queue}",
                   lambda: f"there are {self.depth(queue)}", timeout)

    def messages(self, queue: str) -> list:
        """(properties, body) of every message; takes them out."""
        found = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return found
                found.append((properties, body))

    def publish(self, body: bytes, *, queue: str | None = None, properties=None) -> None:
        """Publish raw bytes, confirmed, to the exchange or to one queue."""
        with self.channel() as channel:
            channel.confirm_delivery()
            channel.basic_publish("" if queue else "user_events", queue or "", body,
                                  properties or pika.BasicProperties(delivery_mode=2), mandatory=True)

    def publish_event(self, event=None, *, queue: str | None = None, headers: dict | None = None) -> events.Event:
        event = event or events.user_created("Juan", "juan@eco.com")
        self.publish(events.encode(event), queue=queue, properties=events.properties(event, 2, headers))
        return event

    def close(self) -> None:
        for running in self.started:
            running.kill()


class _Channel:
    def __init__(self, url: str):
        self.url = url

    def __enter__(self):
        self.connection = pika.BlockingConnection(pika.URLParameters(self.url))
        return self.connection.channel()

    def __exit__(self, *_):
        if self.connection.is_open:
            self.connection.close()


class Running:
    """A script as a process; its lines are read as they come, stdout and stderr apart, or together as on a screen."""

    def __init__(self, command: list[str], environment: dict, folder: Path, together: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.out: list[str] = []
        self.err: list[str] = []
        self.process = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, text=True, encoding="utf-8",
                                        stderr=subprocess.STDOUT if together else subprocess.PIPE)
        self.readers = [threading.Thread(target=_read_lines, args=pair, daemon=True)
                        for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err)) if pair[0]]
        for reader in self.readers:
            reader.start()

    def text(self) -> str:
        return "\n".join(self.out + self.err)

    def wait_for(self, words: str, count: int = 1, timeout: float = WAIT_S) -> list[str]:
        """The lines that contain the words, once there are `count`."""
        def found() -> list[str]:
            return [line for line in [*self.out, *self.err] if words in line]
        wait_until(lambda: len(found()) >= count, f"{count} × {words!r}", self.text, timeout)
        return found()

    def interrupt(self, timeout: float = WAIT_S) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.end(timeout)

    def end(self, timeout: float = WAIT_S) -> int:
        """Wait for its own end; the exit code. All its lines are read then."""
        code = self.process.wait(timeout)
        for reader in self.readers:
            reader.join(timeout)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()


def _read_lines(stream, lines: list[str]) -> None:
    for line in stream:
        lines.append(line.rstrip("\n"))


def wait_until(condition, what: str, more=lambda: "", timeout: float = WAIT_S) -> None:
    """Wait for a condition, never for a time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain for {what}\n{more()[-3000:]}")
        time.sleep(0.05)


# ---------------------------------------------------------------- mail


@pytest.fixture(scope="session")
def smtp_python():
    """A Python that can run tests/smtp_server.py."""
    if run_tests.has_smtp_server():
        return run_tests.SMTP_PYTHON
    reason = f"no {run_tests.SMTP_PACKAGE} on this machine: python kit.py test --yes installs it on Debian"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class MailServer:
    """tests/smtp_server.py as a process, which may be stopped and started again on its port."""

    def __init__(self, python: str, maildir: Path, certificate: tuple = (), scheme: str = "smtp"):
        self.python, self.maildir, self.scheme = python, maildir, scheme
        self.certificate = [*map(str, certificate), scheme] if certificate else []
        self.port = free_port()
        self.url = self.url_as("")
        self.process = None

    def url_as(self, account: str) -> str:
        return f"{self.scheme}://{account}localhost:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen([self.python, str(ROOT / "tests" / "smtp_server.py"), str(self.port),
                                         str(self.maildir), *self.certificate])
        wait_until(self._greets, "the SMTP server")

    def _greets(self) -> bool:
        assert self.process.poll() is None, "the SMTP server ended"
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return self.scheme == "smtps" or connection.recv(3) == b"220"
        except OSError:
            return False

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def messages(self) -> list:
        return [email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
                for file in sorted((self.maildir / "new").glob("*"))]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
