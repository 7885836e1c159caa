"""What tests/test_grade.py has graded: each starter mended, and broken in other ways.

A program is a starter of retos/ with pieces of its text replaced, so a change reads as what a
student would do. It stands here, not where students look.
"""

from pathlib import Path

from tests.conftest import ROOT

NUMBERS = range(1, 8)
Changes = tuple[tuple[str, str], ...]


def starter(number: int) -> Path:
    [path] = (ROOT / "retos").glob(f"reto{number}_*.py")
    return path


def changed(text: str, changes: Changes) -> str:
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the starter"
        text = text.replace(old, new)
    return text


def solution(number: int) -> str:
    return changed(starter(number).read_text(encoding="utf-8"), SOLUTIONS[number])


ACK = "    channel.basic_ack(method.delivery_tag)\n"
SERVE = """channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
channel.basic_qos(prefetch_count=10)
channel.basic_consume("loyalty_queue", on_event)
channel.start_consuming()
"""
COMMITTED = "    db.commit()\n"
EFFECT_ONCE = """    event = json.loads(body)
    user = event["data"]
    with db:  # one transaction: the effect, and the note that it is done
        db.execute("CREATE TABLE IF NOT EXISTS done (event_id TEXT PRIMARY KEY)")
        if db.execute("INSERT OR IGNORE INTO done VALUES (?)", (event["id"],)).rowcount:
            db.execute("INSERT INTO accounts VALUES (?, 100) ON CONFLICT (user_id)"
                       " DO UPDATE SET points = points + 100", (user["user_id"],))
"""
EFFECT = """    user = json.loads(body)["data"]
    db.execute("INSERT INTO accounts VALUES (?, 100) ON CONFLICT (user_id)"
               " DO UPDATE SET points = points + 100", (user["user_id"],))
    db.commit()
"""
REQUEUE = "        channel.basic_nack(method.delivery_tag, requeue=True)\n        return\n"
SKIP = "        channel.basic_ack(method.delivery_tag)\n        return\n"
REJECT = "        channel.basic_reject(method.delivery_tag, requeue=False)\n        return\n"
COPY = '        channel.basic_publish("", "loyalty_queue.retry.1s", body, properties)\n'
PUBLISH = """                    message_id=event["id"], delivery_mode=2))
            break
"""
CLAIM = """    print(json.dumps({"id": event["id"], "outcome": "confirmed"}))
"""
RESERVE = '        if db.execute("INSERT OR IGNORE INTO done'
FORGET = """        db.execute("DELETE FROM done WHERE event_id = ?", ids[:1])
"""

SOLUTIONS: dict[int, Changes] = {
    1: ((ACK, ""), (COMMITTED, COMMITTED + ACK)),
    2: ((EFFECT, EFFECT_ONCE),),
    # loyalty_queue.retry.1s gives the message back to loyalty_queue after a second.
    3: ((REQUEUE, COPY + SKIP),
        ("channel.basic_qos", "channel.confirm_delivery()\nchannel.basic_qos")),
    4: ((SKIP, REJECT),),  # loyalty_queue dead-letters what is rejected
    5: ((SERVE, """while True:
    try:
        channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
        channel.basic_qos(prefetch_count=10)
        channel.basic_consume("loyalty_queue", on_event)
        channel.start_consuming()
    except pika.exceptions.AMQPError:
        __import__("time").sleep(0.5)
"""),),
    6: ((PUBLISH, PUBLISH.replace("delivery_mode=2))\n", "delivery_mode=2),\n"
                                  "                mandatory=True)\n"
                                  '            outcome = "confirmed"\n')),
        ("        except pika.exceptions.AMQPError:",
         '        except pika.exceptions.UnroutableError:\n            outcome = "returned"\n'
         "            break\n        except pika.exceptions.AMQPError:"),
        (CLAIM, CLAIM.replace('"confirmed"', "outcome"))),
    7: ((RESERVE, '        db.execute("BEGIN")\n' + RESERVE),
        (FORGET, '        db.execute("ROLLBACK")\n'),
        ("    except OSError:", '        db.execute("COMMIT")\n    except OSError:')),
}

