"""Each patch of common/patches.py is still needed, and no other file uses private names.

Other people's code runs here as it is: unpatched, in a fresh process where this one has patched it.
"""

import ast
import re
import socket
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import pika
import pytest
from pika.adapters import select_connection

from common import connection, patches
from tests.conftest import ROOT

OLDEST_PYTHON = tuple(map(int, re.search(
    r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / "kit.py").read_text()).groups()))


def run_unpatched(program: str, **environment) -> str:
    """Run a program that does not import the kit. Return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8",
        env={"PYTHONUTF8": "1"} | environment, timeout=60, check=True)
    return result.stdout


def test_every_patch_has_its_test():
    tree = ast.parse((ROOT / "common" / "patches.py").read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert names == {"argparse_in_spanish", "tolerant_decoder", "one_write", "short_waits",
                     "smtp_host"}


# ---------------------------------------------------------------- argparse


def test_argparse_itself_prints_no_spanish():
    help_text = run_unpatched(
        "import argparse; argparse.ArgumentParser(prog='x').print_help()",
        LANG="es_ES.UTF-8", LC_ALL="es_ES.UTF-8", LANGUAGE="es")
    assert help_text.startswith("usage: x") and "show this help message" in help_text


# ---------------------------------------------------------------- pika's decoder

BREAKING = {  # a type byte and the value's bytes
    "a timestamp in the year 30000": b"T" + struct.pack(">Q", 10**12),
    "a timestamp without end": b"T" + struct.pack(">Q", 2**64 - 1),
    "a double NaN": b"d" + struct.pack(">d", float("nan")),
    "a float Infinity": b"f" + struct.pack(">f", float("inf")),
}


def test_pika_itself_cannot_read_every_header():
    """If some become readable, shorten the patch; if all do, remove it."""
    program = f"""
import struct
import pika.data
for name, value in {BREAKING}.items():
    table = b"\\x03bad" + value
    try:
        pika.data.decode_table(struct.pack(">I", len(table)) + table, 0)
    except Exception as error:
        print(name)
"""
    assert run_unpatched(program).splitlines()


@pytest.mark.parametrize("value", BREAKING.values(), ids=BREAKING)
def test_the_patched_decoder_reads_none_and_the_headers_behind_it(value):
    table = b"\x03bad" + value + b"\x04good" + b"t\x01"
    headers, _ = pika.data.decode_table(struct.pack(">I", len(table)) + table, 0)
    assert headers == {"bad": None, "good": True}


# ---------------------------------------------------------------- pika's writes


class CountingSocket(socket.socket):
    """Counts what is sent to the broker; pika's loop has sockets to wake itself, too."""

    port = sends = 0

    def send(self, *arguments):
        CountingSocket.sends += self.getpeername()[1] == self.port
        return super().send(*arguments)


@pytest.fixture
def channel(kit, monkeypatch):
    """Return an open channel in this thread's loop, on a socket that counts what is sent."""
    monkeypatch.setattr(socket, "socket", CountingSocket)
    monkeypatch.setattr(CountingSocket, "port", pika.URLParameters(kit.url).port)
    found = []

    def opened(made):
        made.channel(on_open_callback=lambda channel: (found.append(channel), made.ioloop.stop()))

    own = pika.SelectConnection(connection.parameters(kit.url, None), on_open_callback=opened,
                                on_close_callback=lambda *_: own.ioloop.stop())
    own.ioloop.start()
    [channel] = found
    yield channel
    if own.is_open:
        own.close()
        own.ioloop.start()


def sends_of(channel, publish) -> int:
    """Count the system calls of what publish() does, and of a method behind it."""
    ioloop = channel.connection.ioloop
    before = CountingSocket.sends
    publish()
    channel.queue_declare("q", passive=True, callback=lambda _: ioloop.stop())
    ioloop.start()
    return CountingSocket.sends - before


def test_pika_itself_writes_each_frame_alone(channel):
    sends_of(channel, lambda: channel.queue_declare("q", exclusive=True))

    def publish():
        for _ in range(10):
            channel.basic_publish("", "q", b"body")

    def publish_at_once():
        with patches.one_write(channel.connection):
            publish()

    alone, at_once = sends_of(channel, publish), sends_of(channel, publish_at_once)
    assert (alone, at_once) == (3 * 10 + 1, 1 + 1)


