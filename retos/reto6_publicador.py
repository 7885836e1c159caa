"""Reto 6. Publica COUNT eventos y dice, en JSON, qué fue de cada uno."""

import json
import os
import time
import uuid
from datetime import datetime, timezone

import pika

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")


def open_channel():
    channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
    channel.confirm_delivery()  # basic_publish waits for the broker's answer
    return channel


channel = open_channel()
for number in range(int(os.environ.get("COUNT", 5))):
    event = {"specversion": "1.0", "id": str(uuid.uuid4()), "source": "/retos",
             "type": "UsuarioCreado",
             "time": datetime.now(timezone.utc).isoformat(),
             "data": {"user_id": str(uuid.uuid4()), "nombre": f"N{number}",
                      "email": f"n{number}@eco.com"}}
    while True:
        try:
            channel.basic_publish(
                exchange="user_events", routing_key="", body=json.dumps(event),
                properties=pika.BasicProperties(
                    message_id=event["id"], delivery_mode=2))
            break
        except pika.exceptions.AMQPError:  # the connection is lost: again
            time.sleep(0.5)
            channel = open_channel()
    print(json.dumps({"id": event["id"], "outcome": "confirmed"}))
