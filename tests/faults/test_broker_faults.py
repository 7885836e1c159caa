"""The broker dies, freezes or goes down in good order."""

import time
from contextlib import contextmanager

from common.exchange import CONSUMERS, retry_queue
from tests.conftest import Running, wait_until
from tests.faults.scene import confirmed

FROZEN_S = 60
LOST, BACK = "Sin conexión con el broker", "Conectado de nuevo"


@contextmanager
def outage(*scripts: Running):
    """What happens within is noticed by each of the scripts: that the broker went, and that it came back."""
    said = [(script, words, script.text().count(words)) for script in scripts for words in (LOST, BACK)]
    yield
    for script, words, times in said:
        script.wait_for(words, count=times + 1)


def test_a_broker_killed_twice_while_events_are_published(scene):
    scene.consume()
    for _ in range(2):
        publisher = scene.publish(2500, "--rate", "300")
        publisher.wait_for('"confirmed"', count=200)
        with outage(publisher, *scene.consumers):
            scene.kill_broker()
            scene.node.start()
    scene.balance()


def test_a_broker_killed_with_full_queues_and_again_while_they_are_worked_off(scene):
    ids = scene.publish_all(3000)
    scene.kill_broker()
    scene.node.start()
    for queue in CONSUMERS.values():
        scene.kit.wait_for_depth(queue, 3000)
    for consumer in scene.consume():
        consumer.wait_for("· evento", count=200)
    with outage(*scene.consumers):
        scene.kill_broker()
        assert any(scene.done(name) < ids for name in CONSUMERS)
        scene.node.start()
    scene.balance()


def test_a_broker_killed_again_and_again_while_retries_expire(scene):
    """Every event goes five times through its consumer's queue of one second."""
    scene.kit.delays = "1,1,1,1,1"
    scene.consume()
    scene.publish_failing("flaky", 600, "--times", "5")
    for attempt in (2, 3, 4):
        for consumer in scene.consumers:
            consumer.wait_for(f"intento {attempt}", count=20)
        wait_until(lambda: any(scene.kit.depth(retry_queue(queue, 1)) for queue in CONSUMERS.values()), "retries")
        with outage(*scene.consumers):
            scene.kill_broker()
            scene.node.start()
    scene.balance()


def test_a_broker_restarted_in_good_order_under_load_with_retries_under_way(scene):
    scene.kit.delays = "1,1,1,1"
    scene.consume()
    for _ in range(2):
        publisher = scene.publish(1000, "--rate", "200")
        flaky = scene.publish_failing("flaky", 200, "--times", "4")
        publisher.wait_for('"confirmed"', count=200)
        with outage(publisher, *scene.consumers):
            scene.node.stop()
            assert all(confirmed(flaky) - scene.done(name) for name in CONSUMERS)
            scene.node.start()
    assert any("el broker se está apagando" in script.text() for script in scene.kit.started)
    scene.balance()


def test_a_broker_frozen_for_a_minute_while_events_are_published(scene):
    scene.consume()
    publisher = scene.publish(6000, "--rate", "300", "--timeout", "300")
    publisher.wait_for('"confirmed"', count=300)
    with outage(publisher, *scene.consumers):
        scene.node.freeze()
        time.sleep(FROZEN_S)  # the fault itself: longer than anybody waits for heartbeats and confirms
        assert all(LOST in script.text() for script in (publisher, *scene.consumers))
        scene.node.thaw()
    scene.balance()
