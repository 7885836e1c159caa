"""Resource alarms: a broker low on disk, as on memory, blocks all publishers."""

import time
from contextlib import contextmanager

from common.confirms import CONFIRM_TIMEOUT_S
from common.exchange import CONSUMERS
from tests.conftest import STOP_S, wait_until
from tests.faults.account import totals
from tests.faults.scene import ENDLESS, confirmed

FAILING = 20
LOST = "Sin conexión con el broker"


@contextmanager
def alarm(node):
    node.ctl("set_disk_free_limit", "100000GB")
    try:
        yield
    finally:
        node.ctl("set_disk_free_limit", "50MB")


def test_publishing_waits_out_an_alarm_while_acks_continue(scene, proxy):
    """A failed event holds up its own consumer: its copy is published like any other message."""
    assert scene.publish_failing("flaky", FAILING, "--consumer", "loyalty").end() == 0
    # A slow event is a batch of its own: those that failed before it come to an end first.
    assert scene.publish_failing("slow", 1, "--seconds", "0.1").end() == 0
    publisher = scene.publish(ENDLESS, "--rate", "100", "--timeout", "600")
    publisher.wait_for('"confirmed"', count=100)
    with alarm(scene.node):
        publisher.wait_for("alarma de memoria o de disco")
        _, loyalty, _ = scene.consume()
        loyalty.wait_for("alarma de memoria o de disco")
        wait_until(lambda: not any(totals(scene.kit)[queue] for name, queue in CONSUMERS.items()
                                   if name != "loyalty"),
                   "acks of all events of the other consumers", lambda: str(totals(scene.kit)))
        confirmed_before, connections = confirmed(publisher), proxy.accepted
        scene.consumers.remove(loyalty)
        assert loyalty.interrupt(timeout=STOP_S) == 0
        # What has failed comes back to the queue: its copies could not be sent.
        left = scene.done("email") - scene.done("loyalty")
        assert len(left) > FAILING
        scene.kit.wait_for_depth("loyalty_queue", len(left))
        time.sleep(CONFIRM_TIMEOUT_S + 2)  # nothing may happen in this time
        assert confirmed(publisher) == confirmed_before and proxy.accepted == connections
    for script in (publisher, *scene.consumers):
        assert LOST not in script.text()
    publisher.wait_for("admite mensajes otra vez")
    publisher.wait_for('"confirmed"', count=len(confirmed_before) + 100)
    scene.consume("loyalty")
    scene.balance()
