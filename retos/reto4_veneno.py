"""Reto 4. Da 100 puntos a cada usuario nuevo. Lo que no entiende, lo salta."""

import json
import os
import sqlite3

import pika

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")
STATE = os.environ.get("STATE_DIR", ".state/retos")

os.makedirs(STATE, exist_ok=True)
db = sqlite3.connect(os.path.join(STATE, "loyalty.db"))
db.execute("CREATE TABLE IF NOT EXISTS accounts"
           " (user_id TEXT PRIMARY KEY, points INTEGER)")
db.execute("CREATE TABLE IF NOT EXISTS done (event_id TEXT PRIMARY KEY)")


def on_event(channel, method, properties, body):
    try:
        event = json.loads(body)
        ids = event["id"], event["data"]["user_id"]
    except (ValueError, KeyError, TypeError) as error:
        print("un mensaje que no se entiende:", error)
        channel.basic_ack(method.delivery_tag)
        return
    with db:  # one transaction
        if db.execute("INSERT OR IGNORE INTO done VALUES(?)", ids[:1]).rowcount:
            db.execute("INSERT INTO accounts VALUES (?, 100) ON CONFLICT"
                       " DO UPDATE SET points = points + 100", ids[1:])
    channel.basic_ack(method.delivery_tag)


channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
channel.basic_qos(prefetch_count=10)
channel.basic_consume("loyalty_queue", on_event)
channel.start_consuming()
