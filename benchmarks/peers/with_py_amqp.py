"""py-amqp: confirm_select and a callback for basic_ack; many publishes are in flight at once.

https://github.com/celery/py-amqp#readme (its "append" is wrong: events["basic_ack"] is a set)
"""

import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import unquote, urlsplit

import amqp

WINDOW = 1000


def connect(url):
    parts = urlsplit(url)
    return amqp.Connection(
        f"{parts.hostname}:{parts.port}", unquote(parts.username), unquote(parts.password),
        virtual_host=unquote(parts.path[1:]))


def publish(url, count, body):
    unconfirmed = deque()

    def on_ack(delivery_tag, multiple):
        if not multiple:
            unconfirmed.remove(delivery_tag)
        while multiple and unconfirmed and unconfirmed[0] <= delivery_tag:
            unconfirmed.popleft()

    def on_nack(delivery_tag, multiple):
        raise amqp.exceptions.MessageNacked()

    with connect(url) as connection:
        channel = connection.channel()
        channel.confirm_select()
        channel.events["basic_ack"].add(on_ack)
        channel.events["basic_nack"].add(on_nack)
        for number in range(1, count + 1):  # the delivery tags of confirms start at 1
            message = amqp.Message(
                body, content_type="application/cloudevents+json", type="UsuarioCreado",
                app_id="ecomarket", timestamp=int(time.time()), message_id=str(number),
                delivery_mode=2)
            channel.basic_publish(message, exchange="user_events", routing_key="", mandatory=True)
            unconfirmed.append(number)
            while len(unconfirmed) >= WINDOW:
                connection.drain_events()
        while unconfirmed:
            connection.drain_events()


def consume(url, count, mode):
    done = 0

    def on_message(message):
        nonlocal done
        if done == count:
            return
        done += 1
        if mode == "each":
            channel.basic_ack(message.delivery_tag)
        elif done % 100 == 0 or done == count:
            channel.basic_ack(message.delivery_tag, multiple=True)

    with connect(url) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 200, False)
        tag = channel.basic_consume("loyalty_queue", callback=on_message)
        while done < count:
            connection.drain_events()
        channel.basic_cancel(tag)  # a close alone can lose acks: rabbitmq-server issue 10327


def main(role, url, count, option="each"):
    publishes = role == "publish"
    argument = Path(option).read_bytes() if publishes else option
    work = publish if publishes else consume
    started = time.perf_counter()
    work(url, int(count), argument)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
