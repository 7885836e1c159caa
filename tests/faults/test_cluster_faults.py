"""Nodes of a cluster crash or freeze. The others continue if they are the majority."""

import time
import uuid

import pytest

from common.exchange import CONSUMERS, retry_queue
from tests.conftest import wait_until
from tests.faults.cluster import Cluster, make_leader, observe_from, queues, scene_on
from tests.faults.scene import DRAIN_S, ENDLESS
from tools.node import Node, create_vhost, delete_vhost

LOST, RECONNECTED = "Sin conexión con el broker", "Conectado de nuevo"
SILENCE_S = 12  # longer than the publisher's timeout of 10 s
STALL_S = 10
PARTITION_S = 30
RETRIED = 1500


@pytest.fixture(scope="module")
def cluster(server, tmp_path_factory):
    three = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        three.start()
        yield three
    finally:
        three.close()


@pytest.fixture
def scene(cluster, tmp_path):
    """Return a Scene in its own vhost on three nodes. The test itself uses one of them."""
    vhost = f"fault-{uuid.uuid4().hex[:8]}"
    first = cluster.nodes[0]
    create_vhost(first.management_url, "guest", "guest", vhost)
    own = scene_on(cluster, vhost, tmp_path)
    yield own
    own.kit.close()
    cluster.start()
    assert not any("Falling back" in node.log() for node in cluster.nodes)
    delete_vhost(first.management_url, "guest", "guest", vhost)


def set_up(scene) -> None:
    """Declare all queues. A 3.10 cluster may refuse this for a while after a restart."""
    wait_until(lambda: scene.kit.run("setup_queues.py").returncode == 0, "the queues",
               scene.node.log)


def wait_until_stable(count, seconds: float) -> None:
    """Wait until a count has not grown for `seconds`."""
    seen, since = count(), time.monotonic()

    def is_stable() -> bool:
        nonlocal seen, since
        if count() > seen:
            seen, since = count(), time.monotonic()
        return time.monotonic() - since > seconds
    wait_until(is_stable, "a stable count", lambda: str(count()), DRAIN_S)


def test_scripts_continue_through_the_other_nodes_when_the_leader_is_killed(cluster, scene):
    """On 3.10, a channel that opens before the new leaders are known rejects every publish."""
    victim, other, _ = cluster.nodes
    set_up(scene)
    make_leader(scene, victim, *CONSUMERS.values())
    with cluster.connections_only_on(victim):
        scripts = [*scene.consume(), scene.publish(ENDLESS, "--rate", "200")]
        publisher = scripts[-1]
        publisher.wait_for('"confirmed"', count=100)
    back = [script.text().count(RECONNECTED) for script in scripts]
    observe_from(scene, other)
    victim.kill()
    for script, count in zip(scripts, back):
        script.wait_for(RECONNECTED, count=count + 1)
    publisher.wait_for('"confirmed"', count=len(publisher.out) + 200)
    scene.balance()
    assert not victim.running


def test_a_leader_killed_while_messages_expire_loses_nothing(cluster, scene):
    """On 3.10, some messages may stay in the retry queue until its leader moves.

    See docs/facts.md, broker 3.
    """
    first, victim, third = cluster.nodes
    scene.kit, scene.under_fault = (kit.using(delays="5") for kit in (scene.kit, scene.under_fault))
    set_up(scene)
    waiting = retry_queue("email_queue", 5)
    make_leader(scene, victim, "email_queue", waiting)
    scene.consume()
    assert scene.publish_failing("flaky", RETRIED, "--consumer", "email").end(DRAIN_S) == 0
    wait_until(lambda: scene.done("email"), "the first retry", lambda: str(queues(scene)))
    victim.kill()
    assert len(scene.done("email")) < RETRIED
    wait_until_stable(lambda: len(scene.done("email")), STALL_S)
    if len(scene.done("email")) < RETRIED:
        assert "3.10." in scene.node.ctl("version"), queues(scene)
        [hidden] = [queue for queue in queues(scene) if queue["name"] == waiting]
        assert hidden["messages"] > hidden["messages_ready"] + hidden["messages_unacknowledged"]
        # The remedy of the runbook.
        make_leader(scene, third if hidden["leader"].startswith(first.name) else first, waiting)
        print(f"stalled with {hidden['messages']} messages until the leader moved")
    scene.balance()


def assert_publishing_stops(scene, cluster, break_node) -> None:
    """Check that nothing more is confirmed once two of three nodes are broken."""
    scene.consume()
    publisher = scene.publish(ENDLESS, "--rate", "200", "--timeout", "300")
    publisher.wait_for('"confirmed"', count=200)
    for node in cluster.nodes[1:]:
        break_node(node)
    wait_until_stable(lambda: len(publisher.out), SILENCE_S)
    assert publisher.process.poll() is None


def test_publishing_stops_while_two_of_three_nodes_are_dead_and_then_resumes(cluster, scene):
    assert_publishing_stops(scene, cluster, Node.kill)
    cluster.start()
    scene.balance()


def test_publishing_stops_while_two_of_three_nodes_are_frozen_and_then_resumes(cluster, scene):
    scene.under_fault = scene.kit  # the node that stays alive and leads
    set_up(scene)
    make_leader(scene, scene.node, *[queue["name"] for queue in queues(scene)])
    assert_publishing_stops(scene, cluster, Node.freeze)
    for node in cluster.nodes[1:]:
        node.thaw()
    scene.balance()


def test_a_partition_in_which_both_sides_live_on_loses_nothing(cluster, scene):
    """The leaders are on the side of one node; each script is connected to any of the three."""
    alone, other, _ = cluster.nodes
    set_up(scene)
    make_leader(scene, alone, *CONSUMERS.values())
    scene.consume()
    scene.publish_failing("flaky", 200)
    publisher = scene.publish(ENDLESS, "--rate", "100", "--timeout", "300")
    publisher.wait_for('"confirmed"', count=200)
    with cluster.cut_off(alone):
        observe_from(scene, other)
        during = len(publisher.out)
        time.sleep(PARTITION_S)
        assert len(publisher.out) > during + 200  # the two go on
        assert alone.running
    if "3.10." in other.ctl("version"):  # it does not forget a partition until a restart
        alone.kill()
    cluster.start()
    scene.balance()
