"""Fixtures and helpers: private brokers, and the kit's scripts, as processes and in this one.

A test uses only brokers that the test run started, so it may kill them. Without a rabbitmq-server
on this machine, the tests that need one are skipped, or fail if KIT_REQUIRE_BROKER or CI is set
(kit.py test sets the first).
"""

import _thread
import email
import email.policy
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

import pika
import pytest

from common import cli, config, console, events, exchange, publishing, retry
from common.views import dead_letters
from tools import run_tests
from tools.install import has_apt
from tools.node import Node, create_vhost, delete_vhost, find_server, free_port, new_node

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 30
STOP_S = 12  # the README promises about three seconds; a stop that waits for the broker takes 15
PATIENCE_S = 0.2
DELAYS = "0.3,0.6,0.9"
LONGEST = ("test_grade_programs.py", "test_lab.py", "test_restarts.py", "test_setup_queues.py")
WAITING = "test_network_faults.py"  # computes little: it may run beside the other faults
own_parts: set[str] = set()  # taken by this pytest, of those that run at once


def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true",
                     help="also tests/faults: a quarter of an hour more")
    parser.addoption("--record", action="store_true",
                     help="write what the lab prints now into its pages")


def pytest_configure():
    """The scripts under test hear Ctrl-C, also if a shell started this with & and so ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path, config):
    """Ignore tests/faults without --faults. None leaves the decision to pytest."""
    return True if collection_path.name == "faults" and not config.getoption("--faults") else None


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, and end with tests/faults (tools/run_tests.py)."""
    ranks = dict.fromkeys(LONGEST, 0) | {"faults": 2, WAITING: 3}
    items.sort(key=lambda item: ranks.get(part_of(item), 1))


def pytest_runtest_protocol(item, nextitem):
    """Leave out a part that another pytest has taken. None runs the test, as usual."""
    part, folder = part_of(item), os.environ.get(run_tests.TAKEN)
    if folder and part not in own_parts:
        try:
            (Path(folder) / part).mkdir()
        except FileExistsError:
            return True
        own_parts.add(part)
    return None


def failed_headers(headers: dict | None, error: Exception, delay_s: float | None,
                   consumer: str = "email", failed_at: str = "") -> dict:
    """Return the headers of the copy that a consumer makes of a failed event; failed_at: now."""
    _, copied = retry.failed_copy(pika.BasicProperties(headers=headers), error, delay_s,
                                  consumer=consumer, source_queue=exchange.CONSUMERS[consumer],
                                  failed_at=failed_at or events.now())
    return copied.headers


def part_of(item) -> str:
    """What one pytest runs: a file, or those about time in tests/faults, one after the other."""
    name = item.path.name
    alone = name in (*LONGEST, WAITING) or item.path.parent.name != "faults"
    return name if alone else "faults"


@pytest.fixture(scope="session")
def server():
    """Find the rabbitmq-server of this machine."""
    found = find_server()
    if found is None and (os.environ.get("KIT_REQUIRE_BROKER") or os.environ.get("CI")):
        pytest.fail("no rabbitmq-server on this machine: python kit.py test --yes installs one")
    if found is None:
        pytest.skip("no rabbitmq-server on this machine: python kit.py test --yes installs one")
    return found


@pytest.fixture(scope="session")
def shared_node(server, tmp_path_factory):
    """A node for the tests that do not kill it: that of this test run, or one of its own. Each test
    uses its own vhost."""
    if folder := os.environ.get(run_tests.NODE):
        beside = Path(folder).with_name
        started, failed = beside(run_tests.STARTED), beside(run_tests.FAILED)
        wait_until(lambda: started.exists() or failed.exists(), "the node that all share",
                   timeout=120)
        if failed.exists():
            pytest.exit("The node that all share did not start.", 1)
        yield Node(Path(folder))
    else:
        with new_node(tmp_path_factory.mktemp("node")) as node:
            yield node


@pytest.fixture(scope="session")
def mortal_node(server, tmp_path_factory):
    """Return a node for the tests that kill, freeze and restart it, one after the other."""
    with new_node(tmp_path_factory.mktemp("mortal-node")) as node:
        yield node


@pytest.fixture
def kit(shared_node, tmp_path):
    """Return a Kit that uses its own vhost on the shared node."""
    with own_vhost(shared_node, tmp_path) as own:
        yield own


@pytest.fixture
def own_kit(mortal_node, tmp_path):
    """Return a Kit on a node that the test may kill: own_kit.node."""
    mortal_node.start()
    with own_vhost(mortal_node, tmp_path) as own:
        yield own
        if os.name != "nt" and mortal_node.running:
            mortal_node.thaw()  # a test that fails may leave it frozen


