"""AMQPStorm: confirm_deliveries; each basic.publish waits for its own confirm.

It has no asynchronous confirms: https://github.com/eandersson/amqpstorm/issues/116
Based on its examples/simple_publisher_confirms.py and examples/simple_consumer.py.
"""

from datetime import datetime, timezone

import work
from amqpstorm import UriConnection


def publish(url, outbox):
    with UriConnection(url) as connection, connection.channel() as channel:
        channel.confirm_deliveries()
        for event_id, body in outbox.events():
            properties = {
                "content_type": "application/cloudevents+json", "message_type": "UsuarioCreado",
                "app_id": "ecomarket", "timestamp": datetime.now(timezone.utc),
                "message_id": event_id, "delivery_mode": 2}
            # Raises AMQPMessageError if the message is returned; False if it is refused.
            if not channel.basic.publish(body, "", "user_events", properties, mandatory=True):
                raise SystemExit("the broker refused a message")
            outbox.confirmed(event_id)


def consume(url, inbox):
    last = None

    def on_message(message):
        nonlocal last
        inbox.do(message._body)
        last = message
        if inbox.full:
            finish_batch()

    def finish_batch():
        inbox.commit()
        channel.basic.ack(last.delivery_tag, multiple=True)

    with UriConnection(url) as connection, connection.channel() as channel:
        channel.basic.qos(work.PREFETCH)
        tag = channel.basic.consume(on_message, inbox.queue)
        while inbox.left:
            channel.process_data_events(auto_decode=False)  # on_message for all that has arrived
            if inbox.pending:
                finish_batch()
        channel.basic.cancel(tag)


if __name__ == "__main__":
    work.main(publish, consume)
