"""Fixtures of all fault tests: each has its own vhost and ends with an account of its events."""

import logging
import os

import pytest

from tests.faults.proxy import Proxy
from tests.faults.scene import Scene

collect_ignore_glob = ["test_*"] if os.name == "nt" else []  # Windows cannot freeze a process
logging.getLogger("pika").setLevel(logging.CRITICAL)  # the log would hide the test's own messages


@pytest.fixture
def scene(own_kit):
    """Return a Scene in its own vhost, on a node that the test may kill: scene.node."""
    return Scene(own_kit)


@pytest.fixture
def proxy(scene):
    """Put a proxy between the scripts and the node. The test itself bypasses it."""
    between = Proxy(scene.node.port)
    scene.through(between.port)
    yield between
    between.close()
