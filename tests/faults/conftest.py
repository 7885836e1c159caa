"""What every fault has in common: a vhost of its own, scripts under the fault, one account at the end.

One node serves all faults of a run: they kill it, freeze it, start it again, one after the other.
"""

import logging
import os
import uuid

import pytest

from tests.conftest import Kit
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene
from tools.node import Node, create_vhost, delete_vhost


collect_ignore_glob = ["test_*"] if os.name == "nt" else []  # Windows can freeze no process
logging.getLogger("pika").setLevel(logging.CRITICAL)  # a failing test shows its own story


@pytest.fixture(scope="session")
def fault_node(server, tmp_path_factory):
    with Node(tmp_path_factory.mktemp("fault-node")) as node:
        yield node


@pytest.fixture
def scene(fault_node, tmp_path):
    """The kit in a vhost of its own, on a node that may be killed: scene.node."""
    fault_node.start()
    vhost = f"fault-{uuid.uuid4().hex[:8]}"
    create_vhost(fault_node.management_url, "guest", "guest", vhost)
    own = Scene(Kit(fault_node.url.replace("%2F", vhost), tmp_path / "state", node=fault_node))
    yield own
    own.kit.close()
    if fault_node.running:  # one that has just started is not ready for it
        delete_vhost(fault_node.management_url, "guest", "guest", vhost)


@pytest.fixture
def proxy(scene):
    """Stands between the scene's scripts and the node; the test itself looks past it."""
    between = Proxy(scene.node.port)
    scene.through(between.port)
    yield between
    between.close()