# name: (challenge, the rule it breaks, changes of the solution)
WRONG: dict[str, tuple[int, str, Changes]] = {
    "ack before commit": (1, "lost", ((COMMITTED + ACK, ACK + COMMITTED),)),
    "auto_ack": (1, "lost", (
        (ACK, ""), ('"loyalty_queue", on_event', '"loyalty_queue", on_event, auto_ack=True'))),
    "an auto-delete queue of its own": (1, "queue", ((
        'channel.basic_consume("loyalty_queue"',
        'channel.queue_declare("mine", auto_delete=True, durable=True)\n'
        'channel.queue_bind("mine", "user_events")\nchannel.basic_consume("mine"'),)),
    "deletes the queue and declares it anew": (1, "queue", ((
        "channel.basic_qos", 'channel.queue_delete("loyalty_queue")\n'
        'channel.queue_declare("loyalty_queue", durable=True)\n'
        'channel.queue_bind("loyalty_queue", "user_events")\nchannel.basic_qos'),)),
    "acks on another channel": (1, "stuck", ((
        ACK, "    channel.connection.channel().basic_ack(method.delivery_tag)\n"),)),
    "forgets the ack": (1, "stuck", ((ACK, ""),)),
    "dedup in memory": (2, "doubled", (
        (EFFECT_ONCE, '    seen = globals().setdefault("seen", set())\n'
         '    event_id = json.loads(body)["id"]\n    if event_id in seen:\n'
         "        return channel.basic_ack(method.delivery_tag)\n    seen.add(event_id)\n"
         + EFFECT),)),
    "dedup by user": (2, "lost", (('(event["id"],)', '(event["data"]["user_id"],)'),)),
    "skips what is redelivered": (2, "doubled", (
        (EFFECT_ONCE, "    if method.redelivered:\n"
         "        return channel.basic_ack(method.delivery_tag)\n" + EFFECT),)),
    "no ack for a duplicate": (2, "stuck", (
        ("(event[\"id\"],)).rowcount:\n            db.execute(",
         "(event[\"id\"],)).rowcount == 0:\n            return\n        if True:\n"
         "            db.execute("),)),
    "sleeps in the callback until the service answers": (3, "neighbours", (
        ("        urlopen(", "        call("),
        ("def on_event", "def call(url, timeout):\n    import time\n    while True:\n        try:\n"
         "            return urlopen(url, timeout=timeout)\n        except OSError:\n"
         "            time.sleep(1)\n\n\ndef on_event"))),
    "prefetch 1, and a pause before it gives the event back": (3, "neighbours", (
        ("prefetch_count=10", "prefetch_count=1"),
        (COPY + SKIP,
         '        __import__("time").sleep(0.6)\n' + REQUEUE))),
    "swallows the exception": (3, "service", (
        (COPY + SKIP,
         ""),)),
    "gives up at the first failure": (3, "lost", (
        (COPY + SKIP,
         REJECT),)),
    "gives the poison back for ever": (4, "hot", ((REJECT, REQUEUE),)),
    "falls over the poison": (4, "ended", (("except (ValueError,", "except (ZeroDivisionError,"),
                                           ("KeyError, TypeError)", "OSError)"))),
    "a dead letter in words of its own": (4, "poison", ((
        REJECT, '        channel.basic_publish("", "dead_letter_queue", repr(body))\n' + SKIP),)),
    "ends cleanly when the connection is lost": (5, "ended", ((
        '        __import__("time").sleep(0.5)', "        break"),)),
    "counts what is sent as confirmed": (6, "confirmed", (
        ("    channel.confirm_delivery()  # basic_publish waits for the broker's answer\n", ""),)),
    "says of what came back that it does not know": (6, "unroutable", (
        ('"returned"', '"unconfirmed"'),)),
    "falls over what comes back": (6, "answers", (
        ("except pika.exceptions.UnroutableError:", "except ZeroDivisionError:"),
        ("except pika.exceptions.AMQPError:", "except pika.exceptions.AMQPConnectionError:"))),
    "a new event id at every try": (6, "ids", ((
        "            channel = open_channel()",
        '            channel = open_channel()\n            event["id"] = str(uuid.uuid4())'),)),
    "stops at the first lost connection": (6, "answers", ((
        "            time.sleep(0.5)\n", "            raise\n"),)),
    "acks what still has to wait": (7, "lost", ((
        COPY,
        "        channel.connection.call_later(1, lambda: on_event(channel, None, properties,"
        " body))\n    if method is None:\n        return\n"),)),
}

