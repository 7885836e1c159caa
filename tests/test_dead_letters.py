"""dead_letter_consumer.py: views remove nothing, and a replay goes to the source queue only."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pika
import pytest

import dead_letter_consumer as script
from common import cli, config, console, events, publishing, retry, simulation
from common.connection import connect
from common.problems import BrokerUnavailable
from common.views import dead_letters, export, live
from tests.conftest import ROOT, WAIT_S, failed_headers, wait_until

SCRIPT = "dead_letter_consumer.py"
DLQ = "dead_letter_queue"
MAIN = ("email_queue", "loyalty_queue", "analytics_queue")
NO_NETWORK = OSError("sin red")
ALWAYS_FAILS = simulation.SimulatedFailure(simulation.ALWAYS)


@pytest.fixture
def kit(kit):
    """Return a Kit whose topology is declared."""
    kit.declare()
    return kit


def dead_letter(kit, consumer: str = "email", error: Exception = NO_NETWORK, headers=None,
                body=None) -> str:
    """Publish a dead letter as a consumer of the kit does. Return its event id."""
    event = events.user_created("Zoë Ñandú", "zoe@eco.com")
    first = failed_headers(headers, error, 0.3, consumer)
    last = failed_headers(first, error, None, consumer)
    kit.publish(body or events.encode(event), queue=DLQ,
                properties=publishing.properties(event, 2, last))
    return event.id


def objects(result) -> list[dict]:
    lines = result.out if hasattr(result, "out") else result.stdout.splitlines()
    return [json.loads(line) for line in lines]


def ids(result) -> list[str]:
    return [one["id"] for one in objects(result)]


def depths(kit) -> list[int]:
    return [kit.depth(queue) for queue in MAIN]


# ---------------------------------------------------------------- views


def test_the_live_view_shows_each_dead_letter_once_and_removes_none(kit):
    made = [dead_letter(kit) for _ in range(5)]
    for _ in range(2):
        view = kit.start(SCRIPT, "--json")
        wait_until(lambda: len(view.out) == 5, "five dead letters", view.text)
        late = dead_letter(kit)
        made.append(late)
        wait_until(lambda: late in "".join(view.out), "the late dead letter", view.text)
        assert view.interrupt() == 0
        kit.wait_for_depth(DLQ, len(made))
        assert Counter(ids(view)) == Counter(made)
        kit.messages(DLQ)
        made = [dead_letter(kit) for _ in range(5)]


def test_a_dead_letter_is_shown_with_user_error_attempts_and_history(kit):
    event_id = dead_letter(kit, "loyalty", ValueError("sin \x1b[2J saldo"), {"x-replays": 2})
    shown = kit.call_ok(SCRIPT, "--limit", "1", "--full").stdout
    assert f"mensaje fallido 1 · loyalty · UsuarioCreado · id {event_id[-8:]}\n" in shown
    assert "Zoë Ñandú <zoe@eco.com>" in shown and "ValueError: sin \ufffd[2J saldo" in shown
    assert "intentos  2, reenvíos 2" in shown
    assert re.search(r"  historial \d\d:\d\d:\d\d  ✘ intento 1\n"
                     r" {15}│ +0\.\d s en loyalty_queue\.retry\.300ms\n"
                     r" {12}\d\d:\d\d:\d\d  ✘ intento 2 → dead_letter_queue\n", shown)
    assert "\x1b" not in shown
    assert kit.call_ok(SCRIPT, "--limit", "1", "--id", event_id[-8:]).stdout == shown
    kit.wait_for_depth(DLQ, 1)


@pytest.fixture(params=["UTC", "America/Montevideo", "Pacific/Kiritimati"])
def zone(request, monkeypatch):
    """Set another time zone. Windows cannot change it."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset() if os.name != "nt" else None
    yield
    monkeypatch.undo()
    time.tzset() if os.name != "nt" else None


@pytest.mark.parametrize("failed_at", ["", "ayer", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
                                       "2026-11-24T10:00:00", "2026-11-24T10:00:00+99:00",
                                       "\x1b[2J"])
def test_a_history_with_invalid_times_is_still_drawn(failed_at, zone):
    stops = [{"attempt": 1, "failed_at": failed_at, "to": "\x1b[2J"},
             {"attempt": 2, "failed_at": events.now(), "to": DLQ}]
    for journey in (stops, stops[::-1], stops[:1]):
        found = dead_letters.DeadLetter(pika.BasicProperties(headers={"x-journey": journey}), b"")
        lines = live.lines(found, 1)
        [first] = [index for index, line in enumerate(lines) if line.startswith("  historial ")]
        assert len(lines) - first == 2 * len(journey) - 1
        assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("replays", [0, 1])
