"""A consumer of the loyalty queue whose handler does what the event's name says, within its
transaction: python tests/scripted_consumer.py [options of a consumer]

With --limit N the first N events are one batch. Each handler that ends adds a row to `effects`.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # as for a script in the root folder

from common import cli, connection  # noqa: E402
from common.consuming import Consumer  # noqa: E402
from common.exchange import EXCHANGE  # noqa: E402
from common.retry import PermanentError  # noqa: E402

QUEUE = "loyalty_queue"
TABLES = "CREATE TABLE IF NOT EXISTS effects (nombre TEXT PRIMARY KEY);"
POLL_S = 0.05

connection.HEARTBEAT_S = 2  # the broker ends a connection that is silent for twice this time


def commit_in_a_with_block(db):
    with db:
        db.execute("INSERT INTO effects VALUES ('with')")


def roll_back_and_fail(db):
    with suppress(Exception):
        db.rollback()
    raise ValueError("este evento falla")


def wait_for_file_go(db):
    while not Path("go").exists():
        time.sleep(POLL_S)


ACTIONS = {
    "commit": lambda db: db.commit(),
    "rollback": lambda db: db.rollback(),
    "with": commit_in_a_with_block,
    "executescript": lambda db: db.executescript("INSERT INTO effects VALUES ('script');"),
    "end": lambda db: db.execute("END"),
    "or-rollback": lambda db: db.execute("INSERT OR ROLLBACK INTO effects VALUES ('normal 1')"),
    "roll-back-and-fail": roll_back_and_fail,
    "sleep-0.5": lambda db: time.sleep(0.5),
    "sleep-6": lambda db: time.sleep(6),
    "wait": wait_for_file_go,
    "normal": lambda db: None,
}


class BatchConsumer(Consumer):
    handled = 0

    def finish(self):
        if self.handled >= (self.options.limit or 0):
            super().finish()


def handle(event, db):
    ACTIONS[event.nombre.partition(" ")[0]](db)
    db.execute("INSERT INTO effects VALUES (?)", (event.nombre,))
    return f"done {event.nombre}"


def main():
    options = cli.consumer_options(__doc__, None)
    with BatchConsumer("loyalty", options, TABLES) as consumer:
        consumer.exchange_declare(EXCHANGE, exchange_type="fanout")
        consumer.queue_declare(QUEUE)
        consumer.queue_bind(QUEUE, exchange=EXCHANGE)
        for delivery in consumer.basic_consume(QUEUE, prefetch_count=options.prefetch):
            consumer.handled += 1
            try:
                line = consumer.once(delivery, handle)
            except PermanentError as error:
                consumer.dead_letter(delivery, error)
            except Exception as error:
                consumer.retry(delivery, error)
            else:
                consumer.basic_ack(delivery, line)


if __name__ == "__main__":
    cli.run(main)
