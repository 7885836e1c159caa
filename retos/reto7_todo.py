"""Reto 7. Todo a la vez: apunta el evento, pregunta al servicio, da puntos."""

import json
import os
import sqlite3
import time
from urllib.request import urlopen

import pika

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")
db = sqlite3.connect(os.environ.get("STATE_DIR", ".") + "/loyalty.db",
                     isolation_level=None)  # each statement is a transaction
db.executescript("""CREATE TABLE IF NOT EXISTS done (event_id PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS accounts (user_id PRIMARY KEY, points);""")

def on_event(channel, method, properties, body):
    try:
        event = json.loads(body)
        ids = event["id"], event["data"]["user_id"]
    except (ValueError, KeyError, TypeError):
        return channel.basic_reject(method.delivery_tag, requeue=False)
    try:
        if db.execute("INSERT OR IGNORE INTO done VALUES(?)", ids[:1]).rowcount:
            urlopen(f"{os.environ['SERVICE_URL']}/?id={ids[0]}", timeout=5)
            db.execute("INSERT INTO accounts VALUES (?, 100) ON CONFLICT"
                       " DO UPDATE SET points = points + 100", ids[1:])
    except OSError:  # 503, or nobody answers: not done, and again in a second
        db.execute("DELETE FROM done WHERE event_id = ?", ids[:1])
        channel.basic_publish("", "loyalty_queue.retry.1s", body, properties)
    channel.basic_ack(method.delivery_tag)

while True:
    try:
        channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
        channel.confirm_delivery()  # basic_publish waits for the broker
        channel.basic_consume("loyalty_queue", on_event)
        channel.start_consuming()
    except pika.exceptions.AMQPError:
        time.sleep(0.5)
