"""The publisher dies in the middle of a batch, and --resume sends the rest under the same ids."""

import signal

from common.confirms import WINDOW
from common.exchange import CONSUMERS
from common.outbox import Outbox
from tests.faults.scene import USER, confirmed


def outbox_ids(scene) -> set[str]:
    return {event.id for event in Outbox(scene.kit.state).left()}


def test_resume_sends_the_events_of_a_publisher_killed_in_mid_batch(scene, proxy):
    scene.consume()
    written = set()
    for _ in range(3):
        publisher = scene.publish(100_000)
        publisher.wait_for('"confirmed"', count=1000)
        # The publisher dies without the confirms of events that the broker has.
        proxy.held.add("down")
        publisher.process.send_signal(signal.SIGKILL)
        assert publisher.end() == -signal.SIGKILL
        proxy.reset()
        proxy.held.clear()
        left = outbox_ids(scene)
        assert left and not left <= written  # this publisher has left events too
        written |= confirmed(publisher) | left
    resumed = scene.resume()
    assert resumed.end() == 0
    assert outbox_ids(scene) == set()
    assert len(confirmed(resumed)) >= len(left)
    final = scene.balance()
    assert final.confirmed == written
    assert all(done == written for done in final.effects.values())


def test_a_publisher_writes_events_to_its_outbox_before_it_sends_them(scene):
    scene.kit.run_ok("setup_queues.py")
    publisher = scene.start_with_failpoint("before_write", "events_publisher_levels.py",
                                           "--level", "3", *USER, "--count", "3000", "--json")
    assert publisher.end() == -signal.SIGKILL
    written = confirmed(publisher) | outbox_ids(scene)
    first, *others = CONSUMERS.values()
    assert confirmed(publisher) <= queued_ids(scene, first) <= written
    assert confirmed(publisher) and len(written) > WINDOW
    assert scene.resume().end() == 0
    for queue in others:
        assert queued_ids(scene, queue) == written


def queued_ids(scene, queue: str) -> set[str]:
    return {properties.message_id for properties, _ in scene.kit.messages(queue)}
