"""kombu over py-amqp: confirm_publish; each publish waits for its own confirm.

No faster way is documented:
https://docs.celeryq.dev/projects/kombu/en/stable/reference/kombu.transport.pyamqp.html
"""

import sys
import time
from pathlib import Path

from kombu import Connection, Consumer, Producer, Queue


def publish(url, count, body):
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = Producer(connection)
        for number in range(count):
            # Raises MessageNacked if the message is refused, the broker's error if returned.
            producer.publish(
                body, exchange="user_events", routing_key="", mandatory=True, delivery_mode=2,
                content_type="application/cloudevents+json", type="UsuarioCreado",
                app_id="ecomarket", timestamp=int(time.time()), message_id=str(number))


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
            message.ack(multiple=True)

    with Connection(url) as connection:
        queue = Queue("loyalty_queue", no_declare=True)
        # on_message, unlike callbacks, gets the message without decoding its body.
        with Consumer(connection, [queue], on_message=on_message, prefetch_count=200):
            while done < count:
                connection.drain_events()


def main(role, url, count, option="each"):
    publishes = role == "publish"
    argument = Path(option).read_bytes() if publishes else option
    work = publish if publishes else consume
    started = time.perf_counter()
    work(url, int(count), argument)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
