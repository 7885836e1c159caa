"""Retries: where each failed message goes, when, and with which headers."""

import json
from collections import Counter
from datetime import datetime
from itertools import pairwise

import pika
import pytest

from common import events, exchange
from tests.conftest import wait_until

LOYALTY = "loyalty_consumer_simple.py"
NAMES = ("email", "loyalty", "analytics")


def seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def attempts(running) -> list[tuple[str, int]]:
    return [(one["outcome"], one["attempt"]) for one in map(json.loads, running.out)]


def fail(kit, mode: str, *arguments: str):
    return kit.call_ok("simulate_fail_publisher.py", "--mode", mode, "--consumer", "loyalty",
                       *arguments)


@pytest.fixture
def kit(kit):
    """Return a Kit with short delays."""
    return kit.using(delays="0.1,0.2,0.3")


# ---------------------------------------------------------------- delays and modes


def test_each_retry_waits_for_its_delay_and_every_attempt_is_printed(kit):
    kit = kit.using(delays="0.3,0.6,0.9")
    delays = kit.settings.retry_delays
    running = kit.start(LOYALTY, "--json")
    fail(kit, "transient", "--count", "2")
    kit.wait_for_depth("dead_letter_queue", 2)
    wait_until(lambda: len(running.out) == 8, "eight attempts", running.text)
    expected = [("retry", 1), ("retry", 2), ("retry", 3), ("dead", 4)]
    assert sorted(attempts(running)) == sorted(expected * 2)
    for properties, _ in kit.messages("dead_letter_queue"):
        journey = properties.headers["x-journey"]
        assert [(stop["attempt"], stop["to"]) for stop in journey] == [
            (1, "loyalty_queue.retry.300ms"), (2, "loyalty_queue.retry.600ms"),
            (3, "loyalty_queue.retry.900ms"), (4, "dead_letter_queue")]
        failures = [seconds(stop["failed_at"]) for stop in journey]
        waited = [later - earlier for earlier, later in pairwise(failures)]
        assert all(time >= delay - 0.005 for time, delay in zip(waited, delays)), waited


def test_a_short_delay_does_not_wait_behind_a_long_one(kit):
    """Each queue has a fixed delay: messages expire only at its head (docs/facts.md, broker 8)."""
    running = kit.using(delays="0.2,120").start(LOYALTY, "--json")
    fail(kit, "transient")
    kit.wait_for_depth("loyalty_queue.retry.120s", 1)
    fail(kit, "flaky", "--times", "1")
    wait_until(lambda: ("done", 2) in attempts(running), "the second event", running.text)
    assert kit.depth("loyalty_queue.retry.120s") == 1


def test_flaky_succeeds_after_its_failures(kit):
    running = kit.start(LOYALTY, "--json")
    fail(kit, "flaky", "--times", "2")
    wait_until(lambda: len(running.out) == 3, "three attempts", running.text)
    assert attempts(running) == [("retry", 1), ("retry", 2), ("done", 3)]
    assert kit.report(LOYALTY) == {"accounts": 1, "points": 100}
    assert kit.depth("dead_letter_queue") == 0


def test_flaky_beyond_the_last_delay_is_a_dead_letter_whose_replay_succeeds(kit):
    running = kit.start(LOYALTY, "--json")
    fail(kit, "flaky", "--times", "5")
    kit.wait_for_depth("dead_letter_queue", 1)
    kit.call_ok("dead_letter_consumer.py", "--replay")
    wait_until(lambda: len(running.out) == 6, "six attempts", running.text)
    assert attempts(running) == [("retry", 1), ("retry", 2), ("retry", 3), ("dead", 4),
                                 ("retry", 1), ("done", 2)]
    assert kit.report(LOYALTY)["accounts"] == 1
    assert kit.depth("dead_letter_queue") == 0


def test_permanent_is_a_dead_letter_at_once(kit):
    kit.start(LOYALTY)
    fail(kit, "permanent")
    kit.wait_for_depth("dead_letter_queue", 1)
    [(properties, _)] = kit.messages("dead_letter_queue")
    assert properties.headers["x-error-type"] == "PermanentError"
    assert properties.headers["x-attempt"] == len(properties.headers["x-journey"]) == 1


