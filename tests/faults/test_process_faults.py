"""A consumer dies at critical points, is very slow, or is stopped repeatedly."""

import signal

import pytest

from common.exchange import CONSUMERS
from tests.faults.scene import SCRIPTS

STOPS = 12
DUPLICATE = "duplicado, ya procesado"


@pytest.mark.parametrize("point", ["before_effect", "before_commit"])
def test_consumers_killed_before_the_commit_apply_the_effect_after_a_restart(scene, point):
    ids = scene.publish_all(400)
    kill_all_at(scene, point)
    assert all(scene.done(name) < ids for name in CONSUMERS)
    scene.consume()
    scene.balance()


def test_consumers_killed_between_commit_and_ack_apply_the_effect_once(scene):
    scene.publish_all(400)
    kill_all_at(scene, "after_commit")
    done_before = {name: scene.done(name) for name in CONSUMERS}
    for name, consumer in zip(CONSUMERS, scene.consume()):
        consumer.wait_for(DUPLICATE, count=len(done_before[name]))
    assert all(done_before.values())
    scene.balance()


def test_consumers_killed_before_they_send_a_retry_copy_lose_no_event(scene):
    """Failed and done events alternate: the ack of one must not cover the other."""
    scene.kit.run_ok("setup_queues.py")
    fails_once = {"x-simulate": {"consumer": "all", "mode": "flaky", "number": 1}}
    ids = {scene.kit.publish_event(headers=headers).id for headers in [fails_once, None] * 40}
    kill_all_at(scene, "before_copy")
    scene.consume()
    scene.wait_until_done(ids)
    scene.balance()


def test_consumers_killed_between_retry_confirm_and_ack_apply_the_effect_once(scene):
    assert scene.publish_failing("flaky", 50).end() == 0
    kill_all_at(scene, "after_copy")
    for consumer in scene.consume():
        consumer.wait_for(DUPLICATE)
    scene.balance()


def kill_all_at(scene, point: str) -> None:
    """Run all three consumers until each kills itself at the failpoint."""
    for consumer in [scene.start_with_failpoint(point, SCRIPTS[name]) for name in CONSUMERS]:
        assert consumer.end() == -signal.SIGKILL, consumer.text()[-2000:]


def test_twelve_clean_shutdowns_under_load_lose_nothing_and_reach_no_limit(scene):
    """Slow events at the head of each queue: every shutdown requeues the same ones."""
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
    assert max(max_returns(scene.kit, queue) for queue in CONSUMERS.values()) >= STOPS
    scene.consume()
    scene.balance()
    assert not any(DUPLICATE in consumer.text() for consumer in scene.consumers)


def max_returns(kit, queue: str) -> int:
    """Return the highest delivery count among the first messages of a queue."""
    with kit.channel() as channel:
        headers = [channel.basic_get(queue)[1].headers or {} for _ in range(60)]
    return max(found.get(name, 0) for found in headers
               for name in ("x-delivery-count", "x-acquired-count"))
