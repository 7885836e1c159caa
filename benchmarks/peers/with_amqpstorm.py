"""AMQPStorm: confirm_deliveries; each basic.publish waits for its own confirm.

It has no asynchronous confirms: https://github.com/eandersson/amqpstorm/issues/116
Based on its examples/simple_publisher_confirms.py and examples/simple_consumer.py.
"""

import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from amqpstorm import UriConnection


def publish(url, count, body):
    with UriConnection(url) as connection, connection.channel() as channel:
        channel.confirm_deliveries()
        for number in range(count):
            properties = {
                "content_type": "application/cloudevents+json", "message_type": "UsuarioCreado",
                "app_id": "ecomarket", "timestamp": datetime.now(timezone.utc),
                "message_id": str(number), "delivery_mode": 2}
            # Raises AMQPMessageError if the message is returned; False if it is refused.
            if not channel.basic.publish(body, "", "user_events", properties, mandatory=True):
                sys.exit("the broker refused a message")


def consume(url, count, mode):
    done = 0

    def on_message(message):
        nonlocal done
        if done == count:
            return
        done += 1
        if mode == "each":
            message.ack()
        elif done % 100 == 0 or done == count:
            channel.basic.ack(message.delivery_tag, multiple=True)
        if done == count:
            channel.stop_consuming()

    with UriConnection(url) as connection, connection.channel() as channel:
        channel.basic.qos(200)
        channel.basic.consume(on_message, "loyalty_queue")
        channel.start_consuming(auto_decode=False)


def main(role, url, count, option="each"):
    publishes = role == "publish"
    argument = Path(option).read_bytes() if publishes else option
    work = publish if publishes else consume
    started = time.perf_counter()
    work(url, int(count), argument)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