def test_a_dead_letter_is_one_line_that_a_terminal_of_80_columns_holds(monkeypatch, replays):
    event = events.user_created("Ana Prueba 4071", "ana4071@eco.com")
    headers = {"x-failed-at": events.now(), "x-attempt": 4, "x-source-queue": "analytics_queue",
               "x-error-type": "SimulatedFailure", "x-error-message": simulation.ALWAYS,
               "x-replays": replays}
    properties = pika.BasicProperties(message_id=event.id, headers=headers)
    found = dead_letters.DeadLetter(properties, events.encode(event))
    whole = live.one_line(found)
    start = f" {event.id[-8:]} Ana Prueba 4071 analytics  ×4 "
    assert whole[8:] == start + replays * "reenvíos 1 · " + "SimulatedFailure: falla siempre"
    monkeypatch.setattr(console, "width", lambda _: 80)
    assert live.one_line(found) == (whole if not replays else f"{whole[:78]}…")


def test_a_replay_names_the_filter_for_simulated_failures_that_come_back(kit):
    kit.call_ok("simulate_fail_publisher.py", "--mode", "permanent", "--consumer", "email")
    kit.call_ok("email_consumer_simple.py", "--limit", "1")
    mended = dead_letter(kit, "loyalty")
    shown = kit.call_ok(SCRIPT, "--replay", "--dry-run").stdout
    words = '--discard --error "falla siempre"'
    assert f"volverán aquí: 1. Bórralos con {words}, o reenvía uno con --id.\n" in shown
    dead_letter(kit, headers={"x-replays": 3}, error=ALWAYS_FAILS)
    assert "volverán aquí: 1. " in kit.call(SCRIPT, "--replay", "--dry-run").stdout  # worn out
    kit.call_ok(SCRIPT, "--discard", "--yes", "--error", "falla siempre")
    assert ids(kit.call_ok(SCRIPT, "--json", "--limit", "1")) == [mended]
    assert words not in kit.call_ok(SCRIPT, "--replay").stdout


def test_json_output_has_one_object_per_dead_letter(kit):
    event_id = dead_letter(kit, "email")
    dead_letter(kit, "analytics", body=b"\xff\xfe")
    readable, binary = objects(kit.call_ok(SCRIPT, "--json", "--limit", "2"))
    assert readable["id"] == event_id
    assert (readable["consumer"], readable["source_queue"]) == ("email", "email_queue")
    assert (readable["error_type"], readable["error_message"]) == ("OSError", "sin red")
    assert (readable["attempts"], readable["replays"]) == (2, 0)
    assert [stop["to"] for stop in readable["journey"]] == ["email_queue.retry.300ms", DLQ]
    assert events.decode(readable["body"].encode()).id == event_id
    assert (binary["consumer"], binary["body_base64"]) == ("analytics", "//4=")


def test_two_views_at_once_each_show_every_dead_letter_once(kit):
    made = [dead_letter(kit) for _ in range(40)]
    views = [kit.start(SCRIPT, "--json") for _ in range(2)]
    made += [dead_letter(kit) for _ in range(10)]
    for view in views:
        wait_until(lambda: len(view.out) >= 50, "50 dead letters", view.text)
    for view in views:
        assert view.interrupt() == 0
        assert Counter(ids(view)) == Counter(made)
    kit.wait_for_depth(DLQ, 50)


def test_the_view_shows_messages_that_another_consumer_returns(kit):
    made = [dead_letter(kit) for _ in range(4)]
    with kit.channel() as channel:
        for _ in range(3):
            channel.basic_get(DLQ)
        view = kit.start(SCRIPT, "--json")
        wait_until(lambda: len(view.out) == 1, "the message that is ready", view.text)
    wait_until(lambda: len(view.out) == 4, "the others", view.text, timeout=60)
    assert Counter(ids(view)) == Counter(made)


def test_a_live_view_returns_no_message_again_while_nothing_changes(kit, monkeypatch):
    """On RabbitMQ 3.10 each return counts towards the limit of the queue."""
    monkeypatch.setattr(live, "POLL_S", 0.2)
    made = [dead_letter(kit) for _ in range(3)]
    view = kit.call_ok(SCRIPT, "--json", "--idle-timeout", "2")
    assert ids(view) == made
    for properties, _ in kit.messages(DLQ):
        assert max(properties.headers.get(name, 0)
                   for name in ("x-delivery-count", "x-acquired-count")) == 1


def test_two_equal_dead_letters_are_both_shown(kit):
    event = events.user_created("Ana", "ana@eco.com")
    headers = {"x-error-type": "X", "x-source-queue": "email_queue"}
    for _ in range(2):
        kit.publish_event(event, queue=DLQ, headers=headers)
    assert ids(kit.call_ok(SCRIPT, "--json", "--limit", "2")) == [event.id] * 2


