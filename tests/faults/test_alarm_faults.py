"""Resource alarms: a broker low on memory or disk blocks all publishers."""

import time
from contextlib import contextmanager

import pytest

from common.exchange import CONSUMERS
from common.publishing import CONFIRM_TIMEOUT_S
from tests.conftest import wait_until
from tests.faults.account import totals
from tests.faults.scene import confirmed

STOP_S = 10  # the README promises about three seconds; the machine is busy
FAILING = 20


@contextmanager
def alarm(node, setting: str, alarming: str, normal: str):
    node.ctl(setting, alarming)
    try:
        yield
    finally:
        node.ctl(setting, normal)


@pytest.mark.parametrize("setting", [("set_vm_memory_high_watermark", "0.0001", "0.6"),
                                     ("set_disk_free_limit", "100000GB", "50MB")],
                         ids=["memory", "disk"])
def test_publishing_waits_out_an_alarm_while_acks_continue(scene, proxy, setting):
    assert scene.publish_failing("flaky", FAILING).end() == 0
    publisher = scene.publish(1000, "--rate", "100", "--timeout", "600")
    publisher.wait_for('"confirmed"', count=100)
    with alarm(scene.node, *setting):
        publisher.wait_for("alarma de memoria o de disco")
        consumers = scene.consume()
        for consumer in consumers:
            consumer.wait_for("alarma de memoria o de disco")
        wait_until(lambda: all(totals(scene.kit)[queue] == FAILING for queue in CONSUMERS.values()),
                   "acks of all events that need no retry copy", lambda: str(totals(scene.kit)))
        confirmed_before, connections = confirmed(publisher), proxy.accepted
        loyalty = scene.consumers.pop(list(CONSUMERS).index("loyalty"))
        assert loyalty.interrupt(timeout=STOP_S) == 0
        # The events come back to the queue: their copies could not be sent.
        scene.kit.wait_for_depth("loyalty_queue", FAILING)
        time.sleep(CONFIRM_TIMEOUT_S + 2)  # nothing may happen in this time
        assert confirmed(publisher) == confirmed_before and proxy.accepted == connections
    for script in (publisher, *scene.consumers):
        script.wait_for("admite mensajes otra vez")
    scene.consume("loyalty")
    scene.balance()