NEVER_ASKS = changed(solution(6), (
    ("    channel.confirm_delivery()  # basic_publish waits for the broker's answer\n", ""),
    ('            outcome = "confirmed"\n', '            outcome = "unconfirmed"\n')))

# Slow, and much like another: only with KIT_SEEDS.
SIMILAR = {"forgets the ack", "no ack for a duplicate", "skips what is redelivered"}

# SelectConnection: the events are under way together, and one ack answers for several.
COUNTS_A_MULTIPLE_ACK_ONCE = '''
import json, os, uuid
import pika

ids, answered = [], 0


def opened(connection):
    connection.channel(on_open_callback=ready)


def ready(channel):
    channel.confirm_delivery(lambda frame: answer(channel, frame.method))
    for number in range(int(os.environ["COUNT"])):
        ids.append(str(uuid.uuid4()))
        event = {"specversion": "1.0", "id": ids[-1], "source": "/retos", "type": "UsuarioCreado",
                 "time": "2026-01-01T00:00:00Z",
                 "data": {"user_id": str(uuid.uuid4()), "nombre": "Ana", "email": "a@eco.com"}}
        channel.basic_publish("user_events", "", json.dumps(event),
                              pika.BasicProperties(message_id=ids[-1], delivery_mode=2))


def answer(channel, method):
    global answered
    print(json.dumps({"id": ids[method.delivery_tag - 1], "outcome": "confirmed"}))
    answered += 1
    if answered == len(ids):
        channel.connection.close()


while answered < int(os.environ["COUNT"]):
    connection = pika.SelectConnection(pika.URLParameters(os.environ["RABBITMQ_URL"]),
                                       on_open_callback=opened)
    connection.ioloop.start()
'''

FAKE = "Veredicto del reto 1: VÁLIDO"

STARTER_FAILS = {1: "lost", 2: "doubled", 3: "hot", 4: "poison", 5: "ended", 6: "unroutable",
                 7: "lost"}

# name: (program, verdict, the rule broken first). Challenge 1. LEFT: a file for process ids.
HOSTILE: dict[str, tuple[str, str, str | None]] = {
    "floods stdout, forks and ignores SIGTERM": ("""
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = [sys.executable, "-c", "import time; time.sleep(1000)"]
children = subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True)
with open("LEFT", "a") as left:
    print(os.getpid(), *(child.pid for child in children), file=left)
while True:
    sys.stdout.write("x" * 100000 + '{"id": 1, "outcome": "')
""", "unknown", None),
    "hangs in its first event": (changed(solution(1), ((
        "    user = json", "    time.sleep(1000)\n    user = json"),)), "invalid", "stuck"),
    "deletes the queues in its first event": (changed(solution(1), ((ACK, """
    for queue in ("loyalty_queue", "dead_letter_queue"):
        channel.queue_delete(queue)
    channel.exchange_delete("user_events")
    time.sleep(1000)
"""),)), "invalid", "queue"),
}


def kit_with_service() -> str:
    """loyalty_consumer_simple.py with one call of the service before the effect."""
    text = (ROOT / "loyalty_consumer_simple.py").read_text(encoding="utf-8")
    return changed(text, (
        ("from common import",
         f"import os\nimport sys\nfrom urllib.request import urlopen\n\n"
         f"sys.path.insert(0, {str(ROOT)!r})\nfrom common import"),
        ("def report(db):",
         "def ask(event):\n"
         "    urlopen(f\"{os.environ['SERVICE_URL']}/?id={event.id}\", timeout=5).close()\n\n\n"
         "def report(db):"),
        ("consumer.once(delivery, open_account)",
         "consumer.once(delivery, open_account, before=ask)")))