@contextmanager
def own_vhost(node, folder: Path):
    """Yield a Kit with a vhost of its own, which is deleted if the node is still alive."""
    vhost = f"test-{uuid.uuid4().hex[:8]}"
    create_vhost(node.management_url, "guest", "guest", vhost)
    kit = Kit(node.url.replace("%2F", vhost), folder / "state", node=node)
    yield kit
    kit.close()
    if node.running:
        delete_vhost(node.management_url, "guest", "guest", vhost)


@dataclass
class Kit:
    """Runs the scripts against one broker and inspects its queues."""

    url: str
    state: Path
    delays: str = DELAYS
    queue_type: str = "quorum"
    node: Node | None = None
    management: str = "http://127.0.0.1:9"  # none
    started: list = field(default_factory=list)

    @property
    def settings(self) -> config.Settings:
        return config.load({"RABBITMQ_URL": self.url, "RETRY_DELAYS": self.delays,
                            "STATE_DIR": str(self.state), "QUEUE_TYPE": self.queue_type})

    def using(self, **changes) -> "Kit":
        """Return a copy with other settings."""
        return replace(self, **changes)

    def environment(self, **more) -> dict:
        kept = {name: value for name, value in os.environ.items()
                if name not in ("NO_COLOR", "FORCE_COLOR")}
        return kept | {"RABBITMQ_URL": self.url, "RETRY_DELAYS": self.delays,
                       "STATE_DIR": str(self.state), "QUEUE_TYPE": self.queue_type,
                       "RABBITMQ_MANAGEMENT_URL": self.management,
                       "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"} | more

    def run(self, script: str, *arguments: str, timeout: float = 60, stdin: str | None = None,
            stdout=subprocess.PIPE, **environment):
        """Run a script to its end and return the CompletedProcess."""
        return subprocess.run([sys.executable, str(ROOT / script), *arguments],
                              env=self.environment(**environment), cwd=self.state.parent,
                              input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                              stdout=stdout, stderr=subprocess.PIPE, text=True, encoding="utf-8",
                              timeout=timeout)

    def run_ok(self, script: str, *arguments: str, **more):
        """Run a script that must exit with 0."""
        return succeeded(self.run(script, *arguments, **more))

    def call(self, script: str, *arguments: str, typed: str | None = None, timeout: float = 60,
             **environment):
        """Like run(), but in this process, without the start of Python: for what is not about
        processes. A traceback fails the test; after the timeout, the script gets a Ctrl-C. It waits
        for PATIENCE_S only for dead letters that another program holds.

        typed: what is typed at the terminal; None if there is no terminal.
        """
        main = importlib.import_module(Path(script).stem).main
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        watchdog = threading.Timer(timeout, _thread.interrupt_main)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in self.environment(**environment).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", [script, *arguments])
            patch.setattr(sys, "stdin", io.StringIO(typed))
            patch.setattr(sys.stdin, "isatty", lambda: typed is not None)
            patch.setattr(console, "json_mode", False)
            patch.setattr(dead_letters, "PATIENCE_S", PATIENCE_S)
            patch.setattr(dead_letters, "ALONE_PATIENCE_S", PATIENCE_S)
            patch.chdir(self.state.parent)
            watchdog.start()
            try:
                cli.run(main)
            except SystemExit as end:
                code = end.code
            finally:
                watchdog.cancel()
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        for stream in (out, err):
            stream.flush()
        printed = (stream.buffer.getvalue().decode() for stream in (out, err))
        return subprocess.CompletedProcess([script, *arguments], code, *printed)

    def call_ok(self, script: str, *arguments: str, **more):
        """Like run_ok(), but in this process."""
        return succeeded(self.call(script, *arguments, **more))

    def declare(self) -> None:
        """Declare the whole topology, as setup_queues.py does."""
        with self.channel() as channel:
            exchange.declare(channel, self.settings)

    def run_at_terminal(self, typed: str, script: str, *arguments: str, timeout: float = 60,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT):
        """Run a script that asks a question and type the answer (POSIX only)."""
        import pty  # not available on Windows

        keyboard, terminal = pty.openpty()
        try:
            os.write(keyboard, typed.encode())
            return subprocess.run([sys.executable, str(ROOT / script), *arguments],
                                  env=self.environment(), cwd=self.state.parent, stdin=terminal,
                                  stdout=stdout, stderr=stderr, text=True, encoding="utf-8",
                                  timeout=timeout)
        finally:
            os.close(keyboard)
            os.close(terminal)

    def report(self, script: str) -> dict:
        return json.loads(self.call_ok(script, "--report", "--json").stdout)

    def start(self, script: str, *arguments: str, **environment) -> "Running":
        """Start a script that runs until it is stopped."""
        running = Running([sys.executable, str(ROOT / script), *arguments],
                          self.environment(**environment), self.state.parent)
        self.started.append(running)
        return running

    def start_consumer(self, name: str, *arguments: str) -> "Running":
        """Start the email, loyalty or analytics consumer and wait until it consumes."""
        script = {"email": "email_consumer_simple.py", "loyalty": "loyalty_consumer_simple.py",
                  "analytics": "analytics_consumer.py"}[name]
        running = self.start(script, *arguments)
        running.wait_for("escucha")  # the broker may still count one that was killed
        return running

    def channel(self):
        """Return a context manager that opens a blocking channel for the test itself."""
        return _Channel(self.url)

    def depth(self, queue: str) -> int:
        """Return the number of ready messages, or 0 if the queue does not exist."""
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
        """Consume all messages of a queue and return their (properties, body)."""
        found = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return found
                found.append((properties, body))

    def publish(self, body: bytes, *, queue: str | None = None, properties=None) -> None:
        """Publish raw bytes with a publisher confirm, to the exchange or to one queue."""
        with self.channel() as channel:
            channel.confirm_delivery()
            channel.basic_publish("" if queue else "user_events", queue or "", body,
                                  properties or pika.BasicProperties(delivery_mode=2),
                                  mandatory=True)

    def publish_event(self, event=None, *, queue: str | None = None,
                      headers: dict | None = None) -> events.Event:
        event = event or events.user_created("Juan", "juan@eco.com")
        self.publish(events.encode(event), queue=queue,
                     properties=publishing.properties(event, 2, headers))
        return event

    def close(self) -> None:
        for running in self.started:
            running.kill()


