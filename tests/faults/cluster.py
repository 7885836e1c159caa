"""Three private nodes in one cluster. Every quorum queue has a replica on each node."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pika

from tests.conftest import Kit, wait_until
from tests.faults.scene import Scene
from tools.node import Node, ask_management, free_port

COOKIE = "three-nodes-of-one-test"
TRANSFER_LEADERSHIP = (
    "[begin {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{vhost}\">>, queue, Name)),"
    " rabbit_quorum_queue:transfer_leadership(Queue, '{node}@localhost') end"
    " || Name <- [{names}]].")


class Cluster:
    def __init__(self, folder: Path):
        epmd_port, *ports = (free_port() for _ in range(4))
        configuration = "cluster_formation.peer_discovery_backend = classic_config\n" + "".join(
            f"cluster_formation.classic_config.nodes.{number} = kit-{port}@localhost\n"
            for number, port in enumerate(ports, 1))
        self.nodes = [Node(folder / str(port), port, epmd_port=epmd_port,
                           configuration=configuration)
                      for port in ports]
        for node in self.nodes:
            cookie = node.folder / ".erlang.cookie"
            cookie.write_text(COOKIE)
            cookie.chmod(0o400)

    def start(self) -> None:
        """Start the stopped nodes in parallel, since a new node waits for the others."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.start, self.nodes))
        for node in self.nodes:
            node.ctl("await_online_nodes", "3")

    @contextmanager
    def connections_only_on(self, node: Node):
        """Make the other nodes refuse new connections within the context."""
        on_the_others = ("[rpc:call(Other, rabbit_maintenance, {}_all_client_listeners, [])"
                         " || Other <- nodes()].")
        node.ctl("eval", on_the_others.format("suspend"))
        try:
            yield
        finally:
            node.ctl("eval", on_the_others.format("resume"))

    @contextmanager
    def cut_off(self, node: Node):
        """Keep the others from this node within the context: it knows a wrong cookie of each."""
        others = ", ".join(f"'{other.name}@localhost'" for other in self.nodes if other is not node)
        cookie = "[erlang:set_cookie(Other, '{}') || Other <- [{}]]."
        node.ctl("eval", cookie.format("wrong", others))
        node.ctl("eval", f"[erlang:disconnect_node(Other) || Other <- [{others}]].")
        assert node.ctl("eval", "nodes().").strip() == "[]"
        try:
            yield
        finally:
            node.ctl("eval", cookie.format(COOKIE, others))
            node.ctl("eval", f"[net_adm:ping(Other) || Other <- [{others}]].")

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        for node in self.nodes:
            node.close()


def scene_on(cluster: Cluster, vhost: str, folder: Path) -> Scene:
    """Return a Scene whose scripts know all nodes. The test itself uses the first node."""
    first = cluster.nodes[0]
    urls = [node.url.replace("%2F", vhost) for node in cluster.nodes]
    for url in urls:
        wait_until(lambda: accepts_connections(url), f"{vhost} to be open on all nodes")
    scene = Scene(Kit(urls[0], folder / "state", node=first))
    scene.under_fault = scene.kit.using(url=",".join(urls))
    return scene


def accepts_connections(url: str) -> bool:
    try:
        pika.BlockingConnection(pika.URLParameters(url)).close()
    except pika.exceptions.AMQPConnectionError:
        return False
    return True


def vhost_of(scene: Scene) -> str:
    return scene.kit.url.rpartition("/")[2]


def observe_from(scene: Scene, node: Node) -> None:
    scene.node = node
    scene.kit = scene.kit.using(url=node.url.replace("%2F", vhost_of(scene)), node=node)


def queues(scene: Scene) -> list[dict]:
    """Return the name, leader and message counts of each queue."""
    return ask_management("GET", scene.node.management_url, "guest", "guest",
                          f"queues/{vhost_of(scene)}?disable_stats=true&enable_queue_totals=true")


def make_leader(scene: Scene, node: Node, *names: str) -> None:
    """Move the leaders of these queues to the node."""
    def move() -> bool:
        binaries = ", ".join(f'<<"{name}">>' for name in names)
        scene.node.ctl("eval", TRANSFER_LEADERSHIP.format(vhost=vhost_of(scene), node=node.name,
                                                          names=binaries))
        leaders = {queue["name"]: queue["leader"] for queue in queues(scene)}
        return all(leaders[name] == f"{node.name}@localhost" for name in names)
    wait_until(move, f"{node.name} to lead {names}", lambda: str(queues(scene)), timeout=120)
