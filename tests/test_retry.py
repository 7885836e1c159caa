"""The pure functions that decide what happens to a failed event."""

from datetime import datetime, timezone

import pika
import pytest

from common import retry
from common.events import MalformedEvent
from common.retry import PermanentError, Step

DELAYS = (5.0, 30.0, 120.0)
NO_NETWORK = OSError("sin red")
FIRST, SECOND = "2025-11-24T08:00:00.000Z", "2025-11-24T08:00:05.000Z"


@pytest.mark.parametrize("attempt, delay", [(1, 5.0), (2, 30.0), (3, 120.0), (4, None), (5, None),
                                            (10**30, None)])
def test_a_transient_failure_uses_each_delay_and_is_then_dead_lettered(attempt, delay):
    assert retry.next_step(OSError("x"), attempt, DELAYS) == Step(delay)


@pytest.mark.parametrize("error", [PermanentError("x"), MalformedEvent("x")])
def test_a_permanent_failure_is_dead_lettered_at_once(error):
    assert retry.next_step(error, 1, DELAYS) == Step(None)


@pytest.mark.parametrize("value", ["many", "2", b"2", 2.0, float("nan"), True, None, 0, -1,
                                   [], {}, [2]])
def test_an_invalid_attempt_header_means_the_first_attempt(value):
    assert retry.attempt_of({"x-attempt": value}) == 1
    assert retry.replays_of({"x-replays": value}) == 0


def test_missing_headers_mean_the_first_attempt_and_no_replay():
    for headers in (None, {}):
        assert (retry.attempt_of(headers), retry.replays_of(headers),
                retry.journey_of(headers)) == (1, 0, [])
    assert retry.attempt_of({"x-attempt": 3}) == 3


@pytest.mark.parametrize("journey", ["x", 1, None, {},
                                     [1, "a", None, {}, {"failed_at": 1, "to": "q"},
                                      {"failed_at": FIRST}]])
def test_an_invalid_history_is_ignored(journey):
    assert retry.journey_of({"x-journey": journey}) == []


def failed(headers, error=NO_NETWORK, delay=5.0, at=FIRST, to="email_queue.retry.5s"):
    return retry.failed_headers(headers, error, Step(delay), consumer="email",
                                source_queue="email_queue", to=to, failed_at=at)


def test_the_headers_of_a_first_failure_describe_it():
    assert failed({"trace": "abc"}) == {
        "trace": "abc", "x-attempt": 2, "x-error-type": "OSError", "x-error-message": "sin red",
        "x-consumer": "email", "x-source-queue": "email_queue", "x-first-failed-at": FIRST,
        "x-failed-at": FIRST, "x-journey": [{"attempt": 1, "failed_at": FIRST,
                                             "to": "email_queue.retry.5s"}]}


def test_a_second_failure_keeps_the_first_time_and_extends_the_history():
    again = failed(failed(None), ValueError("otro"), None, SECOND, "dead_letter_queue")
    assert again["x-attempt"] == 2  # the last failed attempt: no further one follows
    assert (again["x-first-failed-at"], again["x-failed-at"]) == (FIRST, SECOND)
    assert again["x-error-type"] == "ValueError"
    assert [(stop["attempt"], stop["to"]) for stop in again["x-journey"]] == [
        (1, "email_queue.retry.5s"), (2, "dead_letter_queue")]


@pytest.mark.parametrize("hostile", [
    {"x-attempt": "many", "x-first-failed-at": 7, "x-journey": "lejos"},
    {"x-attempt": -3, "x-first-failed-at": None}])
def test_hostile_headers_are_replaced(hostile):
    assert failed(hostile) == failed(None)


def test_a_replay_resets_the_attempt_and_increments_the_replays():
    dead_letter = failed({"trace": "abc", "x-simulate": {"mode": "flaky"}}, delay=None)
    once = retry.replay_headers(dead_letter)
    assert once == {"trace": "abc", "x-simulate": {"mode": "flaky"}, "x-attempt": 1, "x-replays": 1}
    assert retry.replay_headers(once)["x-replays"] == 2


@pytest.mark.parametrize("name", [
    "x-death", "x-first-death-queue", "x-first-death-reason", "x-first-death-exchange",
    "x-last-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count",
    "CC", "BCC"])
def test_headers_that_the_broker_acts_on_are_removed(name):
    assert retry.own_headers({name: ["x"], "trace": 1}) == {"trace": 1}


def test_values_that_pika_cannot_encode_become_text():
    kept = retry.own_headers({"f": 1.5, "deep": [{"g": float("nan")}],
                              "when": datetime.now(timezone.utc), "none": None})
    assert (kept["f"], kept["deep"]) == ("1.5", [{"g": "nan"}])
    pika.BasicProperties(headers=kept).encode()


def test_deeply_nested_headers_are_cut_off():
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    assert len(repr(retry.own_headers({"deep": deep}))) < 1000


def test_huge_foreign_headers_are_removed_and_those_of_the_kit_are_kept():
    kept = retry.own_headers({"junk": "x" * 100_000, "x-attempt": 2, "x-replays": 1,
                              "x-error-type": "OSError"})
    assert kept == {"x-attempt": 2, "x-replays": 1, "x-error-type": "OSError"}


def test_headers_always_fit_into_one_frame():
    """The broker closes the connection for a header frame of more than 131,072 bytes."""
    hostile = dict.fromkeys((*retry.DECIDING, *retry.TOLD), "x" * 60_000)
    hostile["x-journey"] = [{"attempt": 1, "failed_at": "x" * 60_000, "to": "x" * 60_000}]
    for headers in (failed(hostile), retry.replay_headers(hostile)):
        assert len(b"".join(pika.BasicProperties(headers=headers).encode())) < 100_000


@pytest.mark.parametrize("text", ["x" * 5000, "ñ" * 5000, "🎉" * 5000, "a" + "🎉" * 5000,
                                  "\ud800" * 5000])
def test_an_error_message_is_cut_to_one_kilobyte_of_whole_characters(text):
    cut = retry.cut(text)
    assert 1020 <= len(cut.encode()) <= 1024
    assert "\ufffd" not in cut


def test_a_short_error_message_is_kept():
    assert retry.cut("falló: ñandú 🎉") == "falló: ñandú 🎉"
