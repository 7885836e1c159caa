"""Abre una cuenta de lealtad con 100 puntos a cada usuario nuevo.

  python loyalty_consumer_simple.py             espera eventos
  python loyalty_consumer_simple.py --report    muestra lo procesado

Por cada evento verás una línea:
  10:31:02 lealtad activada para Juan · id … · intento 1
Las cuentas quedan en STATE_DIR/loyalty.db (SQLite).
"""

from common import cli, console
from common.consuming import Consumer
from common.exchange import EXCHANGE
from common.retry import PermanentError

QUEUE = "loyalty_queue"
WELCOME_POINTS = 100
TABLES = """
CREATE TABLE IF NOT EXISTS accounts
    (user_id TEXT PRIMARY KEY, nombre TEXT NOT NULL, points INTEGER NOT NULL)
    WITHOUT ROWID;
"""


def open_account(event, db):
    """The work. It is committed with the note that the event is done, so an
    event that arrives twice adds its points once (and two different events of
    a user add twice)."""
    db.execute("INSERT INTO accounts VALUES (?, ?, ?) ON CONFLICT (user_id)"
               " DO UPDATE SET points = points + excluded.points",
               (event.user_id, event.nombre, WELCOME_POINTS))
    return f"lealtad activada para {event.nombre}"


def report(db):
    accounts, points = db.execute(
        "SELECT count(*), coalesce(sum(points), 0) FROM accounts").fetchone()
    return {"accounts": accounts, "points": points}


def draw(db):
    counts = report(db)
    return [f"cuentas: {counts['accounts']}, puntos: {counts['points']}"]


def main(argv=None):
    options = cli.consumer_options(__doc__, argv)
    with Consumer("loyalty", options, TABLES) as consumer:
        if options.report:
            return console.print_report(consumer.ledger.db, report, draw)
        consumer.exchange_declare(EXCHANGE, exchange_type="fanout")
        consumer.queue_declare(QUEUE)  # with retry queues and dead_letter_queue
        consumer.queue_bind(QUEUE, exchange=EXCHANGE)  # a copy of every event
        # The broker keeps each event until its ack. If this process dies first,
        # it delivers the event again; once() skips what was committed.
        for delivery in consumer.basic_consume(
                QUEUE, prefetch_count=options.prefetch):
            try:
                line = consumer.once(delivery, open_account)
            except PermanentError as error:  # no retry can help
                consumer.dead_letter(delivery, error)  # copy to DLQ, then ack
            except Exception as error:  # 5 s, then 30, then 120; then as above
                consumer.retry(delivery, error)  # copy to retry queue, then ack
            else:
                consumer.basic_ack(delivery, line)  # sent after the commit


if __name__ == "__main__":
    cli.run(main)
