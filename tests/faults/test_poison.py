"""Messages that no handler accepts, messages that kill their consumer, and failing handlers."""

import hashlib
import itertools
import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

from common import events
from common.confirms import ACK, WINDOW
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, EXCHANGE, retry_queue
from common.publishing import ConfirmedChannel
from common.simulation import CRASH_CODE
from tests.conftest import Running, wait_until
from tests.faults import account, fuzz
from tests.faults.scene import DRAIN_S, ENDLESS, SCRIPTS, confirmed
from tests.test_hostile_messages import (
    MALFORMED,
    assert_clean_output,
    event_body,
    hostile_messages,
    raw_values,
)

DEADLY = Path(__file__).with_name("deadly.py")
RETRIES = [("retry", 1), ("retry", 2), ("retry", 3)]
# The last outcome and attempt, by how often the handler fails.
ENDS = [("done", 1), ("done", 2), ("done", 3), ("done", 4), ("dead", 4)]
CRASHES = 6  # the first delivery and five recorded starts
HOSTILE = 100_000
QUIET_S = 60  # without a dead letter for this long, none will arrive


def for_each_consumer(count: int) -> dict[str, int]:
    return dict.fromkeys(CONSUMERS, count)


def dead_letters(kit) -> list:
    """Return (properties, body) of every dead letter without removing it."""
    with kit.channel() as channel:
        taken = iter(lambda: channel.basic_get(DEAD_LETTER_QUEUE), (None, None, None))
        return [(properties, body) for _, properties, body in taken]


def restart_until_dead_lettered(scene, consumers: dict[str, Running], start, exit_code: int,
                                dead: int) -> Counter:
    """Restart each consumer that dies until there are `dead` dead letters.

    Return the number of crashes of each consumer.
    """
    crashes = Counter()

    def all_there() -> bool:
        for name, consumer in consumers.items():
            if consumer.process.poll() is not None:
                assert consumer.end() == exit_code, consumer.text()[-2000:]
                crashes[name] += 1
                consumers[name] = start(name)
        return scene.kit.depth(DEAD_LETTER_QUEUE) == dead

    wait_until(all_there, f"{dead} dead letters",
               lambda: f"{crashes}, {account.totals(scene.kit)}", DRAIN_S)
    scene.consumers = list(consumers.values())
    return crashes


# ---------------------------------------------------------------- poison among good events


def test_poison_among_good_events_ends_in_the_dead_letter_queue_unchanged(scene):
    kit = scene.kit
    consumers = {name: kit.start_consumer(name, "--json") for name in CONSUMERS}
    with kit.channel() as channel:  # a fourth queue keeps what was sent
        channel.queue_declare("witness", durable=True)
        channel.queue_bind("witness", EXCHANGE)

    load = scene.publish(1000, "--rate", "100")
    load.wait_for('"confirmed"', count=100)
    poison = {"CrashLoop": scene.publish_failing("crash", 1)}
    crashes = restart_until_dead_lettered(scene, consumers,
                                          lambda name: kit.start(SCRIPTS[name], "--json"),
                                          CRASH_CODE, dead=3)
    assert crashes == for_each_consumer(CRASHES)

    load = scene.publish(ENDLESS, "--rate", "150")
    load.wait_for('"confirmed"', count=100)
    good = [scene.publish_failing("slow", 2, "--seconds", "0.5"),
            scene.publish_failing("duplicate", 3)]
    poison |= {"PermanentError": scene.publish_failing("permanent", 3),
               "MalformedEvent": scene.publish_failing("malformed", 3)}
    number = itertools.count()
    garbage = hostile_messages(lambda: b"veneno %d" % next(number))
    garbage += [(body, None) for body in MALFORMED.values()]
    odd = hostile_messages()
    send(kit, shuffled(odd + garbage + [(event_body(type="UsuarioBorrado"), None)]))
    for publisher in [*good, *poison.values()]:
        assert publisher.end() == 0, publisher.text()

    with kit.channel() as channel:  # the load would go on filling it while it is read
        channel.queue_unbind("witness", EXCHANGE)
    sent = {properties.message_id: body for properties, body in kit.messages("witness")}
    with kit.channel() as channel:
        channel.queue_delete("witness")
    bad = [("MalformedEvent", body) for body, _ in garbage]
    bad += [(error, sent[event_id]) for error, publisher in poison.items()
            for event_id in confirmed(publisher)]
    kit.wait_for_depth(DEAD_LETTER_QUEUE, 3 * len(bad), DRAIN_S)
    expected = Counter((name, *one) for name in CONSUMERS for one in bad)
    assert Counter((properties.headers["x-consumer"], properties.headers["x-error-type"], body)
                   for properties, body in dead_letters(kit)) == expected
    final = scene.balance(dead=for_each_consumer(len(bad)))
    assert not [line for script in kit.started for line in script.out if '"retry"' in line]
    poisonous = set().union(*map(confirmed, poison.values()))
    done = final.confirmed - poisonous | {events.decode(body).id for body, _ in odd}
    assert final.effects == dict.fromkeys(CONSUMERS, done)


def send(kit, messages: list) -> None:
    """Publish to the exchange with confirms, including values that pika cannot encode."""
    with raw_values(), kit.channel() as channel:
        channel.confirm_delivery()
        for body, properties in messages:
            channel.basic_publish(EXCHANGE, "", body, properties, mandatory=True)


def shuffled(messages: list) -> list:
    return random.sample(messages, len(messages))


# ---------------------------------------------------------------- messages that kill