def test_a_limit_stops_the_view_and_filters_select(kit):
    dead_letter(kit, "email")
    chosen = dead_letter(kit, "loyalty", ValueError("saldo"))
    dead_letter(kit, "loyalty")
    assert ids(kit.call_ok(SCRIPT, "--json", "--consumer", "loyalty", "--error", "SALDO",
                           "--limit", "1")) == [chosen]
    # The view shows the last eight characters of an id.
    for wanted in (chosen, chosen[-8:]):
        assert ids(kit.call_ok(SCRIPT, "--json", "--id", wanted, "--limit", "1")) == [chosen]
    assert ids(kit.call_ok(SCRIPT, "--json", "--id", chosen[-7:], "--idle-timeout", "1")) == []
    assert len(ids(kit.call_ok(SCRIPT, "--json", "--limit", "2"))) == 2
    kit.wait_for_depth(DLQ, 3)


def test_the_view_waits_for_the_first_dead_letter(kit):
    view = kit.start(SCRIPT)
    view.wait_for("Mirando dead_letter_queue")
    dead_letter(kit)
    view.wait_for(" Zoë Ñandú       email      ×2 OSError: sin red")
    assert view.interrupt() == 0
    kit.wait_for_depth(DLQ, 1)


def test_a_summary_counts_by_error_and_consumer(kit):
    for consumer, error, count in (("email", OSError("x"), 3), ("email", ValueError("y"), 1),
                                   ("loyalty", OSError("z"), 2)):
        for _ in range(count):
            dead_letter(kit, consumer, error)
    assert objects(kit.call_ok(SCRIPT, "--summary", "--json")) == [
        {"error": "OSError", "consumer": "email", "count": 3},
        {"error": "OSError", "consumer": "loyalty", "count": 2},
        {"error": "ValueError", "consumer": "email", "count": 1}]
    lines = [line.split() for line in kit.call_ok(SCRIPT, "--summary").stdout.splitlines()]
    assert ["OSError", "email", "3"] in lines and lines[-1] == ["total:", "6"]
    kit.wait_for_depth(DLQ, 6)


# ---------------------------------------------------------------- exporting


