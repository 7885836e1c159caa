"""A consumer dies at the worst moments, takes very long, or is stopped again and again."""

import signal
import time

import pytest

from common.connection import HEARTBEAT_S
from common.exchange import CONSUMERS
from tests.faults.scene import SCRIPTS

STOPS = 12
REPEATED = "repetido, ya estaba hecho"


@pytest.mark.parametrize("point", ["before_effect", "before_commit"])
def test_consumers_killed_before_their_effect_is_committed_do_it_afterwards(scene, point):
    ids = scene.publish_all(400)
    killed_at(scene, point)
    assert all(scene.done(name) < ids for name in CONSUMERS)
    scene.consume()
    scene.balance()


def test_consumers_killed_between_commit_and_ack_meet_the_event_again_and_leave_it_at_one_effect(scene):
    scene.publish_all(400)
    killed_at(scene, "after_commit")
    done_before = {name: scene.done(name) for name in CONSUMERS}
    for name, consumer in zip(CONSUMERS, scene.consume()):
        consumer.wait_for(REPEATED, count=len(done_before[name]))
    assert all(done_before.values())
    scene.balance()


def test_consumers_killed_between_a_retry_copy_s_confirm_and_the_ack_retry_twice_and_do_it_once(scene):
    assert scene.publish_failing("flaky", 50).end() == 0
    killed_at(scene, "after_copy")
    for consumer in scene.consume():
        consumer.wait_for(REPEATED)
    scene.balance()


def killed_at(scene, point: str) -> None:
    """All three consumers die, by their own hand, at the point."""
    for consumer in [scene.start_with_failpoint(point, SCRIPTS[name]) for name in CONSUMERS]:
        assert consumer.end() == -signal.SIGKILL, consumer.text()[-2000:]


def test_a_handler_slower_than_three_heartbeats_keeps_its_connection_and_what_came_meanwhile_is_done(scene):
    consumers = scene.consume()
    started_at = time.monotonic()
    assert scene.publish_failing("slow", 1, "--seconds", str(3 * HEARTBEAT_S + 2)).end() == 0
    for queue in CONSUMERS.values():
        scene.kit.wait_for_depth(queue, 0)
    meanwhile = scene.publish_all(100)
    assert not any(scene.done(name) for name in CONSUMERS)
    scene.wait_until_done(meanwhile)
    assert time.monotonic() - started_at > 3 * HEARTBEAT_S
    for consumer in consumers:
        assert "Sin conexión" not in consumer.text() and REPEATED not in consumer.text()
    scene.balance()


def test_twelve_graceful_stops_under_load_lose_nothing_and_use_up_no_delivery_limit(scene):
    """With slow events at the head of each queue every stop hands back the same ones."""
    assert scene.publish_failing("slow", 40, "--seconds", "0.25").end() == 0
    scene.publish(1500, "--rate", "100")
    for stop in range(STOPS):
        consumers = [scene.under_fault.start(script) for script in SCRIPTS.values()]
        for consumer in consumers:
            consumer.wait_for("escucha")
            consumer.process.send_signal(signal.SIGINT if stop % 2 else signal.SIGTERM)
        for consumer in consumers:
            assert consumer.end() == 0, consumer.text()[-2000:]
        scene.consumers += consumers
    assert max(most_returns(scene.kit, queue) for queue in CONSUMERS.values()) >= STOPS
    scene.consume()
    scene.balance()
    assert not any(REPEATED in consumer.text() for consumer in scene.consumers)


def most_returns(kit, queue: str) -> int:
    """How often the one of a queue's first messages came back that came back most often."""
    with kit.channel() as channel:
        headers = [channel.basic_get(queue)[1].headers or {} for _ in range(60)]
    return max(found.get(name, 0) for found in headers for name in ("x-delivery-count", "x-acquired-count"))
