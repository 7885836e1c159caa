"""pika's BlockingConnection: confirm_delivery; each basic_publish waits for its own confirm.

It has no faster way: https://pika.readthedocs.io/en/stable/examples/
(blocking_delivery_confirmations.html, blocking_consume.html)
"""

import time

import pika
import work


def publish(url, outbox):
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    for event_id, body in outbox.events():
        properties = pika.BasicProperties(
            content_type="application/cloudevents+json", type="UsuarioCreado", app_id="ecomarket",
            timestamp=int(time.time()), message_id=event_id, delivery_mode=2)
        # Raises UnroutableError if the message is returned, NackError if it is refused.
        channel.basic_publish("user_events", "", body, properties, mandatory=True)
        outbox.confirmed(event_id)
    connection.close()


def consume(url, inbox):
    last_tag = 0

    def on_message(channel, deliver, properties, body):
        nonlocal last_tag
        inbox.do(body)
        last_tag = deliver.delivery_tag
        if inbox.full:
            finish_batch()

    def finish_batch():
        inbox.commit()
        channel.basic_ack(last_tag, multiple=True)

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=work.PREFETCH)
    tag = channel.basic_consume(inbox.queue, on_message)
    while inbox.left or inbox.pending:
        left = inbox.left
        connection.process_data_events(work.IDLE_S)  # calls on_message for all that has arrived
        if inbox.pending and inbox.left == left:
            finish_batch()
    channel.basic_cancel(tag)
    connection.close()


if __name__ == "__main__":
    work.main(publish, consume)