def succeeded(result):
    assert result.returncode == 0, result.stdout + result.stderr
    return result


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
    """A script as a process. Threads read its output line by line.

    With `together`, stderr goes to `out` too, in the order in which a terminal shows it.
    """

    def __init__(self, command: list[str], environment: dict, folder: Path, together: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.out: list[str] = []
        self.err: list[str] = []
        self.process = subprocess.Popen(command, env=environment, cwd=folder,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        text=True, encoding="utf-8",
                                        stderr=subprocess.STDOUT if together else subprocess.PIPE)
        self.readers = [threading.Thread(target=_read_lines, args=pair, daemon=True)
                        for pair in ((self.process.stdout, self.out),
                                     (self.process.stderr, self.err)) if pair[0]]
        for reader in self.readers:
            reader.start()

    def text(self) -> str:
        return "\n".join(self.out + self.err)

    def wait_for(self, words: str, count: int = 1, timeout: float = WAIT_S) -> list[str]:
        """Wait for `count` lines that contain the words and return them."""
        def found() -> list[str]:
            return [line for line in [*self.out, *self.err] if words in line]
        wait_until(lambda: len(found()) >= count, f"{count} × {words!r}", self.text, timeout)
        return found()

    def interrupt(self, timeout: float = WAIT_S) -> int:
        """Send Ctrl-C and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.end(timeout)

    def end(self, timeout: float = WAIT_S) -> int:
        """Wait until the process exits and all its lines are read. Return the exit code."""
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
    """Wait until the condition is true. Fail after the timeout."""
    started_at = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - started_at
        if waited_s > timeout:
            pytest.fail(f"timeout of {timeout:g} s while waiting for {what}\n{more()[-3000:]}")
        time.sleep(min(0.02 + waited_s / 10, 0.2))  # a condition may cost a connection


# ---------------------------------------------------------------- mail


@pytest.fixture(scope="session")
def smtp_python():
    """Return the path of a Python that can run tests/smtp_server.py."""
    if not run_tests.has_smtp_server():
        reason = (f"no {run_tests.SMTP_PACKAGE} on this machine:"
                  " python kit.py test --yes installs it on Debian")
        (pytest.fail if os.environ.get("CI") and has_apt() else pytest.skip)(reason)
    return run_tests.SMTP_PYTHON


class MailServer:
    """tests/smtp_server.py as a process. A test may stop it and start it again on its port."""

    def __init__(self, python: str, maildir: Path, certificate: tuple = (), scheme: str = "smtp"):
        self.python, self.maildir, self.scheme = python, maildir, scheme
        self.certificate = [*map(str, certificate), scheme] if certificate else []
        self.port = free_port()
        self.url = self.url_for("")
        self.process = None

    def url_for(self, account: str) -> str:
        return f"{self.scheme}://{account}localhost:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen([self.python, str(ROOT / "tests" / "smtp_server.py"),
                                         str(self.port), str(self.maildir), *self.certificate])
        wait_until(self._is_up, "the SMTP server")

    def _is_up(self) -> bool:
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
