"""aio-pika: publish a batch concurrently, then wait for all its confirms.

https://docs.aio-pika.com/rabbitmq-tutorial/7-publisher-confirms.html
It is the page's strategy 2 ("improves throughput drastically"). Strategy 3, a task per message, is
not faster.
"""

import asyncio
import sys
import time
from pathlib import Path

import aio_pika

BATCH = 1000


async def publish(url, count, body):
    async def publish_one(number):
        message = aio_pika.Message(
            body, content_type="application/cloudevents+json", type="UsuarioCreado",
            app_id="ecomarket", timestamp=int(time.time()), message_id=str(number),
            delivery_mode=2)
        # Raises PublishError if the message is returned, DeliveryError if it is refused.
        await exchange.publish(message, "", mandatory=True)

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange("user_events", ensure=False)
        for first in range(0, count, BATCH):
            await asyncio.gather(*map(publish_one, range(first, min(first + BATCH, count))))


async def consume(url, count, mode):
    done = 0
    finished = asyncio.Event()

    async def on_message(message):
        nonlocal done
        if done == count:
            return
        done += 1
        last = done == count
        if mode == "each":
            await message.ack()
        elif done % 100 == 0 or last:
            await message.ack(multiple=True)
        if last:
            finished.set()

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=200)
        queue = await channel.get_queue("loyalty_queue", ensure=False)
        tag = await queue.consume(on_message)  # faster than queue.iterator()
        await finished.wait()
        await queue.cancel(tag)  # a close alone can lose acks: rabbitmq-server issue 10327


def main(role, url, count, option="each"):
    publishes = role == "publish"
    argument = Path(option).read_bytes() if publishes else option
    work = publish if publishes else consume
    started = time.perf_counter()
    asyncio.run(work(url, int(count), argument))
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
