"""Regala un cupón a cada usuario nuevo.

  python coupon_consumer.py             espera eventos
  python coupon_consumer.py --report    muestra lo procesado

Por cada evento verás una línea:
  10:31:02 cupón HOLA-… para Juan · id … · intento 1
Los cupones quedan en STATE_DIR/coupon.db (SQLite).
"""

from common import cli, console
from common.consuming import Consumer
from common.exchange import EXCHANGE
from common.retry import PermanentError

QUEUE = "coupon_queue"
TABLES = """
CREATE TABLE IF NOT EXISTS coupons (user_id TEXT PRIMARY KEY, code TEXT);
"""


def give_coupon(event, db):
    code = f"HOLA-{event.user_id[-8:]}"
    db.execute("INSERT OR REPLACE INTO coupons VALUES (?, ?)",
               (event.user_id, code))
    return f"cupón {code} para {event.nombre}"


def report(db):
    [count] = db.execute("SELECT count(*) FROM coupons").fetchone()
    return {"coupons": count}


def draw(db):
    return [f"cupones: {report(db)['coupons']}"]


def main(argv=None):
    options = cli.consumer_options(__doc__, argv)
    with Consumer("coupon", options, TABLES) as consumer:
        if options.report:
            return console.print_report(consumer.ledger.db, report, draw)
        consumer.exchange_declare(EXCHANGE, exchange_type="fanout")
        consumer.queue_declare(QUEUE)  # with retry queues and dead_letter_queue
        consumer.queue_bind(QUEUE, exchange=EXCHANGE)  # a copy of every event
        for delivery in consumer.basic_consume(
                QUEUE, prefetch_count=options.prefetch):
            try:
                line = consumer.once(delivery, give_coupon)
            except PermanentError as error:
                consumer.dead_letter(delivery, error)
            except Exception as error:
                consumer.retry(delivery, error)
            else:
                consumer.basic_ack(delivery, line)


if __name__ == "__main__":
    cli.run(main)
