"""aio-pika: publish a batch concurrently, then wait for all its confirms.

https://docs.aio-pika.com/rabbitmq-tutorial/7-publisher-confirms.html
It is the page's strategy 2 ("improves throughput drastically"). Strategy 3, a task per message, is
not faster.
"""

import asyncio
import time
from itertools import islice

import aio_pika
import work


async def publish(url, outbox):
    async def publish_one(event):
        event_id, body = event
        message = aio_pika.Message(
            body, content_type="application/cloudevents+json", type="UsuarioCreado",
            app_id="ecomarket", timestamp=int(time.time()), message_id=event_id, delivery_mode=2)
        # Raises PublishError if the message is returned, DeliveryError if it is refused.
        await exchange.publish(message, "", mandatory=True)
        outbox.confirmed(event_id)

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange("user_events", ensure=False)
        events = outbox.events()
        while batch := list(islice(events, outbox.window)):
            await asyncio.gather(*map(publish_one, batch))


async def consume(url, inbox):
    last = None

    async def on_message(message):
        nonlocal last
        inbox.do(message.body)
        last = message
        if inbox.full:
            await finish_batch()

    async def finish_batch():
        inbox.commit()
        await last.ack(multiple=True)

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=work.PREFETCH)
        queue = await channel.get_queue(inbox.queue, ensure=False)
        tag = await queue.consume(on_message)  # faster than queue.iterator()
        while inbox.left:
            await asyncio.sleep(work.IDLE_S)
            if inbox.pending:
                await finish_batch()
        await queue.cancel(tag)  # a close alone can lose acks: rabbitmq-server issue 10327


if __name__ == "__main__":
    work.main(lambda *some: asyncio.run(publish(*some)), lambda *some: asyncio.run(consume(*some)))
