"""Reto 2. Da 100 puntos a cada usuario nuevo. A veces, dos veces."""

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


def on_event(channel, method, properties, body):
    user = json.loads(body)["data"]
    db.execute("INSERT INTO accounts VALUES (?, 100) ON CONFLICT (user_id)"
               " DO UPDATE SET points = points + 100", (user["user_id"],))
    db.commit()
    channel.basic_ack(method.delivery_tag)
    print("100 puntos para", user["nombre"])


channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
channel.basic_qos(prefetch_count=10)
channel.basic_consume("loyalty_queue", on_event)
channel.start_consuming()
