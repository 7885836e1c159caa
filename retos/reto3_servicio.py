"""Reto 3. Pregunta a un servicio antes de dar los puntos."""

import json
import os
import sqlite3
from urllib.request import urlopen

import pika

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")
STATE = os.environ.get("STATE_DIR", ".state/retos")
SERVICE = os.environ["SERVICE_URL"]

os.makedirs(STATE, exist_ok=True)
db = sqlite3.connect(os.path.join(STATE, "loyalty.db"))
db.execute("CREATE TABLE IF NOT EXISTS accounts"
           " (user_id TEXT PRIMARY KEY, points INTEGER)")
db.execute("CREATE TABLE IF NOT EXISTS done (event_id TEXT PRIMARY KEY)")


def on_event(channel, method, properties, body):
    event = json.loads(body)
    ids = event["id"], event["data"]["user_id"]
    try:
        urlopen(f"{SERVICE}/?id={ids[0]}", timeout=5).close()
    except OSError as error:  # 503, or nobody answers
        print("el servicio falla:", error)
        channel.basic_nack(method.delivery_tag, requeue=True)
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
