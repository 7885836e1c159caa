"""Reto 7. Todo a la vez: apunta el evento, pregunta al servicio, da los puntos."""

import json, os, sqlite3, time  # noqa: E401
from urllib.request import urlopen

import pika

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F")
STATE = os.environ.get("STATE_DIR", ".state/retos")
os.makedirs(STATE, exist_ok=True)
db = sqlite3.connect(os.path.join(STATE, "loyalty.db"), isolation_level=None)
db.execute("CREATE TABLE IF NOT EXISTS accounts (user_id TEXT PRIMARY KEY, points INTEGER)")
db.execute("CREATE TABLE IF NOT EXISTS done (event_id TEXT PRIMARY KEY)")


def on_event(channel, method, properties, body):
    try:
        event_id, user_id = (event := json.loads(body))["id"], event["data"]["user_id"]
    except (ValueError, KeyError, TypeError):  # loyalty_queue dead-letters what is rejected
        return channel.basic_reject(method.delivery_tag, requeue=False)
    try:
        if db.execute("INSERT OR IGNORE INTO done VALUES (?)", (event_id,)).rowcount:
            urlopen(f"{os.environ['SERVICE_URL']}/{event_id}", timeout=5).close()
            db.execute("INSERT INTO accounts VALUES (?, 100) ON CONFLICT DO UPDATE"
                       " SET points = points + 100", (user_id,))
    except OSError:  # 503, or nobody answers: not done, and again in a second
        db.execute("DELETE FROM done WHERE event_id = ?", (event_id,))
        channel.basic_publish("", "loyalty_queue.retry.1s", body, properties, mandatory=True)
    channel.basic_ack(method.delivery_tag)


while True:
    try:
        channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
        channel.confirm_delivery()  # basic_publish waits for the broker's answer
        channel.basic_qos(prefetch_count=10)
        channel.basic_consume("loyalty_queue", on_event)
        channel.start_consuming()
    except pika.exceptions.AMQPError:
        time.sleep(0.5)
