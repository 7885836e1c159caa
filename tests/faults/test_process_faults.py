"""A consumer dies at critical points, is very slow, or is stopped repeatedly."""

import os
import random
import signal

import pytest

from common.events import encode, now, user_created
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE
from common.publishing import properties
from common.retry import failed_copy
from tests.conftest import wait_until
from tests.faults import account
from tests.faults.scene import ENDLESS, SCRIPTS, confirmed

STOPS = 12
STOPS_OF_A_KIND = int(os.environ.get("KIT_STOPS", 8))  # 100 by hand
DEAD_LETTERS, REPLAYS = "dead_letter_consumer.py", 8
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


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_consumer_stopped_in_any_way_again_and_again_under_load_loses_nothing(scene, kind):
    """SIGHUP is what a closed terminal sends."""
    number = getattr(signal, kind)
    scene.consume("email", "analytics")
    scene.publish(ENDLESS, "--rate", "100")
    for _ in range(STOPS_OF_A_KIND):
        before = account.count_done(scene.kit, "loyalty")
        consumer = scene.under_fault.start(SCRIPTS["loyalty"])
        wait_until(lambda: account.count_done(scene.kit, "loyalty") > before, "more effects",
                   consumer.text)
        consumer.process.send_signal(number)
        assert consumer.end() == (0 if kind in ("SIGINT", "SIGTERM") else -number), consumer.text()
    print(f"{kind}: delivered at most {max_returns(scene.kit, CONSUMERS['loyalty'])} times before")
    scene.end_endless()
    scene.consume("loyalty")
    scene.balance()


def test_three_processes_go_on_while_the_handler_of_a_fourth_is_slow(scene):
    scene.consume()
    scene.consume("loyalty", "loyalty", "loyalty")
    slow = scene.publish_failing("slow", 1, "--consumer", "loyalty", "--seconds", "25")
    assert slow.end() == 0
    scene.kit.wait_for_depth(CONSUMERS["loyalty"], 0)
    scene.publish_all(200)  # the slow process is given a part of them, and holds it
    wait_until(lambda: account.count_done(scene.kit, "loyalty") >= 100, "half of them")
    assert not confirmed(slow) & scene.done("loyalty")
    scene.balance()


def max_returns(kit, queue: str) -> int:
    """Return the highest delivery count among the first messages of a queue."""
    with kit.channel() as channel:
        found = [channel.basic_get(queue)[1] for _ in range(60)]
    return max((properties.headers.get(name, 0) for properties in found
                if properties and properties.headers
                for name in ("x-delivery-count", "x-acquired-count")), default=0)


def test_a_replay_of_thousands_killed_at_any_moment_loses_and_doubles_nothing(scene):
    ids = bury(scene, 3000)
    view = scene.kit.start(DEAD_LETTERS, "--json")
    view.wait_for('"id"')
    for number in range(REPLAYS):
        wanted = random.randrange(1, 200)
        replay = scene.kit.start(DEAD_LETTERS, "--replay", "--rate", "400", "--json")
        wait_until(lambda: replay.process.poll() is not None or sum(
            '"replayed"' in line for line in replay.out) >= wanted, "replays", replay.text)
        if replay.process.poll() is not None:  # it was quick: none are left
            assert number and replay.end() == 0
            break
        replay.process.kill()
    view.process.kill()
    assert scene.kit.depth(CONSUMERS["loyalty"]) > 0
    scene.kit.run_ok(DEAD_LETTERS, "--replay")
    scene.kit.wait_for_depth(DEAD_LETTER_QUEUE, 0)
    scene.consume("loyalty")
    scene.wait_until_done(ids, "loyalty")
    scene.kit.wait_for_depth(CONSUMERS["loyalty"], 0)
    assert account.effects(scene.kit, "loyalty") == ids


def bury(scene, count: int) -> set[str]:
    """Publish dead letters of the loyalty consumer; their ids."""
    scene.kit.run_ok("setup_queues.py")
    made = [user_created("Juan", "juan@eco.com") for _ in range(count)]
    with scene.kit.channel() as channel:
        channel.confirm_delivery()
        for one in made:
            queue, copied = failed_copy(properties(one, 2), ValueError("x"), None, failed_at=now(),
                                        consumer="loyalty", source_queue=CONSUMERS["loyalty"])
            channel.basic_publish("", queue, encode(one), copied)
    return {one.id for one in made}
