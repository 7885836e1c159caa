"""A private, disposable RabbitMQ node for the tests and the demo.

It has its own ports, data folder and epmd (Erlang's name server) and listens on 127.0.0.1 only. It
can be killed, frozen and restarted without affecting any other broker:

    with Node(Path("/tmp/my-node")) as node:
        node.start()
        connect_to(node.url)

It works with any `rabbitmq-server` from 3.10 to 4.3. Standard library only.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

from common.cli import EXIT_NO_BROKER
from common.config import AMQP_PORTS, LOCAL_HOSTS, ROOT, KitError
from common.views.management import ask
from tools.command import accepts, own_group

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60
EPMD_TIMEOUT_S = 5
POLL_S = 0.1
HTTP_TIMEOUT_S = 30
COUNTS_AT_MOST_MS = 1000  # age of the message counts with disable_stats and enable_queue_totals
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = 1
EPMD_KILL_REQUEST, EPMD_NAMES_REQUEST = b"\x00\x01k", b"\x00\x01n"
PORT_USES = {"port": "AMQP", "management": "página de gestión", "distribution": "entre nodos",
             "epmd": "epmd, los nombres de los nodos"}
OTHER_PORTS = 3  # how often a new node chooses again
ERROR_MARK = re.compile(r"^.*\[error\] (<[\d.]+> )?")
# Below the range that operating systems use for outgoing connections: no other process takes the
# node's port between a kill and the next start.
PORTS = range(20_000, 32_000)
PORTS_AT_ONCE = 250  # that a process owns
WINDOWS = os.name == "nt"
KEPT_NODE = ROOT / ".state" / "broker"  # of `kit.py broker up`


class NodeError(KitError):
    """A private node did not start or stop; the message quotes the first error of its log."""

    exit_code = EXIT_NO_BROKER


class PortTaken(NodeError):
    """Another program listens on a port of the node."""


# ---------------------------------------------------------------- finding a broker


def answers_amqp(host: str, port: int, timeout: float = 2.0) -> bool:
    """Whether a broker at host:port answers the first step of an AMQP handshake."""
    try:
        # Windows takes two seconds to refuse a connection to this machine.
        wait_s = min(timeout, 0.5) if WINDOWS and host in LOCAL_HOSTS else timeout
        with socket.create_connection((host, port), timeout=wait_s) as connection:
            connection.settimeout(timeout)
            connection.sendall(AMQP_HEADER)
            return connection.recv(1) == bytes([METHOD_FRAME])
    except OSError:
        return False


def host_and_port(url: str) -> tuple[str, int]:
    """The host and port of an AMQP URL; without a port, the scheme's default."""
    parts = urlsplit(url)
    assert parts.hostname is not None  # config.load() rejects a URL without one
    return parts.hostname, parts.port or AMQP_PORTS[parts.scheme]


def find_server() -> Path | None:
    """The `rabbitmq-server` of this machine that an ordinary user can run."""
    return next((path for path in _server_candidates() if path.is_file()), None)


def _server_candidates() -> Iterator[Path]:
    debian = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    found = shutil.which("rabbitmq-server")
    if found and Path(found).parent not in (Path("/usr/sbin"), Path("/sbin")):
        yield Path(found)
    yield debian  # Debian's /usr/sbin wrapper rejects ordinary users (docs/facts.md, broker 22)
    if found:
        yield Path(found)
    for prefix in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"):
        yield Path(prefix, "opt/rabbitmq/sbin/rabbitmq-server")
    windows = Path(os.environ.get("PROGRAMFILES", r"C:\Program Files"), "RabbitMQ Server")
    yield from sorted(windows.glob("rabbitmq_server-*/sbin/rabbitmq-server.bat"), reverse=True)


# ---------------------------------------------------------------- the node


