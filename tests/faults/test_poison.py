"""Messages that nobody can handle, and messages that kill who handles them."""

import hashlib
import os
import random
import time
from collections import Counter

from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE
from common.publishing import CONFIRMED, ConfirmedConnection
from tests.faults import fuzz
from tests.test_hostile_messages import assert_tame

HOSTILE = int(os.environ.get("HOSTILE", 100_000))
PATIENCE_S = 30


def test_100_000_hostile_messages_are_as_many_dead_letters_byte_for_byte_and_no_consumer_minds(scene):
    seed = int(os.environ.get("FUZZ_SEED") or random.randrange(2**32))
    print(f"FUZZ_SEED={seed}")
    rng, queues = random.Random(seed), list(CONSUMERS.values())
    scene.consume()
    t=time.time()
    sent, letters, answers = Counter(), Counter(), Counter()
    with fuzz.raw_values(), ConfirmedConnection(scene.kit.settings) as connection:
        for _ in range(HOSTILE):
            queue, body = rng.choice(queues), fuzz.body(rng)
            connection.publish("", queue, body, fuzz.properties(rng))
            sent[queue, hashlib.sha256(body).digest()] += 1
            answers.update(outcome for _, outcome in connection.answers())
        answers.update(outcome for _, outcome in connection.last_answers())
    assert answers == {CONFIRMED: HOSTILE}
    print("published", time.time()-t)
    with scene.kit.channel() as channel:
        for method, properties, body in channel.consume(DEAD_LETTER_QUEUE, auto_ack=True, inactivity_timeout=PATIENCE_S):
            if method is None: break
            letters[properties.headers["x-source-queue"], hashlib.sha256(body).digest()] += 1
            if letters.total()==HOSTILE: break
    print("read", time.time()-t, letters.total())
    if letters != sent:
        for c in scene.consumers: print(c.text()[-1500:]); print(scene.node.log()[-3000:])
    assert letters == sent
    scene.balance()
    print("balanced", time.time()-t)
    for consumer in scene.consumers:
        assert_tame(consumer.text())
