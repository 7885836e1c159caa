"""Cuenta los eventos por tipo, por día y por dominio de correo.

  python analytics_consumer.py             espera eventos
  python analytics_consumer.py --report    muestra las cuentas

Por cada evento verás una línea:
  10:31:02 contado: UsuarioCreado, eco.com · id … · intento 1
Las cuentas quedan en STATE_DIR/analytics.db (SQLite).
"""

from common import cli, console
from common.consuming import Consumer
from common.exchange import EXCHANGE
from common.retry import PermanentError

QUEUE = "analytics_queue"
TABLES = """
CREATE TABLE IF NOT EXISTS counters
    (kind TEXT, name TEXT, count INTEGER NOT NULL, PRIMARY KEY (kind, name))
    WITHOUT ROWID;
"""
KINDS = {"by_type": "por tipo", "by_day": "por día", "by_domain": "por dominio"}


def count(event, db):
    """The work. It is committed with the note that the event is done, so an
    event that arrives twice counts once."""
    domain = event.email.rpartition("@")[2].lower()
    db.executemany("INSERT INTO counters VALUES (?, ?, 1)"
                   " ON CONFLICT DO UPDATE SET count = count + 1",
                   zip(KINDS, (event.type, event.time[:10], domain)))
    return f"contado: {event.type}, {domain}"


def report(db):
    counts = {kind: dict(db.execute(
        "SELECT name, count FROM counters WHERE kind = ?"
        " ORDER BY count DESC, name", [kind])) for kind in KINDS}
    return {"events": sum(counts["by_type"].values()), **counts}


def draw(db):
    counts = report(db)
    lines = [f"eventos contados: {counts['events']}"]
    for kind, title in KINDS.items():
        lines += ["", title, *console.bars(counts[kind])]
    return lines


def summary(db):
    counts = report(db)
    domains = [f"{name} {n}" for name, n in counts["by_domain"].items()]
    return f"resumen: eventos {counts['events']} · {', '.join(domains[:3])}"


def main(argv=None):
    options = cli.consumer_options(__doc__, argv)
    with Consumer("analytics", options, TABLES, summary) as consumer:
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
                line = consumer.once(delivery, count)
            except PermanentError as error:  # no retry can help
                consumer.dead_letter(delivery, error)  # copy to DLQ, then ack
            except Exception as error:  # 5 s, then 30, then 120; then as above
                consumer.retry(delivery, error)  # copy to retry queue, then ack
            else:
                consumer.basic_ack(delivery, line)  # sent after the commit


if __name__ == "__main__":
    cli.run(main)
