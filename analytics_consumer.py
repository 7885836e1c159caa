"""Cuenta los eventos por tipo, por día y por dominio de correo.

  python analytics_consumer.py             cuenta lo que llega
  python analytics_consumer.py --report    muestra las cuentas, con barras

Por cada evento verás una línea:
  10:31:02 contado: UsuarioCreado, eco.com · evento … · intento 1
Las cuentas quedan en STATE_DIR/analytics.db (SQLite).
"""

# Counters and "done" are one transaction: an event that comes twice counts once.

from common import console
from common.cli import run
from common.consumer import Consumer, main
from common.events import Event
from common.ledger import Ledger

SCHEMA = """
CREATE TABLE IF NOT EXISTS counters
    (kind TEXT, name TEXT, count INTEGER NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
"""
COUNT = "INSERT INTO counters VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1"
TITLES = {"by_type": "por tipo", "by_day": "por día", "by_domain": "por dominio"}


def count(event: Event, state: Ledger) -> str:
    domain = event.email.rpartition("@")[2].lower()
    state.db.executemany(COUNT, [("by_type", event.type), ("by_day", event.time[:10]), ("by_domain", domain)])
    return f"contado: {event.type}, {domain}"


def report(state: Ledger) -> dict:
    counts = {kind: dict(state.db.execute(
        "SELECT name, count FROM counters WHERE kind = ? ORDER BY count DESC, name", (kind,)))
        for kind in TITLES}
    return {"events": sum(counts["by_type"].values()), **counts}


def draw(counts: dict) -> list[str]:
    lines = [f"eventos contados: {counts['events']}"]
    for kind, title in TITLES.items():
        most = max(counts[kind].values(), default=0)
        lines += ["", title] + console.table(
            [(f"  {name}", number, console.bar(number, most)) for name, number in counts[kind].items()], right={1})
    return lines


def summary(state: Ledger) -> str:
    counts = report(state)
    domains = ", ".join(f"{name} {number}" for name, number in list(counts["by_domain"].items())[:3])
    return f"resumen: eventos {counts['events']} · {domains}"


ANALYTICS = Consumer("analytics", count, report, draw, SCHEMA, summary)

if __name__ == "__main__":
    run(lambda: main(ANALYTICS, __doc__))
