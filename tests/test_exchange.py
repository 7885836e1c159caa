"""Names and arguments of the topology, without a broker. test_setup_queues.py uses a real one."""

import pytest
from pika.exceptions import ChannelClosedByBroker

from common import config, exchange, problems


def settings(**flags):
    return config.load({"RABBITMQ_URL": "amqp://h", "STATE_DIR": "x", "RETRY_DELAYS": "5,30,120",
                        "QUEUE_TYPE": "quorum"} | flags)


@pytest.mark.parametrize("delay, name", [
    (5, "email_queue.retry.5s"), (5.0, "email_queue.retry.5s"), (120, "email_queue.retry.120s"),
    (0.5, "email_queue.retry.500ms"), (1.5, "email_queue.retry.1500ms"),
    (0.001, "email_queue.retry.1ms"), (0.3, "email_queue.retry.300ms"),
    (86400, "email_queue.retry.86400s")])
def test_a_retry_queue_is_named_after_its_queue_and_delay(delay, name):
    assert exchange.retry_queue("email_queue", delay) == name


def test_the_name_of_a_retry_queue_matches_its_ttl():
    """Otherwise two settings could declare one name with two TTLs."""
    for thousandths in (1, 2, 999, 1000, 1001, 2500, 29_999, 86_400_000):
        delay = thousandths / 1000
        digits = exchange.retry_queue("q", delay).removeprefix("q.retry.")
        ttl_ms = int(digits[:-2]) if digits.endswith("ms") else int(digits[:-1]) * 1000
        arguments = exchange.retry_arguments(settings(), "q", delay)
        assert ttl_ms == arguments["x-message-ttl"] == thousandths


def test_the_topology_is_three_queues_their_retries_and_the_dead_letter_queue():
    names = [queue.name for queue in exchange.topology(settings())]
    main = ["email_queue", "loyalty_queue", "analytics_queue"]
    assert sorted(names) == sorted(["dead_letter_queue"] + [
        name for queue in main
        for name in (queue, f"{queue}.retry.5s", f"{queue}.retry.30s", f"{queue}.retry.120s")])
    assert [queue.name for queue in exchange.topology(settings()) if queue.bound] == main


def test_a_consumer_declares_its_own_queues_and_the_dead_letter_queue():
    topology = exchange.topology(settings(RETRY_DELAYS="1"), "loyalty_queue")
    assert {queue.name for queue in topology} == {
        "loyalty_queue", "loyalty_queue.retry.1s", "dead_letter_queue"}


def test_a_repeated_delay_declares_one_queue():
    names = [queue.name for queue in exchange.topology(settings(RETRY_DELAYS="1,1.0,2"),
                                                   "email_queue")]
    assert names.count("email_queue.retry.1s") == 1 and len(names) == 4


TO_DEAD_LETTERS = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead_letter_queue"}
TO_MAIN_QUEUE = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "email_queue",
                 "x-message-ttl": 5000}
QUORUM = {"x-queue-type": "quorum", "x-queue-leader-locator": "balanced"}
AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


@pytest.mark.parametrize("queue_type, name, arguments", [
    ("quorum", "email_queue", QUORUM | TO_DEAD_LETTERS | AT_LEAST_ONCE | {"x-delivery-limit": 100}),
    ("quorum", "email_queue.retry.5s", QUORUM | TO_MAIN_QUEUE | AT_LEAST_ONCE),
    ("quorum", "dead_letter_queue", QUORUM | {"x-delivery-limit": 1_000_000}),
    ("classic", "email_queue", {"x-queue-type": "classic"} | TO_DEAD_LETTERS),
    ("classic", "email_queue.retry.5s", {"x-queue-type": "classic"} | TO_MAIN_QUEUE),
    ("classic", "dead_letter_queue", {"x-queue-type": "classic"})])
def test_each_queue_has_the_documented_arguments(queue_type, name, arguments):
    topology = exchange.topology(settings(QUEUE_TYPE=queue_type))
    found = {queue.name: queue.arguments for queue in topology}
    assert found[name] == arguments


def refused(text: str):
    """Return the error that ends a script whose channel the broker closes with this text."""
    return problems.refusal(ChannelClosedByBroker(406, text), "amqp://h")


REFUSAL = ("PRECONDITION_FAILED - inequivalent arg '{}' for {} '{}' in vhost 'v':"
           " received {} but current is {}")


@pytest.mark.parametrize("kind, argument, name, wanted, current, sentence", [
    ("queue", "x-message-ttl", "email_queue.retry.5s", "the value '5000' of type 'signedint'",
     "the value '4000' of type 'signedint'",
     "email_queue.retry.5s ya existe con x-message-ttl = '4000', y estos ajustes piden '5000'"),
    ("queue", "x-queue-type", "email_queue", "'classic'", "'quorum'",
     "email_queue ya existe con x-queue-type = 'quorum', y estos ajustes piden 'classic'"),
    ("queue", "x-delivery-limit", "email_queue", "the value '100' of type 'signedint'", "none",
     "email_queue ya existe sin x-delivery-limit, y estos ajustes piden '100'"),
    ("exchange", "type", "user_events", "'fanout'", "'topic'",
     "user_events ya existe con type = 'topic', y estos ajustes piden 'fanout'")])
def test_a_refused_declaration_names_queue_argument_and_remedy(
        kind, argument, name, wanted, current, sentence):
    error = refused(REFUSAL.format(argument, kind, name, wanted, current))
    assert sentence in str(error) and "setup_queues.py --reset" in str(error)
    assert error.exit_code == 78


def test_an_unknown_argument_is_refused_in_the_words_of_the_broker():
    error = refused("PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'email_queue'")
    assert "invalid arg 'x-max-priority' for queue 'email_queue'" in str(error)


def test_other_refusals_are_not_about_the_topology():
    assert refused("PRECONDITION_FAILED - unknown delivery tag 7") is None
