"""The broker crashes, freezes or shuts down cleanly."""

import time
from contextlib import contextmanager

from common.exchange import CONSUMERS, retry_queue
from tests.conftest import Running, wait_until
from tests.faults.scene import ENDLESS, confirmed

FROZEN_S = 60
LOST, RECONNECTED = "Sin conexión con el broker", "Conectado de nuevo"


@contextmanager
def outage(*scripts: Running):
    """Wait at the end until each script has reported the lost and the new connection."""
    counts = [(script, words, script.text().count(words)) for script in scripts
              for words in (LOST, RECONNECTED)]
    yield
    for script, words, times in counts:
        script.wait_for(words, count=times + 1)


def test_a_broker_killed_twice_during_publishing_loses_nothing(scene):
    scene.consume()
    for _ in range(2):
        publisher = scene.publish(ENDLESS, "--rate", "300")
        publisher.wait_for('"confirmed"', count=200)
        with outage(publisher, *scene.consumers):
            scene.kill_broker()
            scene.node.start()
        scene.end_endless()
    scene.balance()


def test_a_broker_killed_with_full_queues_and_during_consumption_loses_nothing(scene):
    scene.publish_all(1500)
    assert scene.publish_failing("slow", 1, "--seconds", "10").end() == 0
    behind = scene.publish_all(1500)
    scene.kill_broker()
    scene.node.start()
    for queue in CONSUMERS.values():
        scene.kit.wait_for_depth(queue, 3001)
    for consumer in scene.consume():
        consumer.wait_for("· id", count=200)
    with outage(*scene.consumers):
        scene.kill_broker()
        assert any(behind - scene.done(name) for name in CONSUMERS)
        scene.node.start()
    scene.balance()


def test_a_broker_killed_repeatedly_while_retries_expire_loses_nothing(scene):
    """Every event passes five times through the retry queue of its consumer."""
    scene.kit.delays = "1,1,1,1,1"
    scene.consume()
    for _ in range(3):  # new ones each time: after a restart the old ones may come 180 s late
        assert scene.publish_failing("flaky", 200, "--times", "5").end() == 0
        wait_until(lambda: any(scene.kit.depth(retry_queue(queue, 1))
                               for queue in CONSUMERS.values()), "retries")
        with outage(*scene.consumers):
            scene.kill_broker()
            scene.node.start()
    scene.balance()


def test_a_clean_broker_restart_under_load_loses_nothing(scene):
    scene.kit.delays = "12,1,1,1"  # the first passes while the broker restarts
    scene.consume()
    for _ in range(2):
        publisher = scene.publish(ENDLESS, "--rate", "100")
        flaky = scene.publish_failing("flaky", 200, "--times", "4")
        assert flaky.end() == 0
        publisher.wait_for('"confirmed"', count=200)
        with outage(publisher, *scene.consumers):
            scene.node.stop()
            assert all(confirmed(flaky) - scene.done(name) for name in CONSUMERS)
            scene.node.start()
    assert any("el broker se está apagando" in script.text() for script in scene.kit.started)
    scene.balance()


def test_a_broker_frozen_for_a_minute_during_publishing_loses_nothing(scene):
    scene.consume()
    publisher = scene.publish(6000, "--rate", "300", "--timeout", "300")
    publisher.wait_for('"confirmed"', count=300)
    with outage(publisher, *scene.consumers):
        scene.node.freeze()
        # The fault itself: longer than all timeouts of heartbeats and confirms.
        time.sleep(FROZEN_S)
        assert all(LOST in script.text() for script in (publisher, *scene.consumers))
        scene.node.thaw()
    scene.balance()