def test_duplicate_is_delivered_twice_and_has_one_effect(kit):
    running = kit.start(LOYALTY, "--json")
    fail(kit, "duplicate")
    wait_until(lambda: len(running.out) == 2, "both copies", running.text)
    assert attempts(running) == [("done", 1), ("duplicate", 1)]
    assert [kit.depth(f"{name}_queue") for name in NAMES] == [0, 0, 0]
    assert kit.report(LOYALTY)["points"] == 100


def test_unroutable_is_returned_and_reaches_no_queue(kit):
    result = kit.run_ok("simulate_fail_publisher.py", "--mode", "unroutable",
                        "--count", "3", "--json")
    assert Counter(json.loads(line)["outcome"]
                   for line in result.stdout.splitlines()) == {"returned": 3}
    assert [kit.depth(f"{name}_queue") for name in NAMES] == [0, 0, 0]
    assert kit.depth("dead_letter_queue") == 0


def test_malformed_is_an_unchanged_dead_letter_of_each_consumer(kit):
    kit.call_ok("simulate_fail_publisher.py", "--mode", "malformed")
    for script in ("email_consumer_simple.py", LOYALTY, "analytics_consumer.py"):
        kit.call_ok(script, "--limit", "1")
    kit.wait_for_depth("dead_letter_queue", 3)
    dead_letters = kit.messages("dead_letter_queue")
    assert {properties.headers["x-consumer"] for properties, _ in dead_letters} == set(NAMES)
    assert {properties.headers["x-error-type"]
            for properties, _ in dead_letters} == {"MalformedEvent"}
    assert {body for _, body in dead_letters} == {b'{"nombre": "Juan", esto no es JSON'}


# ---------------------------------------------------------------- other consumers


def test_a_failure_in_one_consumer_does_not_affect_the_others(kit):
    running = {name: kit.start_consumer(name, "--json") for name in NAMES}
    kit.call_ok("simulate_fail_publisher.py", "--consumer", "email", "--count", "2")
    kit.wait_for_depth("dead_letter_queue", 2)
    wait_until(lambda: len(running["email"].out) == 8, "eight attempts", running["email"].text)
    assert attempts(running["loyalty"]) == attempts(running["analytics"]) == [("done", 1)] * 2
    assert kit.report("email_consumer_simple.py") == {"emails": 0}
    assert kit.report(LOYALTY) == {"accounts": 2, "points": 200}
    assert kit.report("analytics_consumer.py")["events"] == 2
    assert {(properties.headers["x-consumer"], properties.headers["x-source-queue"])
            for properties, _ in kit.messages("dead_letter_queue")} == {("email", "email_queue")}


# ---------------------------------------------------------------- headers and body


def test_a_dead_letter_has_its_history_and_an_unchanged_body(kit):
    with kit.channel() as channel:
        exchange.declare(channel, kit.settings)
    event = events.user_created("José 🎉", "jose@eco.com")
    # A valid body, but in another format than the kit's.
    body = b"\n " + events.encode(event).replace(b",", b" ,\t")
    instruction = {"consumer": "loyalty", "mode": "transient", "number": 0}
    kit.publish(body, queue="loyalty_queue", properties=pika.BasicProperties(
        content_type="application/cloudevents+json", content_encoding="utf-8", message_id=event.id,
        type="UsuarioCreado", correlation_id="c-1", app_id="otra", timestamp=1_700_000_000,
        delivery_mode=1, expiration="60000", priority=3, reply_to="somebody", headers={
            "x-simulate": instruction, "traceparent": "00-abc-01", "shop": "north",
            "CC": ["email_queue"], "x-attempt": "many",
            "x-death": [{"queue": "loyalty_queue", "reason": "expired", "count": 9}],
            "x-first-death-queue": "q"}))
    started_at = seconds(events.now())
    kit.start(LOYALTY)
    kit.wait_for_depth("dead_letter_queue", 1)
    [(properties, found)] = kit.messages("dead_letter_queue")
    headers = properties.headers
    assert found == body
    assert (properties.delivery_mode, properties.expiration, properties.reply_to) == (2, None, None)
    assert (properties.message_id, properties.type) == (event.id, "UsuarioCreado")
    assert properties.content_type == "application/cloudevents+json"
    assert properties.content_encoding == "utf-8"
    assert (properties.correlation_id, properties.app_id) == ("c-1", "otra")
    assert properties.timestamp == 1_700_000_000
    assert headers["x-attempt"] == 4 and "x-replays" not in headers
    assert headers["x-error-type"] == "SimulatedFailure"
    assert headers["x-error-message"] == "falla siempre"
    assert (headers["x-consumer"], headers["x-source-queue"]) == ("loyalty", "loyalty_queue")
    assert started_at - 1 < seconds(headers["x-first-failed-at"]) < seconds(headers["x-failed-at"])
    assert headers["x-first-failed-at"] == headers["x-journey"][0]["failed_at"]
    assert headers["x-failed-at"] == headers["x-journey"][-1]["failed_at"]
    assert (headers["x-simulate"], headers["traceparent"]) == (instruction, "00-abc-01")
    # No other header travels on; x-delivery-count is of the queue that was read here.
    assert set(headers) - {"x-delivery-count"} == {
        "x-simulate", "traceparent", "x-attempt", "x-error-type", "x-error-message", "x-consumer",
        "x-source-queue", "x-first-failed-at", "x-failed-at", "x-journey"}
    assert kit.depth("email_queue") == 1  # the CC of the sender acted once, not per attempt