def longest_select(monkeypatch) -> float:
    """How long pika waits in select(), which no Ctrl-C ends on Windows, if nothing happens."""
    waited = []
    poller = select_connection.SelectPoller(get_wait_seconds=lambda: None,
                                            process_timeouts=lambda: None)

    def select(readable, writable, errors, seconds):
        waited.append(seconds)
        return [], [], []

    with monkeypatch.context() as patched:
        patched.setattr(select_connection, "select", SimpleNamespace(select=select,
                                                                     error=OSError))
        poller.poll()
    return waited[0]


def test_pika_itself_waits_for_seconds_and_the_patched_one_does_not(monkeypatch):
    assert longest_select(monkeypatch) == 0.2
    monkeypatch.delattr(select_connection.SelectPoller, "_MAX_POLL_TIMEOUT")
    assert longest_select(monkeypatch) > 1


def test_one_write_sends_all_frames_in_order(channel):
    got = []
    channel.queue_declare("q", exclusive=True)
    channel.basic_consume("q", lambda _channel, method, _properties, body: (
        got.append(body), len(got) == 20 and channel.connection.ioloop.stop()), auto_ack=True)
    bodies = [b"%d" % number for number in range(20)]
    with patches.one_write(channel.connection):
        for body in bodies:
            channel.basic_publish("", "q", body)
    channel.connection.ioloop.start()
    assert got == bodies


def test_one_write_drops_the_frames_of_a_connection_that_is_gone(channel):
    own = channel.connection
    own.close()
    own.ioloop.start()
    before = CountingSocket.sends
    with patches.one_write(own):
        own._output_marshaled_frames([b"a", b"b"])
    assert CountingSocket.sends == before


# ---------------------------------------------------------------- smtplib


@pytest.fixture
def smtp_port():
    """Return the port of a server that offers STARTTLS, and hangs up instead of doing it."""
    def serve():
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 hello\r\n")
            for answer in (b"250-hello\r\n250 STARTTLS\r\n", b"220 go\r\n"):
                lines.readline()
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)


STARTTLS = """
import smtplib, ssl
server = smtplib.SMTP(timeout=10)
{patch}
server.connect("localhost", {port})
try:
    server.starttls(context=ssl.create_default_context())
except Exception as error:
    print(type(error).__name__)
"""


def test_smtplib_itself_forgets_the_host_that_connect_got(smtp_port):
    """Python after 3.13 remembers it: the patch is for the older ones that kit.py accepts."""
    problem = run_unpatched(STARTTLS.format(patch="", port=smtp_port)).strip()
    if sys.version_info[:2] == OLDEST_PYTHON or problem == "ValueError":
        assert problem == "ValueError"  # an empty server_hostname
    else:
        pytest.skip(f"this Python remembers it, but {OLDEST_PYTHON} may not")


def test_with_its_host_smtplib_gets_as_far_as_the_handshake(smtp_port):
    patch = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
             "from common.patches import smtp_host; smtp_host(server, 'localhost')")
    problem = run_unpatched(STARTTLS.format(patch=patch, port=smtp_port)).strip()
    assert problem.startswith(("SSL", "Connection")), problem


# ---------------------------------------------------------------- private names

DOCUMENTED = {"os._exit", "_replace"}  # public, in spite of their names; _replace: of a NamedTuple
SOURCES = [path for folder in (".", "common", "common/views", "tools")
           for path in sorted((ROOT / folder).glob("*.py")) if path.name != "patches.py"]


def private_names(path) -> list[str]:
    """Return each use of a private name that is not the object's own, with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [part for alias in node.names for part in (alias.name, *node.module.split("."))]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            names = [argument.value for argument in node.args[1:2]
                     if isinstance(argument, ast.Constant)]
        found += [f"{path.name}:{node.lineno} {ast.unparse(node)}" for name in names
                  if name.startswith("_") and not name.startswith("__")
                  and not DOCUMENTED & {name, ast.unparse(node)}]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_patches_uses_the_private_names_of_others(path):
    assert private_names(path) == []


def test_patches_uses_no_more_private_names_than_its_functions_explain():
    patched = private_names(ROOT / "common" / "patches.py")
    assert {line.rpartition(".")[2] for line in patched} == {
        "_", "_impl", "_output_marshaled_frames", "_transport", "_host", "_MAX_POLL_TIMEOUT"}
