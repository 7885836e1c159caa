"""A private, throw-away RabbitMQ node for the tests and the demo.

It has its own ports, its own data folder and its own epmd (Erlang's name server), listens on
127.0.0.1 only, and may be killed, frozen and started again without anybody else noticing:

    with Node(Path("/tmp/my-node")) as node:
        node.start()
        connect_to(node.url)

Works with any `rabbitmq-server` from 3.10 to 4.3. Standard library only.
"""

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from common.cli import EXIT_NO_BROKER
from common.config import KitError

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60
EPMD_TIMEOUT_S = 5
POLL_S = 0.1
COUNTS_AT_MOST_MS = 1000  # how old the management API's counts of messages may be; by default 5 s
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = 1
EPMD_KILL_REQUEST = b"\x00\x01k"
# Below the ports that operating systems hand out to outgoing connections: between a kill
# and the next start nobody may take the node's port.
PORTS = range(20_000, 32_000)
WINDOWS = os.name == "nt"


class NodeError(KitError):
    """A private node did not start or stop; the text ends with the last lines of its log."""

    exit_code = EXIT_NO_BROKER


# ---------------------------------------------------------------- looking for a broker


def answers_amqp(host: str, port: int, timeout: float = 2.0) -> bool:
    """Whether a broker at host:port answers the first step of an AMQP handshake."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.settimeout(timeout)
            connection.sendall(AMQP_HEADER)
            return connection.recv(1) == bytes([METHOD_FRAME])
    except OSError:
        return False


def find_server() -> "Path | None":
    """The `rabbitmq-server` of this machine that an ordinary user may run."""
    return next((path for path in _server_candidates() if path.is_file()), None)


def _server_candidates():
    debian = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    found = shutil.which("rabbitmq-server")
    if found and Path(found).parent not in (Path("/usr/sbin"), Path("/sbin")):
        yield Path(found)
    yield debian  # Debian's /usr/sbin wrapper refuses ordinary users (docs/facts.md, broker 22)
    if found:
        yield Path(found)
    for prefix in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"):
        yield Path(prefix, "opt/rabbitmq/sbin/rabbitmq-server")
    windows = Path(os.environ.get("ProgramFiles", r"C:\Program Files"), "RabbitMQ Server")
    yield from sorted(windows.glob("rabbitmq_server-*/sbin/rabbitmq-server.bat"), reverse=True)


# ---------------------------------------------------------------- the node


class Node:
    """One RabbitMQ node under `folder`; the same folder again is the same node again.

    Ports that are not given are picked among the free ones. `guest` / `guest` may do anything.
    The nodes of a cluster share one epmd. configuration: more lines for rabbitmq.conf.
    """

    def __init__(self, folder: Path, port: "int | None" = None, management_port: "int | None" = None,
                 epmd_port: "int | None" = None, configuration: str = ""):
        self.folder = Path(folder).resolve()
        saved = self.folder / "ports.json"
        if saved.exists():
            ports = json.loads(saved.read_text(encoding="utf-8"))
        else:
            ports = {"port": port or free_port(), "management": management_port or free_port(),
                     "distribution": free_port(), "epmd": epmd_port or free_port()}
            self.folder.mkdir(parents=True, exist_ok=True)
            saved.write_text(json.dumps(ports), encoding="utf-8")
        self._ports = ports
        self.port = ports["port"]
        self.management_port = ports["management"]
        self.name = f"kit-{self.port}"
        self._configuration = configuration
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"
        self.management_url = f"http://127.0.0.1:{self.management_port}"
        self._process = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    @property
    def pid(self) -> "int | None":
        """Process id of the node (of its process group too); None if this object started none."""
        return self._process and self._process.pid

    @property
    def running(self) -> bool:
        """Whether the node lives, started by this object or by an earlier program."""
        if self._process is not None:
            return self._process.poll() is None
        return _accepts(self._ports["distribution"])

    def _lives(self) -> bool:
        """Like `running`, but true to the last breath: a stopping node closes its ports early."""
        return self.running or self._process is None and _process_lives(self.folder / "pid")

    def start(self, timeout: float = START_TIMEOUT_S) -> None:
        """Start it, with the data it had, and return when it answers an AMQP handshake."""
        if self._process is None:
            self._process = self._spawn()
        deadline = time.monotonic() + timeout
        while not answers_amqp("127.0.0.1", self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise NodeError(f"RabbitMQ no arrancó en {self.folder}:\n{self._tail()}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """End it at once, as a power cut of the process would (SIGKILL to the whole group)."""
        if self._process is None:
            return
        if WINDOWS:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(self.pid)], capture_output=True)
        elif self._process.poll() is None:
            self._signal_group(signal.SIGKILL)
        self._wait_for_exit(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """End it as an administrator would: connections are closed, data is written."""
        if self._process is None or WINDOWS:
            self.ctl("stop")
        else:
            self._process.terminate()
        self._wait_for_exit(STOP_TIMEOUT_S)

    def freeze(self) -> None:
        """Stop its clock (POSIX): connections stay open and nobody answers on them."""
        self._signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._signal_group(signal.SIGCONT)

    def ctl(self, *args: str, timeout: float = 60) -> str:
        """What `rabbitmqctl ARGS` prints when run against this node; raises NodeError."""
        server = _server()
        command = [str(server.with_name("rabbitmqctl" + server.suffix)), *args]
        done = subprocess.run(command, env=self._environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, encoding="utf-8",
                              errors="replace", timeout=timeout)
        if done.returncode != 0:
            raise NodeError(f"rabbitmqctl {args[0]}: {done.stderr or done.stdout}")
        return done.stdout

    def log(self) -> str:
        """Everything the broker has written to its log so far."""
        return _read(self.folder / "broker.log")

    def close(self, keep_data: bool = False) -> None:
        """Leave nothing behind: no node, no epmd, no folder (unless its data is to be kept)."""
        self.kill()
        kill_epmd(self._ports["epmd"])
        if not keep_data:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen:
        server = _server()
        self._write_configuration()
        own_group = ({"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if WINDOWS
                     else {"start_new_session": True})
        with open(self.folder / "console.log", "ab") as console:
            process = subprocess.Popen([str(server)], env=self._environment(), cwd=self.folder,
                                       stdin=subprocess.DEVNULL, stdout=console,
                                       stderr=subprocess.STDOUT, **own_group)
        (self.folder / "pid").write_text(str(process.pid), encoding="utf-8")
        return process

    def _write_configuration(self) -> None:
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n", encoding="utf-8")
        (self.folder / "rabbitmq.conf").write_text(
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self.management_port}\n"
            # The default of 512 MiB is meant for a server, not for a laptop with tests on it.
            "raft.wal_max_size_bytes = 67108864\n" + self._configuration, encoding="utf-8")

    def _environment(self) -> "dict[str, str]":
        inherited = {key: value for key, value in os.environ.items()
                     if not key.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))}
        folder = self.folder
        return inherited | {
            "HOME": str(folder),  # where the Erlang cookie goes
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._ports["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": str(folder / "broker.log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "not-there.conf"),
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"
                f" -rabbit quorum_tick_interval {COUNTS_AT_MOST_MS}",
            # Makes the start script become the broker instead of waiting for it as a parent:
            # the process we started is the one we signal and wait for.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _wait_for_exit(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._lives():
            if time.monotonic() > deadline:
                raise NodeError(f"RabbitMQ no terminó en {timeout:g} s:\n{self._tail()}")
            time.sleep(POLL_S)
        self._process = None

    def _signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def _tail(self, lines: int = 15) -> str:
        text = _read(self.folder / "console.log") + self.log()
        return "\n".join(text.splitlines()[-lines:])


def kill_epmd(port: int) -> None:
    """epmd outlives its node; it refuses to die while it still knows a living one."""
    deadline = time.monotonic() + EPMD_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as epmd:
                epmd.sendall(EPMD_KILL_REQUEST)
                if epmd.recv(2) == b"OK":
                    return
        except OSError:
            return  # nobody listens there
        time.sleep(POLL_S)


def free_port(wanted: "int | None" = None) -> int:
    """A TCP port that nobody on 127.0.0.1 has: the wanted one if it is free."""
    candidates = random.sample(PORTS, 100)
    for port in [wanted, *candidates] if wanted else candidates:
        if _is_free(port):
            return port
    raise NodeError("No hay puertos libres en 127.0.0.1.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if not WINDOWS:  # there it would mean the opposite
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def _process_lives(pid_file: Path) -> bool:
    pid = _read(pid_file)
    if WINDOWS or not pid:  # there os.kill(pid, 0) is no question but a Ctrl-C
        return False
    try:
        os.kill(int(pid), 0)
    except OSError:
        return False
    # A container whose process 1 buries no dead keeps the ended node as a zombie.
    return ") Z " not in _read(Path(f"/proc/{pid}/stat"))


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def _server() -> Path:
    server = find_server()
    if server is None:
        raise NodeError("No se encontró rabbitmq-server en este equipo.")
    return server


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


# ---------------------------------------------------------------- the management API


def create_vhost(management_url: str, user: str, password: str, name: str) -> None:
    """Make a virtual host that `user` may do everything in. Raises OSError (urllib's own)."""
    ask_management("PUT", management_url, user, password, f"vhosts/{quote(name, safe='')}")
    ask_management("PUT", management_url, user, password,
                   f"permissions/{quote(name, safe='')}/{quote(user, safe='')}",
                   {"configure": ".*", "write": ".*", "read": ".*"})


def delete_vhost(management_url: str, user: str, password: str, name: str) -> None:
    """Remove a virtual host with all that is in it. Raises OSError (urllib's own)."""
    ask_management("DELETE", management_url, user, password, f"vhosts/{quote(name, safe='')}")


def ask_management(method: str, management_url: str, user: str, password: str, path: str,
                   body: "dict | None" = None):
    """The JSON that the management API answers; None for an empty answer. Raises OSError (urllib's own)."""
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{management_url}/api/{path}", method=method, data=json.dumps(body or {}).encode(),
        headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"})
    # No proxy from the environment: the broker is near, and the password is nobody else's.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None