class Node:
    """One RabbitMQ node in `folder`; the same folder gives the same node again.

    Ports that are not given are chosen among the free ones. The user has all permissions; like the
    ports, it stays what it was at the first start. The nodes of a cluster share one epmd.
    configuration: more lines for rabbitmq.conf.
    """

    def __init__(self, folder: Path, port: int | None = None, management_port: int | None = None,
                 epmd_port: int | None = None, configuration: str = "",
                 user: str = "guest", password: str = "guest"):
        self.folder = Path(folder).resolve()
        saved = self.folder / "ports.json"
        if saved.exists():
            kept = json.loads(saved.read_text(encoding="utf-8"))
        else:
            kept = {"port": port or free_port(), "management": management_port or free_port(),
                    "distribution": free_port(), "epmd": epmd_port or free_port(),
                    "user": user, "password": password}
            self.folder.mkdir(parents=True, exist_ok=True)
            saved.write_text(json.dumps(kept), encoding="utf-8")
        self._ports = kept
        self.port = kept["port"]
        self.management_port = kept["management"]
        self.name = f"kit-{self.port}"
        self._user, self._password = kept.get("user", "guest"), kept.get("password", "guest")
        self._configuration = configuration
        self._old_log = 0  # characters of the log that earlier starts wrote
        login = f"{quote(self._user, safe='')}:{quote(self._password, safe='')}"
        self.url = f"amqp://{login}@127.0.0.1:{self.port}/%2F"
        self.management_url = f"http://127.0.0.1:{self.management_port}"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the node and of its group; None if this object did not start it."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the node runs, started by this object or by an earlier program."""
        if self._process is not None:
            return self._process.poll() is None
        # A pid alone proves little after a reboot, nor does a port that others may have taken.
        return (accepts("127.0.0.1", self._ports["distribution"])
                and (WINDOWS or _process_exists(self.folder / "pid")))

    def _has_process(self) -> bool:
        """Like `running`, but also true while a stopping node has closed its ports already."""
        return self.running or (self._process is None and _process_exists(self.folder / "pid"))

    def start(self, timeout: float = START_TIMEOUT_S) -> None:
        """Start the node with the data in its folder; return when it answers an AMQP handshake.

        Raises PortTaken, NodeError.
        """
        if self._process is None:
            self.check_ports()
            self._process = self._spawn()
        deadline = time.monotonic() + timeout
        while not answers_amqp("127.0.0.1", self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                self.check_ports()  # one of them may have been taken since
                error = self._first_error()
                raise (PortTaken if "eaddrinuse" in error else NodeError)(
                    f"El nodo privado de RabbitMQ no arrancó: {error} (log:"
                    f" {self.folder / 'broker.log'})")
            time.sleep(POLL_S)

    def check_ports(self) -> None:
        """Raise PortTaken if the stopped node could not start, for another program has a port."""
        for name, use in PORT_USES.items():
            port = self._ports[name]
            if not _is_free(port) and not (name == "epmd" and _is_epmd(port)):
                raise PortTaken(
                    f"Otro programa usa el puerto {port} ({use}) del nodo privado de RabbitMQ:"
                    f" cierra ese programa y repite la orden, o borra la carpeta {self.folder}, con"
                    " sus mensajes, y el nodo nuevo usará otro puerto.")

    def kill(self) -> None:
        """Kill the node at once, without a shutdown (SIGKILL to its process group)."""
        if self._process is None:
            return
        if WINDOWS:
            ran = self._process.poll() is None
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(self.pid)], capture_output=True)
            deadline = time.monotonic() + STOP_TIMEOUT_S  # erl.exe dies a moment after cmd.exe
            while ran and not _is_free(self.port) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        elif self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS: it has just died
                self._signal_group(signal.SIGKILL)
        self._wait_for_exit(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Shut the node down cleanly: it closes its connections and writes its data."""
        if self._process is None or WINDOWS:
            self.ctl("stop")
        else:
            self._process.terminate()
        self._wait_for_exit(STOP_TIMEOUT_S)

    def freeze(self) -> None:
        """Suspend the node (POSIX): its connections stay open and get no answer."""
        self._signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the node after `freeze`."""
        self._signal_group(signal.SIGCONT)

    def ctl(self, *args: str, timeout: float = 120) -> str:
        """Run `rabbitmqctl ARGS` on this node and return its output. Raises NodeError."""
        server = _server()
        command = [str(server.with_name("rabbitmqctl" + server.suffix)), *args]
        try:
            done = subprocess.run(command, env=self._environment(), stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, encoding="utf-8",
                                  errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired:
            raise NodeError(f"rabbitmqctl {args[0]} no contestó en {timeout:g} s.") from None
        if done.returncode != 0:
            raise NodeError(f"rabbitmqctl {args[0]}: {done.stderr or done.stdout}")
        return done.stdout

    def log(self) -> str:
        """The whole text of the broker's log."""
        return _read(self.folder / "broker.log")

    def close(self, keep_data: bool = False) -> None:
        """Kill the node and its epmd and delete its folder, unless keep_data is set."""
        self.kill()
        kill_epmd(self._ports["epmd"])
        if not keep_data:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen:
        server = _server()
        self._write_configuration()
        self._old_log = len(self.log())
        with open(self.folder / "console.log", "wb") as console:
            process = subprocess.Popen([str(server)], env=self._environment(), cwd=self.folder,
                                       stdin=subprocess.DEVNULL, stdout=console,
                                       stderr=subprocess.STDOUT,
                                       **own_group(outlives_terminal=self.folder == KEPT_NODE))
        (self.folder / "pid").write_text(str(process.pid), encoding="utf-8")
        return process

    def _write_configuration(self) -> None:
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n", encoding="utf-8")
        (self.folder / "rabbitmq.conf").write_text(
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self.management_port}\n"
            # The default of 512 MiB is too much for a laptop that runs tests.
            "raft.wal_max_size_bytes = 67108864\n" + self._configuration, encoding="utf-8")
        # In rabbitmq.conf a password could not have every character.
        (self.folder / "advanced.config").write_text(
            f"[{{rabbit, [{{default_user, {_erlang(self._user)}}},"
            f" {{default_pass, {_erlang(self._password)}}}]}}].\n", encoding="utf-8")

    def _environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items()
                     if not key.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))}
        folder = self.folder
        return inherited | {
            "HOME": str(folder),  # the Erlang cookie is stored here; on Windows, in the next two
            "HOMEDRIVE": folder.drive, "HOMEPATH": str(folder)[len(folder.drive):],
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._ports["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": str(folder / "broker.log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "not-there.conf"),
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"
                f" -rabbit quorum_tick_interval {COUNTS_AT_MOST_MS}",
            # With this the start script replaces itself with the broker instead of being its
            # parent: signals and waits then reach the broker.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _wait_for_exit(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._has_process():
            if time.monotonic() > deadline:
                raise NodeError(f"El nodo privado de RabbitMQ no terminó en {timeout:g} s"
                                f" (log: {self.folder / 'broker.log'}).")
            time.sleep(POLL_S)
        self._process = None

    def _signal_group(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _first_error(self) -> str:
        """The first line of the log of the last start that says what is wrong."""
        lines = (self.log()[self._old_log:] + _read(self.folder / "console.log")).splitlines()
        errors = [line for line in lines if ERROR_MARK.search(line)]
        texts = (ERROR_MARK.sub("", line).strip() for line in errors or reversed(lines))
        return next((text for text in texts if any(map(str.islower, text))), "sin log")


def kept_node() -> Node | None:
    """The node of `kit.py broker up`, running or not."""
    return Node(KEPT_NODE) if (KEPT_NODE / "ports.json").exists() else None


@contextmanager
def new_node(folder: Path, configuration: str = "") -> Iterator[Node]:
    """Yield a started node; on other ports if a program takes one between choice and start."""
    for last in (*[False] * OTHER_PORTS, True):
        # Its end deletes the folder, and with it the choice of ports.
        with Node(folder, configuration=configuration) as node:
            try:
                node.start()
            except PortTaken:
                if last:
                    raise
                continue
            yield node
            return


def kill_epmd(port: int) -> None:
    """Stop the epmd that a stopped node leaves running; it exits only when no node is left."""
    deadline = time.monotonic() + EPMD_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as epmd:
                epmd.sendall(EPMD_KILL_REQUEST)
                if epmd.recv(2) == b"OK":
                    return
        except OSError:
            return  # nothing listens there
        time.sleep(POLL_S)


def free_port(wanted: int | None = None) -> int:
    """A free TCP port on 127.0.0.1: the wanted one if possible, or one that no other call returns
    while this process runs: its server may start later."""
    if wanted and _is_free(wanted):
        return wanted
    for port in _own_ports:
        if _is_free(port):
            return port
    raise NodeError("No hay puertos libres en 127.0.0.1.")


def _ports_of_this_process() -> Iterator[int]:
    """Each port once, PORTS_AT_ONCE at a time: who has bound the first of them owns the others."""
    blocks, bound = PORTS[::PORTS_AT_ONCE], []
    for first in random.sample(blocks, len(blocks)):
        bound.append(socket.socket())  # until the process ends
        try:
            bound[-1].bind(("127.0.0.1", first))
        except OSError:  # another process has
            continue
        yield from range(first + 1, first + PORTS_AT_ONCE)


_own_ports = _ports_of_this_process()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if not WINDOWS:  # on Windows the option lets two processes bind one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def _is_epmd(port: int) -> bool:
    """An epmd that an earlier node or the rest of a cluster runs serves this node too."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as epmd:
            epmd.sendall(EPMD_NAMES_REQUEST)
            return epmd.recv(4) == port.to_bytes(4, "big")
    except OSError:
        return False


def _process_exists(pid_file: Path) -> bool:
    pid = _read(pid_file)
    if WINDOWS or not pid:  # on Windows os.kill(pid, 0) sends a Ctrl-C
        return False
    try:
        os.kill(int(pid), 0)
    except OSError:
        return False
    # In a container whose process 1 does not reap children, an ended node stays as a zombie.
    return ") Z " not in _read(Path(f"/proc/{pid}/stat"))


def _erlang(text: str) -> str:
    """The text's bytes in UTF-8, as Erlang writes them."""
    return f"<<{','.join(map(str, text.encode()))}>>"


def _server() -> Path:
    server = find_server()
    if server is None:
        raise NodeError("No se encontró rabbitmq-server en este equipo.")
    return server


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


# ---------------------------------------------------------------- the management API


ask_management = partial(ask, timeout_s=HTTP_TIMEOUT_S)


def create_vhost(management_url: str, user: str, password: str, name: str) -> None:
    """Create a virtual host with all permissions for `user`. Raises OSError (from urllib)."""
    ask_management("PUT", management_url, user, password, f"vhosts/{quote(name, safe='')}")
    ask_management("PUT", management_url, user, password,
                   f"permissions/{quote(name, safe='')}/{quote(user, safe='')}",
                   {"configure": ".*", "write": ".*", "read": ".*"})


def delete_vhost(management_url: str, user: str, password: str, name: str) -> None:
    """Delete a virtual host and all that is in it. Raises OSError (from urllib)."""
    ask_management("DELETE", management_url, user, password, f"vhosts/{quote(name, safe='')}")
