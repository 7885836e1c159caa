"""The publisher dies in the middle of a batch; what it had written down is sent by --resume, under the same ids."""

import signal

from common.exchange import CONSUMERS
from common.outbox import Outbox
from tests.faults.scene import USER, confirmed


def left_by(scene) -> set[str]:
    outbox = Outbox(scene.kit.state)
    ids = {event.id for event in outbox.left()}
    outbox.close()
    return ids


def test_a_publisher_killed_in_the_middle_of_a_batch(scene, proxy):
    scene.consume()
    written = set()
    for _ in range(3):
        publisher = scene.publish(100_000)
        publisher.wait_for('"confirmed"', count=1000)
        proxy.held.add("down")  # so that it dies with events that the broker has and it does not know of
        publisher.process.send_signal(signal.SIGKILL)
        assert publisher.end() == -signal.SIGKILL
        proxy.reset()
        proxy.held.clear()
        left = left_by(scene)
        assert left and not left <= written  # this one has left something too
        written |= confirmed(publisher) | left
    resumed = scene.resume()
    assert resumed.end() == 0
    assert left_by(scene) == set()
    assert len(confirmed(resumed)) >= len(left)
    drawn = scene.balance()
    assert drawn.confirmed == written
    assert all(done == written for done in drawn.effects.values())


def test_a_publisher_killed_between_two_events_of_a_batch_had_written_down_whatever_it_sent(scene):
    scene.kit.done("setup_queues.py")
    publisher = scene.start_with_failpoint("in_mid_batch", "events_publisher_levels.py", "--level", "3", *USER,
                                           "--count", "3000", "--json")
    assert publisher.end() == -signal.SIGKILL
    written = confirmed(publisher) | left_by(scene)
    assert len(written) == 1600
    assert scene.resume().end() == 0
    for queue in CONSUMERS.values():
        assert {properties.message_id for properties, _ in scene.kit.messages(queue)} == written
