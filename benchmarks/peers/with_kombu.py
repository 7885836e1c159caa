"""kombu over py-amqp: confirm_publish; each publish waits for its own confirm.

No faster way is documented:
https://docs.celeryq.dev/projects/kombu/en/stable/reference/kombu.transport.pyamqp.html
"""

import time

import work
from kombu import Connection, Consumer, Producer, Queue


def publish(url, outbox):
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = Producer(connection)
        for event_id, body in outbox.events():
            # Raises MessageNacked if the message is refused, the broker's error if returned.
            producer.publish(
                body, exchange="user_events", routing_key="", mandatory=True, delivery_mode=2,
                content_type="application/cloudevents+json", type="UsuarioCreado",
                app_id="ecomarket", timestamp=int(time.time()), message_id=event_id)
            outbox.confirmed(event_id)


def consume(url, inbox):
    last = None

    def on_message(message):
        nonlocal last
        inbox.do(message.body)
        last = message
        if inbox.full:
            finish_batch()

    def finish_batch():
        inbox.commit()
        last.ack(multiple=True)

    with Connection(url) as connection:
        queue = Queue(inbox.queue, no_declare=True)
        # on_message, unlike callbacks, gets the message without decoding its body.
        with Consumer(connection, [queue], on_message=on_message, prefetch_count=work.PREFETCH):
            while inbox.left:
                try:
                    connection.drain_events(timeout=work.IDLE_S if inbox.pending else None)
                except TimeoutError:
                    finish_batch()
            if inbox.pending:
                finish_batch()


if __name__ == "__main__":
    work.main(publish, consume)
