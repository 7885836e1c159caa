"""Regala un cupón a cada usuario nuevo.

  python coupon_consumer.py

Por cada evento verás una línea:
  10:31:02 cupón HOLA-… para Juan · evento … · intento 1
"""

from common.cli import run
from common.consumer import Consumer, main

SCHEMA = "CREATE TABLE IF NOT EXISTS coupons (user_id TEXT PRIMARY KEY, code TEXT NOT NULL);"


def give_coupon(event, state):
    code = f"HOLA-{event.user_id[-8:]}"
    state.db.execute("INSERT OR REPLACE INTO coupons VALUES (?, ?)", (event.user_id, code))
    return f"cupón {code} para {event.nombre}"


def report(state):
    return {"coupons": state.db.execute("SELECT count(*) FROM coupons").fetchone()[0]}


def draw(counts):
    return [f"cupones: {counts['coupons']}"]


if __name__ == "__main__":
    run(lambda: main(Consumer("coupon", give_coupon, report, draw, SCHEMA), __doc__))
