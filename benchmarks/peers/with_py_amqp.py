"""py-amqp: confirm_select and a callback for basic_ack; many publishes are in flight at once.

https://github.com/celery/py-amqp#readme (its "append" is wrong: events["basic_ack"] is a set)
"""

import time
from itertools import takewhile
from urllib.parse import unquote, urlsplit

import amqp
import work


def connect(url):
    parts = urlsplit(url)
    return amqp.Connection(
        f"{parts.hostname}:{parts.port}", unquote(parts.username), unquote(parts.password),
        virtual_host=unquote(parts.path[1:]))


def publish(url, outbox):
    unconfirmed = {}  # ids by delivery tag, oldest first

    def on_ack(delivery_tag, multiple):
        tags = [delivery_tag]
        if multiple:
            tags = list(takewhile(lambda tag: tag <= delivery_tag, unconfirmed))
        for tag in tags:
            outbox.confirmed(unconfirmed.pop(tag))

    def refused(*_):
        raise amqp.exceptions.MessageNacked()

    with connect(url) as connection:
        channel = connection.channel()
        channel.confirm_select()
        channel.events["basic_ack"].add(on_ack)
        channel.events["basic_nack"].add(refused)
        channel.events["basic_return"].add(refused)
        for tag, (event_id, body) in enumerate(outbox.events(), start=1):
            message = amqp.Message(
                body, content_type="application/cloudevents+json", type="UsuarioCreado",
                app_id="ecomarket", timestamp=int(time.time()), message_id=event_id,
                delivery_mode=2)
            channel.basic_publish(message, exchange="user_events", routing_key="", mandatory=True)
            unconfirmed[tag] = event_id
            while len(unconfirmed) >= outbox.window:
                connection.drain_events()
        while unconfirmed:
            connection.drain_events()


def consume(url, inbox):
    last_tag = 0

    def on_message(message):
        nonlocal last_tag
        inbox.do(message.body)
        last_tag = message.delivery_tag
        if inbox.full:
            finish_batch()

    def finish_batch():
        inbox.commit()
        channel.basic_ack(last_tag, multiple=True)

    with connect(url) as connection:
        channel = connection.channel()
        channel.basic_qos(0, work.PREFETCH, False)
        tag = channel.basic_consume(inbox.queue, callback=on_message)
        while inbox.left:
            try:
                connection.drain_events(timeout=work.IDLE_S if inbox.pending else None)
            except TimeoutError:
                finish_batch()
        if inbox.pending:
            finish_batch()
        channel.basic_cancel(tag)  # a close alone can lose acks: rabbitmq-server issue 10327


if __name__ == "__main__":
    work.main(publish, consume)
