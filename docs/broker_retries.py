"""Reintenta con lo que trae el broker: basic.reject y la misma cola.

  python docs/broker_retries.py
  python docs/broker_retries.py --policy http://127.0.0.1:15672

Sin --policy, cada reject devuelve el evento al momento. Con --policy (la
página de gestión), RabbitMQ 4.3 lo retiene antes de entregarlo otra vez.
Tras tres reintentos, el evento acaba en dead_letter_queue.
"""

import argparse
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli, config, console, events, publishing
from common.connection import connect
from common.exchange import DEAD_LETTER_QUEUE, dead_lettering, declare
from tools.node import ask_management

QUEUE = "broker_retry_queue"
LIMIT = 3  # retries; the next reject makes it a dead letter
ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": LIMIT,
             **dead_lettering(DEAD_LETTER_QUEUE)}
POLICY = {"pattern": f"^{QUEUE}$", "apply-to": "quorum_queues",
          "definition": {"delayed-retry-type": "failed",
                         "delayed-retry-min": 1_000,  # ms
                         "delayed-retry-max": 60_000}}


@contextmanager
def policy(management_url, amqp_url):
    """The policy of the queue, while it is needed."""
    parts = urlsplit(amqp_url)
    login = [unquote(part or "guest") for part in (parts.username,
                                                   parts.password)]
    path = f"policies/{parts.path.removeprefix('/') or '%2F'}/broker-retries"
    try:
        ask_management("PUT", management_url, *login, path, POLICY)
    except OSError as error:
        raise config.KitError(
            f"El broker no admite la política ({error}): hace falta RabbitMQ"
            " 4.3, y la dirección de su página de gestión.") from None
    try:
        yield
    finally:
        ask_management("DELETE", management_url, *login, path)


def reject_until_dead(channel):
    before = time.monotonic()
    for method, properties, _ in channel.consume(QUEUE):
        wait_s = time.monotonic() - before
        before = time.monotonic()
        headers = properties.headers or {}
        attempt = headers.get("x-delivery-count", 0) + 1
        console.print_line(
            f"{console.clock()} reject · id"
            f" {console.short(properties.message_id)} · intento {attempt}"
            f" · {wait_s:.0f} s después")
        channel.basic_reject(method.delivery_tag, requeue=True)
        if attempt > LIMIT:
            return


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", metavar="URL",
                        help="la página de gestión del broker")
    options = parser.parse_args(argv)
    settings = config.load()
    with (connect(settings) as connection,
          policy(options.policy, settings.urls[0]) if options.policy
          else nullcontext()):
        channel = connection.channel()
        declare(channel, settings)
        channel.queue_delete(queue=QUEUE)  # an interrupted run leaves it
        channel.queue_declare(queue=QUEUE, durable=True, arguments=ARGUMENTS)
        event = events.user_created("Prueba 1", "prueba1@eco.com")
        channel.basic_publish(
            exchange="", routing_key=QUEUE, body=events.encode(event),
            properties=publishing.properties(event, 2))
        reject_until_dead(channel)
        channel.cancel()
        channel.queue_delete(queue=QUEUE)
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
