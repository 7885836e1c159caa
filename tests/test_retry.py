"""The pure functions that decide what happens to a failed event."""

import pika
import pytest

from common import retry
from common.events import MalformedEvent
from common.retry import PermanentError
from tests.conftest import failed_headers

DELAYS = (5.0, 30.0, 120.0)
NO_NETWORK = OSError("sin red")
FIRST, SECOND = "2025-11-24T08:00:00.000Z", "2025-11-24T08:00:05.000Z"


@pytest.mark.parametrize("attempt, delay", [(1, 5.0), (2, 30.0), (3, 120.0), (4, None), (5, None),
                                            (10**30, None)])
def test_a_transient_failure_uses_each_delay_and_is_then_dead_lettered(attempt, delay):
    assert retry.next_delay_s(OSError("x"), attempt, DELAYS) == delay


@pytest.mark.parametrize("error", [PermanentError("x"), MalformedEvent("x")])
def test_a_permanent_failure_is_dead_lettered_at_once(error):
    assert retry.next_delay_s(error, 1, DELAYS) is None


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


def failed(headers, error=NO_NETWORK, delay=5.0, at=FIRST):
    return failed_headers(headers, error, delay, failed_at=at)


def test_the_headers_of_a_first_failure_describe_it():
    assert failed(None) == {
        "x-attempt": 2, "x-error-type": "OSError", "x-error-message": "sin red",
        "x-consumer": "email", "x-source-queue": "email_queue", "x-first-failed-at": FIRST,
        "x-failed-at": FIRST, "x-journey": [{"attempt": 1, "failed_at": FIRST,
                                             "to": "email_queue.retry.5s"}]}


def test_a_second_failure_keeps_the_first_time_and_extends_the_history():
    again = failed(failed(None), ValueError("otro"), None, SECOND)
    assert again["x-attempt"] == 2  # the last failed attempt: no further one follows
    assert (again["x-first-failed-at"], again["x-failed-at"]) == (FIRST, SECOND)
    assert again["x-error-type"] == "ValueError"
    assert [(stop["attempt"], stop["to"]) for stop in again["x-journey"]] == [
        (1, "email_queue.retry.5s"), (2, "dead_letter_queue")]


@pytest.mark.parametrize("hostile", [
    {"x-attempt": "many", "x-first-failed-at": 7, "x-journey": "lejos"},
    {"x-attempt": -3, "x-first-failed-at": None}, {"x-attempt": 1, "x-replays": "many"}])
def test_hostile_headers_are_replaced(hostile):
    assert failed(hostile) == failed(None)


TRAVELS = {"traceparent": "00-ab-cd-01", "tracestate": "a=1",
           "x-simulate": {"consumer": "email", "mode": "flaky", "number": 2}}


def test_tracing_and_the_simulated_failure_travel_with_copies_and_replays():
    copy = failed(TRAVELS)
    assert copy == failed(None) | TRAVELS
    assert retry.replay_headers(copy) == TRAVELS | {"x-attempt": 1, "x-replays": 1}


def test_a_replay_resets_the_attempt_and_increments_the_replays():
    once = retry.replay_headers(failed(failed(None), delay=None))
    assert once == {"x-attempt": 1, "x-replays": 1}
    assert retry.replay_headers(once)["x-replays"] == 2
    assert failed(once)["x-replays"] == 1


@pytest.mark.parametrize("name", [
    "x-death", "x-first-death-queue", "x-first-death-reason", "x-first-death-exchange",
    "x-last-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count",
    "CC", "BCC", "somebody-elses"])
def test_all_other_headers_stay_behind(name):
    """The broker acts on some of them; others may hold what pika cannot encode."""
    for value in ("x", ["x"], {"deep": [1.5, None]}):
        assert failed({name: value}) == failed(None)
        assert retry.replay_headers({name: value}) == retry.replay_headers(None)


@pytest.mark.parametrize("simulated", [
    "transient", 7, None, [1], {"mode": 1.5}, {"mode": {"deep": 1}}, {"mode": True}])
def test_an_x_simulate_of_another_form_stays_behind(simulated):
    assert failed({"x-simulate": simulated}) == failed(None)


def test_headers_always_fit_into_one_frame():
    """The broker closes the connection for a header frame of more than 131,072 bytes."""
    hostile = dict.fromkeys((*TRAVELS, *failed(None), "x-replays", "junk"), "x" * 60_000)
    hostile["x-journey"] = [{"attempt": 1, "failed_at": "x" * 60_000, "to": "x" * 60_000}] * 60
    hostile["x-simulate"] = dict.fromkeys(("consumer", "mode", "number", "junk"), "x" * 60_000)
    for headers in (failed(hostile, OSError("x" * 60_000)), retry.replay_headers(hostile)):
        assert len(b"".join(pika.BasicProperties(headers=headers).encode())) < 20_000


def test_a_copy_is_persistent_and_keeps_what_says_what_it_is_but_not_what_acts():
    original = pika.BasicProperties(
        content_type="a/b", content_encoding="c", message_id="7", type="t", app_id="shop",
        correlation_id="8", timestamp=9, delivery_mode=1, expiration="0", reply_to="q",
        user_id="u", priority=5, headers={"x": 1})
    assert retry.copied_properties(original, {"y": 2}) == pika.BasicProperties(
        content_type="a/b", content_encoding="c", message_id="7", type="t", app_id="shop",
        correlation_id="8", timestamp=9, delivery_mode=2, headers={"y": 2})


def test_a_copy_of_a_message_without_an_id_gets_one():
    copies = [retry.copied_properties(pika.BasicProperties(message_id=given), {}).message_id
              for given in (None, "")]
    assert all(copies) and len(set(copies)) == 2


@pytest.mark.parametrize("text", ["x" * 5000, "ñ" * 5000, "🎉" * 5000, "a" + "🎉" * 5000,
                                  "\ud800" * 5000])
def test_an_error_message_is_cut_to_one_kilobyte_of_whole_characters(text):
    cut = retry.cut(text)
    assert 1020 <= len(cut.encode()) <= 1024
    assert "\ufffd" not in cut


def test_a_short_error_message_is_kept():
    assert retry.cut("falló: ñandú 🎉") == "falló: ñandú 🎉"