def test_a_retry_copy_is_persistent_and_has_no_expiration(kit):
    kit = kit.using(delays="60")
    fail(kit, "transient")
    kit.call_ok(LOYALTY, "--limit", "1")
    kit.wait_for_depth("loyalty_queue.retry.60s", 1)
    [(properties, _)] = kit.messages("loyalty_queue.retry.60s")
    assert (properties.delivery_mode, properties.expiration) == (2, None)
    assert properties.headers["x-attempt"] == 2
    assert properties.headers["x-journey"][0]["to"] == "loyalty_queue.retry.60s"


# ---------------------------------------------------------------- deleted queues


@pytest.mark.parametrize("deleted", ["loyalty_queue.retry.100ms", "dead_letter_queue"])
def test_a_deleted_target_queue_is_declared_again_and_nothing_is_lost(kit, deleted):
    running = kit.start_consumer("loyalty", "--json")
    publish_failing_event(kit, "flaky", 1)  # opens the publishing connection, which declares all
    wait_until(lambda: ("done", 2) in attempts(running), "the first event", running.text)
    with kit.channel() as channel:
        channel.queue_delete(deleted)
    failing = publish_failing_event(kit, "transient", 0)
    running.wait_for(f"La cola {deleted} no está: se declara de nuevo")
    kit.wait_for_depth("dead_letter_queue", 1)
    [(properties, body)] = kit.messages("dead_letter_queue")
    assert [stop["attempt"] for stop in properties.headers["x-journey"]] == [1, 2, 3, 4]
    assert body == events.encode(failing)
    assert kit.depth("loyalty_queue") == 0
    assert not differences(kit)


def publish_failing_event(kit, mode: str, number: int) -> events.Event:
    """Publish like simulate_fail_publisher.py, but declare nothing."""
    return kit.publish_event(queue="loyalty_queue", headers={
        "x-simulate": {"consumer": "loyalty", "mode": mode, "number": number}})


def differences(kit) -> str:
    """Return what --check prints, except for missing queues of other consumers."""
    lines = kit.call("setup_queues.py", "--check").stdout.splitlines()
    return "\n".join(line for line in lines
                     if "ya existe con" in line or "falta la cola loyalty" in line)


def test_the_broker_does_not_fall_back_to_at_most_once(kit, shared_node):
    """The broker reports a fallback only in its log (docs/facts.md, broker 1)."""
    vhost = kit.url.rpartition("/")[2]

    def fallbacks() -> list[str]:
        return [line for line in shared_node.log().splitlines()
                if "Falling back" in line and vhost in line]

    kit.start(LOYALTY)
    fail(kit, "transient")
    kit.wait_for_depth("dead_letter_queue", 1)
    assert fallbacks() == []
    with kit.channel() as channel:  # without reject-publish, the broker falls back
        channel.queue_declare("mistaken", durable=True, arguments={
            "x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once",
            **exchange.dead_lettering("x")})
    wait_until(fallbacks, "the line in the log")
