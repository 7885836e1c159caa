"""A queue or its binding is deleted while its consumer runs."""

import pika
import pytest

from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, EXCHANGE
from tests.conftest import wait_until
from tests.faults.scene import Scene
from tools.node import ask_management


def bound(scene: Scene, queue: str) -> bool:
    vhost = scene.kit.url.rpartition("/")[2]
    return bool(ask_management("GET", scene.node.management_url, "guest", "guest",
                               f"bindings/{vhost}/e/{EXCHANGE}/q/{queue}"))


def test_a_binding_removed_during_consumption_is_restored(scene):
    consumers = scene.consume()
    scene.publish_all(50)
    with scene.kit.channel() as channel:
        for queue in CONSUMERS.values():  # repeat if its consumer binds it at the same time
            wait_until(lambda: channel.queue_unbind(queue, EXCHANGE, routing_key="")
                       and not bound(scene, queue), f"{queue} to be unbound")
    for queue in CONSUMERS.values():
        wait_until(lambda: bound(scene, queue), f"{queue} to be bound again", scene.node.log)
    event = scene.kit.publish_event()  # a level 3 publisher would bind the queues itself
    scene.wait_until_done({event.id})
    scene.balance()
    assert not [consumer for consumer in consumers if "Sin conexión" in consumer.text()]


@pytest.mark.parametrize("message_id", ["an-id", None, b"\xff\xfe"])
def test_a_copy_without_a_queue_is_returned_and_published_again(scene, message_id):
    """The broker returns a message under its id, whatever bytes that has."""
    email, *_ = scene.consume()
    scene.kit.publish(b"opens the channel", queue="email_queue")
    scene.kit.wait_for_depth(DEAD_LETTER_QUEUE, 1)
    with scene.kit.channel() as channel:
        channel.queue_delete(DEAD_LETTER_QUEUE)
    scene.kit.publish(b"no event", queue="email_queue",
                      properties=pika.BasicProperties(message_id=message_id))
    email.wait_for("→ dead_letter_queue", count=2)
    assert [body for _, body in scene.kit.messages(DEAD_LETTER_QUEUE)] == [b"no event"]
