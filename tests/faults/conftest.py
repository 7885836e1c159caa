"""Fixtures of all fault tests: each test has its own vhost and ends with an account of its events.

One node serves all fault tests of a run. They kill, freeze and restart it one after the other.
"""

import logging
import os
import uuid

import pytest

from tests.conftest import Kit
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene
from tools.node import Node, create_vhost, delete_vhost

collect_ignore_glob = ["test_*"] if os.name == "nt" else []  # Windows cannot freeze a process
logging.getLogger("pika").setLevel(logging.CRITICAL)  # the log would hide the test's own messages


@pytest.fixture(scope="session")
def fault_node(server, tmp_path_factory):
    with Node(tmp_path_factory.mktemp("fault-node")) as node:
        yield node


@pytest.fixture
def scene(fault_node, tmp_path):
    """Return a Scene in its own vhost, on a node that the test may kill: scene.node."""
    fault_node.start()
    vhost = f"fault-{uuid.uuid4().hex[:8]}"
    create_vhost(fault_node.management_url, "guest", "guest", vhost)
    own = Scene(Kit(fault_node.url.replace("%2F", vhost), tmp_path / "state", node=fault_node))
    yield own
    own.kit.close()
    if fault_node.running:  # a node that has just started is not ready for this
        delete_vhost(fault_node.management_url, "guest", "guest", vhost)


@pytest.fixture
def proxy(scene):
    """Put a proxy between the scripts and the node. The test itself bypasses it."""
    between = Proxy(scene.node.port)
    scene.through(between.port)
    yield between
    between.close()