def test_an_export_contains_every_dead_letter_and_removes_none(kit):
    made = [dead_letter(kit) for _ in range(3)]
    others = kit.state.parent / "fallidos.jsonl.tmp"
    others.write_text("de otro programa")
    kit.call_ok(SCRIPT, "--export", "fallidos.jsonl")
    lines = (kit.state.parent / "fallidos.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == made
    kit.wait_for_depth(DLQ, 3)
    assert list(kit.state.parent.glob("*.tmp")) == [others]
    assert others.read_text() == "de otro programa"


def test_an_export_never_overwrites_a_file(kit):
    dead_letter(kit)
    (kit.state.parent / "fallidos.jsonl").write_text("de ayer")
    refused = kit.call(SCRIPT, "--export", "fallidos.jsonl")
    assert refused.returncode == 1 and "ya existe" in refused.stderr
    assert (kit.state.parent / "fallidos.jsonl").read_text() == "de ayer"
    assert [file.name for file in kit.state.parent.iterdir()
            if "fallidos" in file.name] == ["fallidos.jsonl"]


def test_an_export_never_overwrites_a_file_of_another_terminal(tmp_path):
    target = tmp_path / "fallidos.jsonl"

    def none_but_another_terminal_is_quicker():
        target.write_text("los suyos")
        yield from ()

    with pytest.raises(config.KitError, match="ya existe") as refused:
        export.write(target, none_but_another_terminal_is_quicker())
    assert refused.value.exit_code == 1
    assert target.read_text() == "los suyos" and list(tmp_path.iterdir()) == [target]


def test_ctrl_c_in_the_midst_of_a_look_ends_it_with_130_and_removes_nothing(kit, monkeypatch):
    for _ in range(3):
        dead_letter(kit)

    def interrupted(looking, *_):
        def broken(_):
            raise AssertionError("docs/facts.md, pika 9")

        looking._channel.basic_cancel = broken
        raise KeyboardInterrupt

    monkeypatch.setattr(dead_letters.DeadLetters, "_on_message", interrupted)
    assert kit.call(SCRIPT, "--summary").returncode == 130
    kit.wait_for_depth(DLQ, 3)


@pytest.mark.parametrize("target, code", [
    ("no-such-folder/x.jsonl", 78), ("a-file/x.jsonl", 78), ("x" * 300, 78),
    (".", 1), ("/", 1), ("", 1)])
def test_an_export_that_cannot_be_written_leaves_no_file(kit, target, code):
    dead_letter(kit)
    (kit.state.parent / "a-file").write_text("x")
    before = set(kit.state.parent.rglob("*"))
    refused = kit.call(SCRIPT, "--export", target)
    assert refused.returncode == code, refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert set(kit.state.parent.rglob("*")) == before
    kit.wait_for_depth(DLQ, 1)


# ---------------------------------------------------------------- replaying


def test_a_replay_goes_to_the_source_queue_only_as_a_first_attempt(kit):
    event_id = dead_letter(kit, "loyalty", headers={"traceparent": "abc", "x-replays": 1})
    kit.call_ok(SCRIPT, "--replay")
    assert kit.depth(DLQ) == 0
    assert depths(kit) == [0, 1, 0]
    [(properties, body)] = kit.messages("loyalty_queue")
    assert properties.headers == {"x-attempt": 1, "x-replays": 2, "traceparent": "abc"} | (
        # Set by the broker itself.
        {"x-delivery-count": 0} if "x-delivery-count" in properties.headers else {})
    assert (properties.message_id, properties.delivery_mode) == (event_id, 2)
    assert events.decode(body).id == event_id


def test_a_dry_run_prints_its_actions_and_changes_nothing(kit):
    made = [dead_letter(kit), dead_letter(kit)]
    for action, outcome in (("--replay", "would_replay"), ("--discard", "would_discard")):
        results = objects(kit.call_ok(SCRIPT, action, "--dry-run", "--json"))
        assert [(one["id"], one["outcome"]) for one in results] == [
            (event_id, outcome) for event_id in made]
    kit.wait_for_depth(DLQ, 2)
    assert depths(kit) == [0, 0, 0]


@pytest.mark.parametrize("action", [["--replay"], ["--discard", "--yes"]])
def test_filters_and_a_limit_select_and_the_others_stay(kit, action):
    by_id = dead_letter(kit, "email")
    for consumer, error in (("email", OSError("x")), ("loyalty", ValueError("saldo")),
                            ("analytics", OSError("saldo"))):
        dead_letter(kit, consumer, error)
    assert ids(kit.call_ok(SCRIPT, *action, "--json", "--id", by_id)) == [by_id]
    kit.wait_for_depth(DLQ, 3)
    assert len(ids(kit.call_ok(SCRIPT, *action, "--json", "--error", "saldo", "--limit", "1"))) == 1
    kit.wait_for_depth(DLQ, 2)
    kit.call_ok(SCRIPT, *action, "--consumer", "analytics")
    kit.wait_for_depth(DLQ, 1)
    assert objects(kit.call_ok(SCRIPT, "--json", "--limit", "1"))[0]["consumer"] == "email"
    assert depths(kit) == ([1, 1, 1] if action == ["--replay"] else [0, 0, 0])


def test_a_rate_limits_the_replays_per_second(kit):
    for _ in range(4):
        dead_letter(kit)
    started_at = time.monotonic()
    kit.call_ok(SCRIPT, "--replay", "--rate", "4")
    assert time.monotonic() - started_at > 0.75  # three pauses of a quarter of a second
    assert depths(kit) == [4, 0, 0]


def test_a_dead_letter_without_its_queue_stays_and_the_others_are_replayed(kit):
    stuck, replayable = dead_letter(kit, "email"), dead_letter(kit, "loyalty")
    with kit.channel() as channel:
        channel.queue_delete("email_queue")
    result = kit.call(SCRIPT, "--replay", "--json")
    assert result.returncode == 3
    assert {one["id"]: one["outcome"] for one in objects(result)} == {
        stuck: "refused", replayable: "replayed"}
    kit.wait_for_depth(DLQ, 1)
    assert ids(kit.call_ok(SCRIPT, "--json", "--limit", "1")) == [stuck]
    assert kit.depth("loyalty_queue") == 1


def test_a_dead_letter_is_removed_only_after_its_copy_is_confirmed(kit):
    """A full queue nacks the copy."""
    with kit.channel() as channel:
        channel.queue_delete("email_queue")
        channel.queue_declare("email_queue", durable=True,
                              arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    for _ in range(3):
        dead_letter(kit, "email")
    result = kit.call(SCRIPT, "--replay", "--json")
    assert result.returncode == 3
    assert Counter(one["outcome"] for one in objects(result)) == {"replayed": 1, "refused": 2}
    kit.wait_for_depth(DLQ, 2)
    assert kit.depth("email_queue") == 1


def test_a_dead_letter_of_unknown_origin_stays_and_is_reported(kit):
    kit.publish_event(queue=DLQ)
    kit.publish_event(queue=DLQ, headers={"x-source-queue": "somebody_elses_queue"})
    result = kit.call(SCRIPT, "--replay", "--json")
    assert result.returncode == 3
    assert [one["outcome"] for one in objects(result)] == ["unknown_queue"] * 2
    kit.wait_for_depth(DLQ, 2)


@pytest.mark.parametrize("mode", ["transient", "permanent"])
def test_a_replay_ends_although_every_message_fails_again(kit, mode):
    kit = kit.using(delays="0.2")
    kit.call_ok("simulate_fail_publisher.py", "--count", "4", "--mode", mode,
                "--consumer", "loyalty")
    running = kit.start_consumer("loyalty", "--json")
    kit.wait_for_depth(DLQ, 4)
    result = kit.call_ok(SCRIPT, "--replay", "--rate", "2", "--json")
    assert Counter(ids(result)) == Counter(set(ids(result))) and len(ids(result)) == 4
    kit.wait_for_depth(DLQ, 4)
    assert running.interrupt() == 0
    kit.wait_for_depth(DLQ, 4)
    assert [properties.headers["x-replays"] for properties, _ in kit.messages(DLQ)] == [1] * 4


def test_a_message_that_fails_again_under_a_slow_clock_is_replayed_once(kit):
    first, second = dead_letter(kit), dead_letter(kit, "loyalty")
    running = kit.start(SCRIPT, "--replay", "--rate", "1", "--json")
    wait_until(lambda: first in ids(running), "the first replay", running.text)
    [(properties, body)] = kit.messages("email_queue")
    headers = failed_headers(properties.headers, OSError("sin red"), None,
                             failed_at="2020-01-01T00:00:00.000Z")
    kit.publish(body, queue=DLQ, properties=pika.BasicProperties(
        message_id=first, delivery_mode=2, headers=headers))
    assert running.end() == 0
    assert ids(running) == [first, second]
    assert kit.depth(DLQ) == 1 and kit.depth("email_queue") == 0


def test_a_failure_that_a_fast_clock_dates_in_the_future_is_seen(kit):
    kit.publish_event(queue=DLQ, headers=failed_headers(
        None, NO_NETWORK, None, failed_at="2999-01-01T00:00:00.000Z"))
    assert kit.call_ok(SCRIPT, "--summary").stdout.splitlines()[-1] == "total: 1"


def test_ctrl_c_in_the_midst_of_a_replay_takes_the_answers_under_way(kit, monkeypatch):
    """What was sent leaves the dead letters: else the next replay would send it again."""
    def interrupt(*arguments):
        if next(calls) == 11:
            raise KeyboardInterrupt
        return why_not(*arguments)

    for _ in range(20):
        dead_letter(kit)
    why_not, calls = script.why_not, itertools.count(1)
    monkeypatch.setattr(script, "why_not", interrupt)
    result = kit.call(SCRIPT, "--replay")
    assert result.returncode == 130 and result.stdout.count("reenviado a su cola") == 10
    kit.wait_for_depth(DLQ, 10)
    assert kit.depth("email_queue") == 10


def test_ctrl_c_while_pika_works_ends_a_replay_with_130_and_sends_nothing_twice(kit, monkeypatch):
    def interrupted(*arguments):
        if next(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        on_message(*arguments)

    for _ in range(20):
        dead_letter(kit)
    on_message, calls = dead_letters.DeadLetters._on_message, itertools.count(1)
    monkeypatch.setattr(dead_letters.DeadLetters, "_on_message", interrupted)
    assert kit.call(SCRIPT, "--replay").returncode == 130
    kit.wait_for_depth(DLQ, 20 - kit.depth("email_queue"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
def test_a_replay_whose_output_is_gone_removes_all_that_it_sent(kit):
    for _ in range(20):
        dead_letter(kit)
    with Path("/dev/full").open("w") as full:
        assert kit.run(SCRIPT, "--replay", stdout=full).returncode == 78
    sent = kit.depth("email_queue")
    assert sent
    kit.wait_for_depth(DLQ, 20 - sent)


def test_a_replay_includes_what_another_consumer_held_at_its_start(kit):
    made = [dead_letter(kit) for _ in range(10)]
    with kit.channel() as channel:
        hold(kit, channel, 8)
        running = start_patiently(kit, "--replay", "--json")
        wait_until(lambda: len(running.out) == 2, "the two ready messages", running.text)
    assert running.end() == 0
    assert Counter(ids(running)) == Counter(made)
    assert (kit.depth(DLQ), kit.depth("email_queue")) == (0, 10)


def test_a_summary_includes_what_another_consumer_held_at_its_start(kit):
    for _ in range(5):
        dead_letter(kit)
    with kit.channel() as channel:
        hold(kit, channel, 3)
        running = start_patiently(kit, "--summary")
        wait_until(lambda: kit.depth(DLQ) == 0, "it to hold the two ready messages")
    assert running.end() == 0
    assert running.out[-1] == "total: 5"


def start_patiently(kit, *flags: str):
    """Start the script with time for the test to look, and to let go of what it holds."""
    patient = kit.state.parent / "patient.py"
    patient.write_text("import dead_letter_consumer as script\n"
                       "from common.views import dead_letters\n"
                       "dead_letters.PATIENCE_S = 6\n"
                       "dead_letters.ALONE_PATIENCE_S = 0\n"
                       "script.cli.run(script.main)\n", encoding="utf-8")
    return kit.start(str(patient), *flags, PYTHONPATH=str(ROOT))


def hold(kit, channel, count: int) -> None:
    """Consume some, as a program of somebody else does, and ack none."""
    before = kit.depth(DLQ)
    channel.basic_qos(prefetch_count=count)
    channel.basic_consume(DLQ, lambda *_: None)
    wait_until(lambda: kit.depth(DLQ) == before - count, "it to hold them")


def test_a_replay_during_a_live_view_sends_every_dead_letter_once(kit):
    made = [dead_letter(kit) for _ in range(150)]
    view = kit.start(SCRIPT, "--json")
    wait_until(lambda: view.out, "the view to print", view.text)
    result = kit.run_ok(SCRIPT, "--replay", "--json")  # as patient as usual
    assert Counter(ids(result)) == Counter(made)
    kit.wait_for_depth("email_queue", 150)
    assert kit.depth(DLQ) == 0
    late = dead_letter(kit)
    wait_until(lambda: late in "".join(view.out), "the view to continue", view.text)
    assert view.interrupt() == 0
    assert max(Counter(ids(view)).values()) == 1


def test_a_live_view_shows_a_message_that_fails_again(kit, monkeypatch):
    """The depth is the same before and after: only the next look of all finds it."""
    monkeypatch.setattr(live, "LOOK_AGAIN_S", 0.5)
    kit.call_ok("simulate_fail_publisher.py", "--mode", "permanent", "--consumer", "loyalty")
    kit.start_consumer("loyalty")
    shown = []

    def show(found, *_):
        shown.append(found)
        if len(shown) == 1:
            kit.start(SCRIPT, "--replay")

    monkeypatch.setattr(live, "show", show)
    kit.call_ok(SCRIPT, "--limit", "2", "--idle-timeout", str(WAIT_S))
    assert [found.replays for found in shown] == [0, 1]
    assert shown[0].message_id == shown[1].message_id


# ---------------------------------------------------------------- discarding


def test_a_discard_asks_and_no_answer_means_no(kit):
    dead_letter(kit)
    for typed in (None, "", "n\n", "\n"):
        result = kit.call(SCRIPT, "--discard", typed=typed)
        assert result.returncode == 1 and "No se borra nada" in result.stderr
    kit.wait_for_depth(DLQ, 1)
    result = kit.call(SCRIPT, "--discard", "--limit", "1", typed="s\n")
    assert result.returncode == 0 and "¿Borrarlos?" in result.stdout
    assert kit.depth(DLQ) == 0


def test_a_discard_with_a_limit_deletes_those_of_the_question_in_whatever_order_they_return(kit):
    made = {dead_letter(kit) for _ in range(60)}
    result = kit.call_ok(SCRIPT, "--discard", "--limit", "5", typed="s\n")
    assert result.stdout.splitlines()[-1] == "mensajes fallidos: 5 · borrado: 5"
    kit.wait_for_depth(DLQ, 55)
    assert {properties.message_id for properties, _ in kit.messages(DLQ)} < made


def test_a_discard_with_yes_does_not_ask(kit):
    made = [dead_letter(kit) for _ in range(3)]
    results = objects(kit.call_ok(SCRIPT, "--discard", "--yes", "--json"))
    assert [(one["id"], one["outcome"]) for one in results] == [
        (event_id, "discarded") for event_id in made]
    assert kit.depth(DLQ) == 0 and depths(kit) == [0, 0, 0]


def test_a_discard_deletes_only_what_the_question_was_about(kit):
    """Not what comes while a person thinks, even if it is of the same event."""
    event = events.user_created("Ana", "ana@eco.com")
    asked = [dead_letter(kit), kit.publish_event(event, queue=DLQ).id]
    keyboard, terminal = os.openpty()
    process = subprocess.Popen([sys.executable, str(ROOT / SCRIPT), "--discard"],
                               env=kit.environment(), stdin=terminal, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    try:
        shown = ""
        while "[s/N]" not in shown:
            shown += process.stdout.read(1) or pytest.fail(shown)
        assert "Mensajes fallidos que se borrarían para siempre: 2. ¿Borrarlos?" in shown
        late = [kit.publish_event(event, queue=DLQ).id if equal else dead_letter(kit)
                for equal in (True, False, True, False, False)]
        os.write(keyboard, b"s\n")
        assert "borrado: 2" in process.communicate(timeout=30)[0]
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
        os.close(keyboard)
        os.close(terminal)
    kit.wait_for_depth(DLQ, 5)
    assert asked[1] == late[0]
    assert [properties.message_id for properties, _ in kit.messages(DLQ)] == late


# ---------------------------------------------------------------- in bulk, corrected, once more


def test_more_than_a_window_is_looked_at_and_replayed(kit, monkeypatch):
    """A consumer holds a window without an ack at most; here it is ten."""
    monkeypatch.setattr(dead_letters, "WINDOW", 10)
    made = [dead_letter(kit, "loyalty") for _ in range(35)]
    with connect(kit.settings) as connection, dead_letters.DeadLetters(
            connection, kit.settings) as there:
        assert [found.message_id for found in there] == made
    kit.wait_for_depth(DLQ, 35)
    result = kit.call_ok(SCRIPT, "--replay")
    assert "mensajes fallidos: 35 · reenviado a su cola: 35" in result.stdout
    assert result.stdout.count("reenviado a su cola · loyalty") == 20  # no line for each
    assert (kit.depth(DLQ), kit.depth("loyalty_queue")) == (0, 35)


def test_what_dies_after_the_start_is_counted_and_left_alone(kit):
    made = [dead_letter(kit, "loyalty") for _ in range(3)]
    running = kit.start(SCRIPT, "--replay", "--rate", "0.4")
    running.wait_for(f"reenviado a su cola · loyalty · id {made[0][-8:]}")
    late = [dead_letter(kit), dead_letter(kit)]
    assert running.end() == 0
    assert running.out[-1] == ("mensajes fallidos: 3 · reenviado a su cola: 3"
                               " · 2 más llegaron después")
    kit.wait_for_depth(DLQ, 2)
    assert [properties.message_id for properties, _ in kit.messages(DLQ)] == late


def test_a_second_terminal_waits_for_its_turn_also_when_the_first_is_killed(kit):
    for _ in range(2):
        dead_letter(kit, "loyalty")
    first = kit.start(SCRIPT, "--replay", "--rate", "0.01")
    first.wait_for("reenviado a su cola")
    second = kit.start(SCRIPT, "--summary")
    second.wait_for("Otra terminal está con los mensajes fallidos")
    first.kill()
    assert second.end() == 0
    assert second.out[-1] == "total: 1"


def test_a_look_that_the_broker_breaks_off_gives_its_turn_back(kit):
    def break_off():
        with (connect(kit.settings) as connection,
              dead_letters.DeadLetters(connection, kit.settings) as there):
            for _ in there:
                there._channel.queue_declare("no-such-queue", passive=True)

    dead_letter(kit)
    with pytest.raises(BrokerUnavailable) as kept:  # so is the connection: nothing collects it
        break_off()
    kit.wait_for_depth(DLQ, 1)
    with (connect(kit.settings) as another,
          dead_letters.DeadLetters(another, kit.settings, wait=False) as there):
        assert len(list(there)) == 1
    assert "NOT_FOUND" in str(kept.value)


@pytest.mark.parametrize("since, count", [("90m", 1), ("3h", 2), ("7d", 3)])
def test_since_chooses_by_the_time_of_the_failure(kit, since, count):
    for hours in (1, 2, 30):
        at = cli.moment(f"{hours}h")
        kit.publish_event(queue=DLQ, headers=failed_headers(None, NO_NETWORK, None, failed_at=at))
    for moment in (since, cli.moment(since)):
        assert kit.call_ok(SCRIPT, "--summary", "--since", moment).stdout.splitlines()[-1] == (
            f"total: {count}")


def test_an_edited_export_is_replayed_once_and_its_history_says_so(kit, tmp_path):
    kept = dead_letter(kit, "email")
    broken = kit.publish_event(queue=DLQ, headers=failed_headers(
        None, retry.PermanentError("sin arreglo"), None, "loyalty"))
    file = tmp_path / "fallidos.jsonl"
    kit.call_ok(SCRIPT, "--export", str(file))
    exported = file.read_text(encoding="utf-8")
    assert broken.nombre in exported  # as it is, for an editor
    corrected = exported.replace(broken.nombre, "Corregida")
    file.write_text(corrected.splitlines()[1], encoding="utf-8")
    result = kit.call_ok(SCRIPT, "--replay", "--from", str(file), "--json")
    assert [(one["id"], one["outcome"]) for one in objects(result)] == [(broken.id, "replayed")]
    [(properties, body)] = kit.messages("loyalty_queue")
    assert (events.decode(body).nombre, properties.message_id) == ("Corregida", broken.id)
    assert properties.headers["x-edited-at"] <= events.now()
    file.write_text(corrected, encoding="utf-8")
    again = kit.call(SCRIPT, "--replay", "--from", str(file), "--json")
    assert again.returncode == 3
    assert {one["id"]: one["outcome"] for one in objects(again)} == {
        kept: "replayed", broken.id: "gone"}
    [(properties, body)] = kit.messages("email_queue")
    assert "x-edited-at" not in properties.headers  # nobody changed it
    assert (kit.depth(DLQ), kit.depth("loyalty_queue")) == (0, 0)


def test_an_export_with_line_separators_in_its_text_is_replayed(kit, tmp_path):
    kit.publish_event(queue=DLQ, headers=failed_headers(
        None, Exception("uno\u2028dos\u0085tres"), None))
    kit.call_ok(SCRIPT, "--export", str(tmp_path / "fallidos.jsonl"))
    kit.call_ok(SCRIPT, "--replay", "--from", str(tmp_path / "fallidos.jsonl"))
    assert (kit.depth(DLQ), kit.depth("email_queue")) == (0, 1)


def test_that_a_body_was_edited_stays_known_when_it_fails_again(kit):
    headers = failed_headers({"x-edited-at": "2026-11-24T10:00:00.000Z"}, NO_NETWORK, None)
    kit.publish_event(queue=DLQ, headers=headers)
    shown = kit.run_ok(SCRIPT, "--full", "--limit", "1", TZ="UTC").stdout
    assert "corregido 24/11 10:00:00" in shown


@pytest.mark.parametrize("change, why", [
    (lambda line: line.replace("zoe@eco.com", "zoe"), "La dirección de correo no vale"),
    (lambda line: line[:-9], "no es de --export"), (lambda line: "[]", "no es de --export"),
    (lambda line: "[" * 200_000, "no es de --export"),
    (lambda line: line.replace('"consumer": "email"', '"consumer": []'), "no es de --export"),
    (lambda line: line.replace('\\"id\\":\\"0', '\\"id\\":\\"1'), "el id del cuerpo")])
def test_a_file_with_a_wrong_line_replays_nothing(kit, tmp_path, change, why):
    for _ in range(2):
        dead_letter(kit)
    file = tmp_path / "fallidos.jsonl"
    kit.call_ok(SCRIPT, "--export", str(file))
    good, other = file.read_text(encoding="utf-8").splitlines()
    file.write_text(f"{good}\n{change(other)}\n", encoding="utf-8")
    refused = kit.call(SCRIPT, "--replay", "--from", str(file))
    assert refused.returncode == 65
    assert f"La línea 2 de {file} no vale: " in refused.stderr and why in refused.stderr
    assert ".." not in refused.stderr
    kit.wait_for_depth(DLQ, 2)
    assert depths(kit) == [0, 0, 0]


def test_an_empty_file_replays_nothing(kit, tmp_path):
    dead_letter(kit)
    (tmp_path / "none.jsonl").touch()
    kit.call_ok(SCRIPT, "--replay", "--from", str(tmp_path / "none.jsonl"))
    kit.wait_for_depth(DLQ, 1)


def test_what_was_replayed_often_is_left_alone_unless_forced(kit):
    worn = dead_letter(kit, headers={"x-replays": 3})
    fresh = dead_letter(kit, headers={"x-replays": 2})
    result = kit.call(SCRIPT, "--replay", "--json")
    assert result.returncode == 3
    assert {one["id"]: one["outcome"] for one in objects(result)} == {
        worn: "worn_out", fresh: "replayed"}
    assert objects(kit.call_ok(SCRIPT, "--replay", "--dry-run", "--max-replays", "4", "--json"))[0][
        "outcome"] == "would_replay"
    kit.call_ok(SCRIPT, "--replay", "--force")
    assert (kit.depth(DLQ), kit.depth("email_queue")) == (0, 2)


@pytest.mark.parametrize("arguments", [["--summary", "--force"], ["--discard", "--from", "x"],
                                       ["--summary", "--max-replays", "1"],
                                       ["--replay", "--from", "x", "--id", "12345678"],
                                       ["--replay", "--since", "ayer"]])
def test_flags_that_do_not_go_together_are_refused(kit, arguments):
    assert kit.call(SCRIPT, *arguments).returncode == 2


# ---------------------------------------------------------------- dead letters made by the broker


def rejected(channel) -> None:
    channel.basic_reject(channel.basic_get("email_queue")[0].delivery_tag, requeue=False)


def returned_too_often(channel) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        method, _, _ = channel.basic_get("email_queue")
        if method:
            channel.basic_reject(method.delivery_tag, requeue=True)
        elif channel.queue_declare(DLQ, passive=True).method.message_count:
            return


@pytest.mark.parametrize("how, reason", [(rejected, "rejected"),
                                         (returned_too_often, "delivery_limit")])
@pytest.mark.parametrize("headers", [None, failed_headers(
    None, OSError("sin red"), 0.3, failed_at="2025-11-24T08:00:00.000Z")],
                         ids=["first try", "second try"])
def test_a_dead_letter_made_by_the_broker_is_shown_and_replayed(kit, how, reason, headers):
    event = kit.publish_event(queue="email_queue", headers=headers)
    with kit.channel() as channel:
        how(channel)
    kit.wait_for_depth(DLQ, 1)
    [shown] = objects(kit.call_ok(SCRIPT, "--json", "--limit", "1"))
    assert (shown["id"], shown["consumer"], shown["source_queue"], shown["error_type"]) == (
        event.id, "email", "email_queue", reason)
    assert shown["error_message"] and shown["failed_at"].startswith(events.now()[:11])
    kit.call_ok(SCRIPT, "--replay", "--limit", "1")
    assert kit.depth(DLQ) == 0 and depths(kit) == [1, 0, 0]
    kit.call_ok("email_consumer_simple.py", "--limit", "1")
    assert kit.report("email_consumer_simple.py") == {"emails": 1}


def test_a_dead_letter_with_an_invalid_body_is_replayed_unchanged(kit):
    kit.publish(b"\x00\xff", queue="loyalty_queue",
                properties=pika.BasicProperties(delivery_mode=2))
    kit.call_ok("loyalty_consumer_simple.py", "--limit", "1")
    kit.wait_for_depth(DLQ, 1)
    [shown] = objects(kit.call_ok(SCRIPT, "--json", "--limit", "1"))
    assert (shown["type"], shown["error_type"]) == ("evento inválido", "MalformedEvent")
    assert shown["body_base64"] == "AP8="
    kit.call_ok(SCRIPT, "--replay", "--limit", "1")
    assert [body for _, body in kit.messages("loyalty_queue")] == [b"\x00\xff"]
