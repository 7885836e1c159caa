"""Three private nodes in one cluster: every quorum queue has a copy on each."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import wait_until
from tests.faults.scene import Scene
from tools.node import Node, free_port

COOKIE = "three-nodes-of-one-test"


class Cluster:
    def __init__(self, folder: Path):
        ports, epmd_port = [free_port() for _ in range(3)], free_port()
        configuration = "cluster_formation.peer_discovery_backend = classic_config\n" + "".join(
            f"cluster_formation.classic_config.nodes.{number} = kit-{port}@localhost\n"
            for number, port in enumerate(ports, 1))
        self.nodes = [Node(folder / str(port), port, epmd_port=epmd_port, configuration=configuration)
                      for port in ports]
        for node in self.nodes:
            cookie = node.folder / ".erlang.cookie"
            cookie.write_text(COOKIE)
            cookie.chmod(0o400)

    def start(self) -> None:
        """Start those that do not run, all at once since a new node waits for the others."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.start, self.nodes))
        for node in self.nodes:
            node.ctl("await_online_nodes", "3")

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        for node in self.nodes:
            node.close()
