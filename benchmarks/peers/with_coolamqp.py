"""CoolAMQP: publish gives a future for each confirm; it has no `mandatory` and no multiple acks.

Its consumer declares the queue each time, so it needs the queue's arguments.

https://coolamqp.readthedocs.io/en/latest/tutorials/
"""

import time
from collections import deque
from urllib.parse import unquote, urlsplit

import work
from coolamqp.clustering import Cluster
from coolamqp.clustering.events import MessageReceived
from coolamqp.objects import Message, MessageProperties, NodeDefinition, Queue


def connect(url):
    """The cluster, and the seconds of its start, mostly a sleep: they are not counted."""
    parts, started = urlsplit(url), time.perf_counter()
    cluster = Cluster(NodeDefinition(
        host=parts.hostname, port=parts.port, user=unquote(parts.username),
        password=unquote(parts.password), virtual_host=unquote(parts.path[1:])))
    cluster.start()
    return cluster, time.perf_counter() - started


def publish(url, outbox):
    cluster, start_s = connect(url)
    unconfirmed = deque()

    def wait_until_unconfirmed(most):
        while len(unconfirmed) > most:
            event_id, confirm = unconfirmed.popleft()
            confirm.result()  # raises if the message is refused
            outbox.confirmed(event_id)

    for event_id, body in outbox.events():
        properties = MessageProperties(
            content_type=b"application/cloudevents+json", type_=b"UsuarioCreado",
            app_id=b"ecomarket", timestamp=int(time.time()), message_id=event_id.encode(),
            delivery_mode=2)
        unconfirmed.append((event_id, cluster.publish(
            Message(body, properties), exchange=b"user_events", confirm=True)))
        wait_until_unconfirmed(outbox.window - 1)
    wait_until_unconfirmed(0)
    cluster.shutdown(wait=False)
    return start_s


def consume(url, inbox):
    cluster, start_s = connect(url)
    unacked = []
    queue = Queue(inbox.queue, durable=True, exclusive=False, auto_delete=False,
                  arguments=work.QUEUE_ARGUMENTS)
    consumer, ready = cluster.consume(queue, no_ack=False, qos=work.PREFETCH)
    ready.result()
    while inbox.left or unacked:
        event = cluster.drain(timeout=work.IDLE_S)
        if isinstance(event, MessageReceived):
            inbox.do(event.body)
            unacked.append(event)
        if unacked and (inbox.full or not isinstance(event, MessageReceived) or not inbox.left):
            inbox.commit()
            for message in unacked:
                message.ack()
            unacked.clear()
    consumer.cancel().result()
    cluster.shutdown(wait=False)
    return start_s


if __name__ == "__main__":
    work.main(publish, consume)
