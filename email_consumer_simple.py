"""Envía un correo de bienvenida a cada usuario nuevo.

  python email_consumer_simple.py             espera eventos
  python email_consumer_simple.py --report    muestra lo procesado

Por cada evento verás una línea:
  10:31:02 correo enviado a juan@eco.com · id … · intento 1
El correo queda en STATE_DIR/email.db (SQLite). Con SMTP_URL sale además por
ese servidor:
  python email_consumer_simple.py --smtp-url smtp://127.0.0.1:1025
"""

from functools import partial

from common import cli, console, mail
from common.consuming import Consumer
from common.exchange import EXCHANGE
from common.retry import PermanentError

QUEUE = "email_queue"
TABLES = """
CREATE TABLE IF NOT EXISTS outbox
    (event_id TEXT PRIMARY KEY, recipient TEXT NOT NULL, message BLOB NOT NULL);
"""


def record_email(smtp_url, event, db):
    """The work. It is committed with the note that the event is done, so an
    event that arrives twice makes one e-mail."""
    db.execute("INSERT OR REPLACE INTO outbox VALUES (?, ?, ?)",
               (event.id, event.email, mail.welcome(event, smtp_url)))
    return f"correo enviado a {event.email}"


def report(db):
    return {"emails": db.execute("SELECT count(*) FROM outbox").fetchone()[0]}


def draw(db):
    newest = db.execute("SELECT message FROM outbox"
                        " ORDER BY rowid DESC LIMIT 1")
    return [f"correos enviados: {report(db)['emails']}",
            *(line for [message] in newest for line in mail.as_text(message))]


def main(argv=None):
    options = cli.consumer_options(__doc__, argv)
    smtp_url = options.settings.smtp_url
    work = partial(record_email, smtp_url)
    # An e-mail cannot be taken back, so the server gets it before its row is
    # committed. A crash between the two sends it again, same Message-ID.
    send = partial(mail.send, smtp_url) if smtp_url else None
    with Consumer("email", options, TABLES) as consumer:
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
                line = consumer.once(delivery, work, before=send)
            except PermanentError as error:  # no retry can help
                consumer.dead_letter(delivery, error)  # copy to DLQ, then ack
            except Exception as error:  # 5 s, then 30, then 120; then as above
                consumer.retry(delivery, error)  # copy to retry queue, then ack
            else:
                consumer.basic_ack(delivery, line)  # sent after the commit


if __name__ == "__main__":
    cli.run(main)
