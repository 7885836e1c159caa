"""Abre una cuenta de lealtad con 100 puntos de bienvenida a cada usuario nuevo.

  python loyalty_consumer_simple.py

Por cada evento verás una línea:
  10:31:02 lealtad activada para Juan (100 puntos) · evento … · intento 1
Las cuentas quedan en STATE_DIR/loyalty.db (SQLite).
"""

# Points and "done" are one transaction: an event that comes twice gives its points once.

from common.cli import run
from common.consumer import Consumer, main
from common.events import Event
from common.ledger import Ledger

WELCOME_POINTS = 100
SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (user_id TEXT PRIMARY KEY, nombre TEXT NOT NULL, points INTEGER NOT NULL) WITHOUT ROWID;
"""


def open_account(event: Event, state: Ledger) -> str:
    state.db.execute(
        "INSERT INTO accounts VALUES (?, ?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET points = points + excluded.points",
        (event.user_id, event.nombre, WELCOME_POINTS))
    return f"lealtad activada para {event.nombre} ({WELCOME_POINTS} puntos)"


def report(state: Ledger) -> dict:
    accounts, points = state.db.execute("SELECT count(*), total(points) FROM accounts").fetchone()
    return {"accounts": accounts, "points": int(points)}


def draw(counts: dict) -> list[str]:
    return [f"cuentas: {counts['accounts']}, puntos: {counts['points']}"]


LOYALTY = Consumer("loyalty", open_account, report, draw, SCHEMA)

if __name__ == "__main__":
    run(lambda: main(LOYALTY, __doc__))