def test_an_event_that_kills_its_consumer_in_mid_batch_is_the_only_dead_letter(scene):
    kit = scene.kit
    kit.run_ok("setup_queues.py")
    scene.publish_all(20)
    poison = kit.publish_event(events.user_created("Veneno", "veneno@eco.com"))
    scene.publish_all(20)

    def start(name: str, how: str = "as_usual") -> Running:
        running = Running([sys.executable, str(DEADLY), how, SCRIPTS[name]],
                          kit.environment(), kit.state.parent)
        kit.started.append(running)
        return running

    for consumer in [start(name, "in_mid_batch") for name in CONSUMERS]:
        assert consumer.end() == -signal.SIGKILL, consumer.text()
        assert consumer.out[-1] == "dies after 20 effects"
    assert not any(scene.done(name) for name in CONSUMERS)  # the transaction was rolled back
    crashes = restart_until_dead_lettered(scene, {name: start(name) for name in CONSUMERS}, start,
                                          -signal.SIGKILL, dead=3)
    assert crashes == for_each_consumer(CRASHES - 1)
    assert {properties.headers["x-error-type"]
            for properties, _ in dead_letters(kit)} == {"CrashLoop"}
    final = scene.balance(dead=for_each_consumer(1))
    assert [*final.dead.values()] == [Counter([poison.id])] * 3


# ---------------------------------------------------------------- handlers that fail for a while


def test_an_event_that_fails_one_to_four_times_survives_a_broker_crash(scene):
    kit = scene.kit = scene.under_fault = scene.kit.using(delays="20,0.3,0.6")
    scene.publish_all(20)
    failing = {(name, times): scene.publish_failing("flaky", 3, "--consumer", name,
                                                    "--times", str(times))
               for name in CONSUMERS for times in (1, 2, 3, 4)}
    for publisher in scene.publishers:
        assert publisher.end() == 0, publisher.text()
    consumers = {name: kit.start_consumer(name, "--json") for name in CONSUMERS}
    scene.consumers = list(consumers.values())
    waiting = {retry_queue(queue, 20): 12 for queue in CONSUMERS.values()}
    wait_until(lambda: {name: n for name, n in account.totals(kit).items() if n} == waiting,
               "all failing events to wait", lambda: str(account.totals(kit)))
    scene.kill_broker()
    for consumer in scene.consumers:
        consumer.wait_for("Sin conexión con el broker")
    scene.node.start()
    for consumer in scene.consumers:
        consumer.wait_for("Conectado de nuevo")

    kit.wait_for_depth(DEAD_LETTER_QUEUE, 9, DRAIN_S)
    queues = {name: [retry_queue(CONSUMERS[name], delay) for delay in kit.settings.retry_delays]
              for name in CONSUMERS}
    for properties, _ in dead_letters(kit):
        assert [(stop["attempt"], stop["to"]) for stop in properties.headers["x-journey"]] == [
            *enumerate([*queues[properties.headers["x-consumer"]], DEAD_LETTER_QUEUE], start=1)]
    final = scene.balance(dead=for_each_consumer(3))
    for name, consumer in consumers.items():
        expected = dict.fromkeys(final.confirmed, 0)
        for (fails, times), publisher in failing.items():
            expected |= {event_id: times for event_id in confirmed(publisher) if fails == name}
        assert attempts(consumer) == Counter(
            (event_id, *one) for event_id, times in expected.items()
            for one in [*RETRIES[:times], ENDS[times]])


def attempts(consumer: Running) -> Counter:
    return Counter((one["event_id"], one["outcome"], one["attempt"])
                   for one in map(json.loads, consumer.out))


# ---------------------------------------------------------------- random hostile messages


def test_100_000_hostile_messages_become_dead_letters_and_stop_no_consumer(scene):
    seed = int(os.environ.get("FUZZ_SEED") or random.randrange(2**32))
    print(f"FUZZ_SEED={seed}")
    rng, queues = random.Random(seed), list(CONSUMERS.values())
    scene.consumers = [scene.kit.start_consumer(name, *flags)
                       for name, flags in zip(CONSUMERS, [(), ("--json",), ()])]
    sent, found, answers = Counter(), Counter(), Counter()
    with raw_values(), ConfirmedChannel(scene.kit.settings, DRAIN_S) as channel:
        for _ in range(HOSTILE):
            queue, body = rng.choice(queues), fuzz.body(rng)
            channel.basic_publish("", queue, body, fuzz.properties(rng), mandatory=True)
            sent[queue, digest(body)] += 1
            answers.update(answer for _, answer in channel.answers(WINDOW))
        answers.update(answer for _, answer in channel.answers(0))
    assert answers == {ACK: HOSTILE}
    with scene.kit.channel() as channel:
        channel.basic_consume(
            DEAD_LETTER_QUEUE, lambda _channel, _method, properties, body: found.update(
                [(properties.headers["x-source-queue"], digest(body))]), auto_ack=True)
        before = -1
        while before < found.total() < HOSTILE:
            before = found.total()
            channel.connection.process_data_events(QUIET_S)
        assert found.total() >= HOSTILE, (
            f"{found.total()} dead letters; queues: {account.totals(scene.kit)}")
        scene.balance()
        channel.connection.process_data_events(0)  # receives a surplus dead letter, if there is one
    assert (sent - found, found - sent) == (Counter(), Counter())
    for consumer in scene.consumers:
        assert_clean_output(consumer.text())
        assert "a reintentar" not in consumer.text()


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
