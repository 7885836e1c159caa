"""pika's BlockingConnection: confirm_delivery; each basic_publish waits for its own confirm.

It has no faster way: https://pika.readthedocs.io/en/stable/examples/
(blocking_delivery_confirmations.html, blocking_consume.html)
"""

import sys
import time
from pathlib import Path

import pika


def publish(url, count, body):
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    for number in range(count):
        properties = pika.BasicProperties(
            content_type="application/cloudevents+json", type="UsuarioCreado", app_id="ecomarket",
            timestamp=int(time.time()), message_id=str(number), delivery_mode=2)
        # Raises UnroutableError if the message is returned, NackError if it is refused.
        channel.basic_publish("user_events", "", body, properties, mandatory=True)
    connection.close()


def consume(url, count, mode):
    done = 0

    def on_message(channel, deliver, properties, body):
        nonlocal done
        if done == count:
            return
        done += 1
        if mode == "each":
            channel.basic_ack(deliver.delivery_tag)
        elif done % 100 == 0 or done == count:
            channel.basic_ack(deliver.delivery_tag, multiple=True)
        if done == count:
            channel.stop_consuming()

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=200)
    channel.basic_consume("loyalty_queue", on_message)
    channel.start_consuming()
    connection.close()


def main(role, url, count, option="each"):
    publishes = role == "publish"
    argument = Path(option).read_bytes() if publishes else option
    work = publish if publishes else consume
    started = time.perf_counter()
    work(url, int(count), argument)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
