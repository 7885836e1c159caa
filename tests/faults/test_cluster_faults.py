"""Nodes of a cluster die or freeze; the others go on, or wait until most are back."""

import time
import uuid

import pytest

from common.exchange import CONSUMERS, retry_queue
from tests.conftest import wait_until
from tests.faults.cluster import Cluster, lead, look_from, queues, scene_on
from tests.faults.scene import DRAIN_S
from tools.node import Node, create_vhost, delete_vhost

LOST, BACK = "Sin conexión con el broker", "Conectado de nuevo"
SILENCE_S = 12  # more than the publisher's timer of 10 s
STALL_S = 10
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
    """The kit in a vhost of its own on three nodes: scripts know all, the test looks from one of them."""
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
    """Declare all queues; on 3.10 a cluster whose nodes have just returned may refuse at first."""
    wait_until(lambda: scene.kit.run("setup_queues.py").returncode == 0, "the queues", scene.node.log)


def still(count, seconds: float) -> None:
    """Wait until a count has not grown for so long."""
    seen, since = count(), time.monotonic()

    def long_enough() -> bool:
        nonlocal seen, since
        if count() > seen:
            seen, since = count(), time.monotonic()
        return time.monotonic() - since > seconds
    wait_until(long_enough, "stillness", lambda: str(count()), DRAIN_S)


def test_scripts_on_a_leader_that_is_killed_go_on_through_the_other_nodes_while_it_stays_dead(cluster, scene):
    """On 3.10 a channel that opens before the new leaders are known refuses everything for as long as it lives."""
    victim, other, _ = cluster.nodes
    set_up(scene)
    lead(scene, victim, *CONSUMERS.values())
    with cluster.only_on(victim):
        scripts = [*scene.consume(), scene.publish(4000, "--rate", "200")]
        publisher = scripts[-1]
        publisher.wait_for('"confirmed"', count=100)
    back = [script.text().count(BACK) for script in scripts]
    look_from(scene, other)
    victim.kill()
    for script, count in zip(scripts, back):
        script.wait_for(BACK, count=count + 1)
    publisher.wait_for('"confirmed"', count=len(publisher.out) + 200)
    scene.balance()
    assert not victim.running


def test_the_leader_of_a_main_and_a_retry_queue_is_killed_while_messages_expire(cluster, scene):
    """On 3.10 some may hang between the two queues until somebody moves the retry queue's leader (docs/facts.md, broker 3)."""
    first, victim, third = cluster.nodes
    scene.kit, scene.under_fault = (kit.using(delays="5") for kit in (scene.kit, scene.under_fault))
    set_up(scene)
    waiting = retry_queue("email_queue", 5)
    lead(scene, victim, "email_queue", waiting)
    scene.consume()
    assert scene.publish_failing("flaky", RETRIED, "--consumer", "email").end(DRAIN_S) == 0
    wait_until(lambda: scene.done("email"), "the first retry", lambda: str(queues(scene)))
    victim.kill()
    assert len(scene.done("email")) < RETRIED
    still(lambda: len(scene.done("email")), STALL_S)
    if len(scene.done("email")) < RETRIED:
        assert "3.10." in scene.node.ctl("version"), queues(scene)
        [hidden] = [queue for queue in queues(scene) if queue["name"] == waiting]
        assert hidden["messages"] > hidden["messages_ready"] + hidden["messages_unacknowledged"]
        lead(scene, third if hidden["leader"].startswith(first.name) else first, waiting)  # the runbook
        print(f"stalled with {hidden['messages']}, and moved on")
    scene.balance()


def publishing_stops(scene, cluster, harm) -> None:
    """Publish and consume; once two of three nodes are harmed, nothing more is confirmed."""
    scene.consume()
    publisher = scene.publish(4000, "--rate", "200", "--timeout", "300")
    publisher.wait_for('"confirmed"', count=200)
    for node in cluster.nodes[1:]:
        harm(node)
    still(lambda: len(publisher.out), SILENCE_S)
    assert publisher.process.poll() is None and len(publisher.out) < 4000


def test_publishing_stops_when_two_of_three_nodes_are_dead_and_goes_on_when_they_are_back(cluster, scene):
    publishing_stops(scene, cluster, Node.kill)
    cluster.start()
    scene.balance()


def test_publishing_stops_while_two_of_three_nodes_are_frozen_and_goes_on_when_they_thaw(cluster, scene):
    scene.under_fault = scene.kit  # the one node that lives, and leads
    set_up(scene)
    lead(scene, scene.node, *[queue["name"] for queue in queues(scene)])
    publishing_stops(scene, cluster, Node.freeze)
    for node in cluster.nodes[1:]:
        node.thaw()
    scene.balance()
