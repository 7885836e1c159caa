"""Looking at dead letters destroys none; a replay goes to the source queue alone; broker-made letters too."""

import json
import os
import re
import time
from collections import Counter

import pika
import pytest

import dead_letter_consumer
from common import events, exchange, retry
from tests.conftest import wait_until

SCRIPT = "dead_letter_consumer.py"
DLQ = "dead_letter_queue"
MAIN = ("email_queue", "loyalty_queue", "analytics_queue")


@pytest.fixture
def kit(kit):
    """The kit with its topology declared."""
    with kit.channel() as channel:
        exchange.declare(channel, kit.settings)
    return kit


def letter(kit, consumer: str = "email", error: Exception = OSError("sin red"), headers=None, body=None) -> str:
    """Put one dead letter there, as a consumer of the kit would; its id."""
    event = events.user_created("Zoë Ñandú", "zoe@eco.com")
    first = retry.failed_headers(headers, error, retry.Step(0.3), consumer=consumer, to=f"{consumer}_queue.retry.300ms",
                                 source_queue=f"{consumer}_queue", failed_at=events.now())
    last = retry.failed_headers(first, error, retry.Step(None), consumer=consumer, to=DLQ,
                                source_queue=f"{consumer}_queue", failed_at=events.now())
    kit.publish(body or events.encode(event), queue=DLQ, properties=events.properties(event, 2, last))
    return event.id


def objects(ended) -> list[dict]:
    lines = ended.out if hasattr(ended, "out") else ended.stdout.splitlines()
    return [json.loads(line) for line in lines]


def ids(ended) -> list[str]:
    return [one["id"] for one in objects(ended)]


def depths(kit) -> list[int]:
    return [kit.depth(queue) for queue in MAIN]


# ---------------------------------------------------------------- looking


def test_the_live_view_shows_each_letter_once_and_takes_none_twice_over(kit):
    made = [letter(kit) for _ in range(5)]
    for _ in range(2):
        view = kit.start(SCRIPT, "--json")
        wait_until(lambda: len(view.out) == 5, "five letters", view.text)
        late = letter(kit)
        made.append(late)
        wait_until(lambda: late in "".join(view.out), "the late one", view.text)
        assert view.interrupt() == 0
        kit.wait_for_depth(DLQ, len(made))
        assert Counter(ids(view)) == Counter(made)
        kit.messages(DLQ)
        made = [letter(kit) for _ in range(5)]


def test_a_letter_is_shown_with_what_whose_why_how_often_and_its_journey(kit):
    event_id = letter(kit, "loyalty", ValueError("sin \x1b[2J saldo"), {"x-replays": 2})
    shown = kit.done(SCRIPT, "--limit", "1").stdout
    assert f"carta 1 · loyalty · UsuarioCreado · evento {event_id[-8:]}\n" in shown
    assert "Zoë Ñandú <zoe@eco.com>" in shown and "ValueError: sin \ufffd[2J saldo" in shown
    assert "intentos  2, repeticiones 2" in shown
    assert re.search(r"  camino    \d\d:\d\d:\d\d  ✘ intento 1\n {15}│ +0\.\d s en loyalty_queue\.retry\.300ms\n"
                     r" {12}\d\d:\d\d:\d\d  ✘ intento 2 → dead_letter_queue\n", shown)
    assert "\x1b" not in shown
    kit.wait_for_depth(DLQ, 1)


@pytest.fixture(params=["UTC", "America/Montevideo", "Pacific/Kiritimati"])
def zone(request, monkeypatch):
    """Local time elsewhere (Windows knows one only)."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset() if os.name != "nt" else None
    yield
    monkeypatch.undo()
    time.tzset() if os.name != "nt" else None


@pytest.mark.parametrize("failed_at", ["", "ayer", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-24T10:00:00",
                                       "2026-11-24T10:00:00+99:00", "\x1b[2J"])
def test_a_journey_with_times_that_are_none_is_drawn_all_the_same(failed_at, zone):
    stops = [{"attempt": 1, "failed_at": failed_at, "to": "\x1b[2J"}, {"attempt": 2, "failed_at": events.now(), "to": DLQ}]
    for journey in (stops, stops[::-1], stops[:1]):
        lines = dead_letter_consumer.timeline(retry.journey_of({"x-journey": journey}))
        assert len(lines) == 2 * len(journey) - 1 and "\x1b" not in "".join(lines)


def test_json_is_one_object_a_letter_with_the_body(kit):
    event_id = letter(kit, "email")
    letter(kit, "analytics", body=b"\xff\xfe")
    readable, binary = objects(kit.done(SCRIPT, "--json", "--limit", "2"))
    assert (readable["id"], readable["consumer"], readable["source_queue"]) == (event_id, "email", "email_queue")
    assert (readable["error_type"], readable["error_message"], readable["attempts"], readable["replays"]) == (
        "OSError", "sin red", 2, 0)
    assert [stop["to"] for stop in readable["journey"]] == ["email_queue.retry.300ms", DLQ]
    assert events.decode(readable["body"].encode()).id == event_id
    assert (binary["consumer"], binary["body_base64"]) == ("analytics", "//4=")


def test_two_views_at_once_each_show_every_letter_once(kit):
    made = [letter(kit) for _ in range(40)]
    views = [kit.start(SCRIPT, "--json", "--idle-timeout", "5") for _ in range(2)]
    made += [letter(kit) for _ in range(10)]
    for view in views:
        assert view.end() == 0
        assert Counter(ids(view)) == Counter(made)
    kit.wait_for_depth(DLQ, 50)


def test_the_view_finds_what_somebody_else_was_holding(kit):
    made = [letter(kit) for _ in range(4)]
    with kit.channel() as channel:
        for _ in range(3):
            channel.basic_get(DLQ)
        view = kit.start(SCRIPT, "--json")
        wait_until(lambda: len(view.out) == 1, "the one that is free", view.text)
    wait_until(lambda: len(view.out) == 4, "the others", view.text, timeout=8)
    assert Counter(ids(view)) == Counter(made)


def test_two_equal_letters_are_two(kit):
    event, headers = events.user_created("Ana", "ana@eco.com"), {"x-error-type": "X", "x-source-queue": "email_queue"}
    for _ in range(2):
        kit.publish_event(event, queue=DLQ, headers=headers)
    assert ids(kit.done(SCRIPT, "--json", "--idle-timeout", "2")) == [event.id] * 2


def test_a_limit_ends_the_view_and_a_filter_chooses(kit):
    letter(kit, "email")
    chosen = letter(kit, "loyalty", ValueError("saldo"))
    letter(kit, "loyalty")
    assert ids(kit.done(SCRIPT, "--json", "--consumer", "loyalty", "--error", "SALDO", "--limit", "1")) == [chosen]
    assert ids(kit.done(SCRIPT, "--json", "--id", chosen, "--idle-timeout", "2")) == [chosen]
    assert ids(kit.done(SCRIPT, "--json", "--id", chosen[-8:], "--idle-timeout", "2")) == [chosen]  # as it is shown
    assert ids(kit.done(SCRIPT, "--json", "--id", chosen[-7:], "--idle-timeout", "2")) == []
    assert len(ids(kit.done(SCRIPT, "--json", "--limit", "2"))) == 2
    kit.wait_for_depth(DLQ, 3)


def test_the_view_waits_for_the_first_letter(kit):
    view = kit.start(SCRIPT)
    view.wait_for("Mirando dead_letter_queue")
    letter(kit)
    view.wait_for("carta 1 · email")
    assert view.interrupt() == 0
    kit.wait_for_depth(DLQ, 1)


def test_a_summary_counts_by_error_and_consumer(kit):
    for consumer, error, count in (("email", OSError("x"), 3), ("email", ValueError("y"), 1), ("loyalty", OSError("z"), 2)):
        for _ in range(count):
            letter(kit, consumer, error)
    assert objects(kit.done(SCRIPT, "--summary", "--json")) == [
        {"error": "OSError", "consumer": "email", "count": 3}, {"error": "OSError", "consumer": "loyalty", "count": 2},
        {"error": "ValueError", "consumer": "email", "count": 1}]
    lines = [line.split() for line in kit.done(SCRIPT, "--summary").stdout.splitlines()]
    assert ["OSError", "email", "3"] in lines and lines[-1] == ["total:", "6"]
    kit.wait_for_depth(DLQ, 6)


# ---------------------------------------------------------------- copying


def test_an_export_holds_every_letter_and_leaves_them_there(kit):
    made = [letter(kit) for _ in range(3)]
    kit.done(SCRIPT, "--export", "cartas.jsonl")
    lines = (kit.state.parent / "cartas.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == made
    kit.wait_for_depth(DLQ, 3)
    assert not list(kit.state.parent.glob("*.tmp"))


def test_an_export_never_overwrites(kit):
    letter(kit)
    (kit.state.parent / "cartas.jsonl").write_text("de ayer")
    refused = kit.run(SCRIPT, "--export", "cartas.jsonl")
    assert refused.returncode == 1 and "ya existe" in refused.stderr
    assert (kit.state.parent / "cartas.jsonl").read_text() == "de ayer"
    assert [file.name for file in kit.state.parent.iterdir() if "cartas" in file.name] == ["cartas.jsonl"]


@pytest.mark.parametrize("target, code", [
    ("no-such-folder/x.jsonl", 78), ("a-file/x.jsonl", 78), ("x" * 300, 78), (".", 1), ("/", 1), ("", 1)])
def test_an_export_that_cannot_be_written_says_so_and_leaves_nothing(kit, target, code):
    letter(kit)
    (kit.state.parent / "a-file").write_text("x")
    before = set(kit.state.parent.rglob("*"))
    refused = kit.run(SCRIPT, "--export", target)
    assert refused.returncode == code, refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert set(kit.state.parent.rglob("*")) == before
    kit.wait_for_depth(DLQ, 1)


# ---------------------------------------------------------------- replaying


def test_a_replay_goes_to_the_source_queue_alone_as_a_first_try_of_the_next_round(kit):
    event_id = letter(kit, "loyalty", headers={"trace": "abc", "x-replays": 1})
    kit.done(SCRIPT, "--replay")
    assert kit.depth(DLQ) == 0
    assert depths(kit) == [0, 1, 0]
    [(properties, body)] = kit.messages("loyalty_queue")
    assert properties.headers == {"x-attempt": 1, "x-replays": 2, "trace": "abc"} | (
        {"x-delivery-count": 0} if "x-delivery-count" in properties.headers else {})  # the broker's own
    assert (properties.message_id, properties.delivery_mode) == (event_id, 2)
    assert events.decode(body).id == event_id


def test_a_dry_run_says_what_it_would_do_and_does_nothing(kit):
    made = [letter(kit), letter(kit)]
    for action, outcome in (("--replay", "would_replay"), ("--discard", "would_discard")):
        told = objects(kit.done(SCRIPT, action, "--dry-run", "--json"))
        assert [(one["id"], one["outcome"]) for one in told] == [(each, outcome) for each in made]
    kit.wait_for_depth(DLQ, 2)
    assert depths(kit) == [0, 0, 0]


@pytest.mark.parametrize("action", [["--replay"], ["--discard", "--yes"]])
def test_filters_and_a_limit_choose_and_the_others_stay(kit, action):
    by_id = letter(kit, "email")
    for consumer, error in (("email", OSError("x")), ("loyalty", ValueError("saldo")), ("analytics", OSError("saldo"))):
        letter(kit, consumer, error)
    assert ids(kit.done(SCRIPT, *action, "--json", "--id", by_id)) == [by_id]
    kit.wait_for_depth(DLQ, 3)
    assert len(ids(kit.done(SCRIPT, *action, "--json", "--error", "saldo", "--limit", "1"))) == 1
    kit.wait_for_depth(DLQ, 2)
    kit.done(SCRIPT, *action, "--consumer", "analytics")
    kit.wait_for_depth(DLQ, 1)
    assert objects(kit.done(SCRIPT, "--json", "--limit", "1"))[0]["consumer"] == "email"
    assert depths(kit) == ([1, 1, 1] if action == ["--replay"] else [0, 0, 0])


def test_a_rate_bounds_the_replays_a_second(kit):
    for _ in range(4):
        letter(kit)
    running = kit.start(SCRIPT, "--replay", "--rate", "2", "--json")
    came_at: list[float] = []
    while len(came_at) < 4:
        wait_until(lambda: len(running.out) > len(came_at), "the next replay", running.text)
        came_at += [time.monotonic()] * (len(running.out) - len(came_at))
    assert 1.3 < came_at[-1] - came_at[0] < 2.5  # three pauses of half a second
    assert running.end() == 0
    assert depths(kit) == [4, 0, 0]


def test_a_letter_whose_queue_is_gone_stays_and_the_others_go(kit):
    stuck, goes = letter(kit, "email"), letter(kit, "loyalty")
    with kit.channel() as channel:
        channel.queue_delete("email_queue")
    ended = kit.run(SCRIPT, "--replay", "--json")
    assert ended.returncode == 3
    assert {one["id"]: one["outcome"] for one in objects(ended)} == {stuck: "refused", goes: "replayed"}
    kit.wait_for_depth(DLQ, 1)
    assert ids(kit.done(SCRIPT, "--json", "--limit", "1")) == [stuck]
    assert kit.depth("loyalty_queue") == 1


def test_a_letter_goes_only_when_the_source_queue_has_taken_its_copy(kit):
    """A full queue answers with a nack."""
    with kit.channel() as channel:
        channel.queue_delete("email_queue")
        channel.queue_declare("email_queue", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    for _ in range(3):
        letter(kit, "email")
    ended = kit.run(SCRIPT, "--replay", "--json")
    assert ended.returncode == 3
    assert Counter(one["outcome"] for one in objects(ended)) == {"replayed": 1, "refused": 2}
    kit.wait_for_depth(DLQ, 2)
    assert kit.depth("email_queue") == 1


def test_a_letter_of_unknown_origin_stays_and_is_told(kit):
    kit.publish_event(queue=DLQ)
    kit.publish_event(queue=DLQ, headers={"x-source-queue": "somebody_elses_queue"})
    ended = kit.run(SCRIPT, "--replay", "--json")
    assert ended.returncode == 3
    assert [one["outcome"] for one in objects(ended)] == ["unknown_queue"] * 2
    kit.wait_for_depth(DLQ, 2)


@pytest.mark.parametrize("mode", ["transient", "permanent"])
def test_a_replay_ends_when_what_was_there_is_done_though_all_die_again(kit, mode):
    kit.done("simulate_fail_publisher.py", "--count", "4", "--mode", mode, "--consumer", "loyalty")
    running = kit.start_consumer("loyalty", "--json")
    kit.wait_for_depth(DLQ, 4)
    ended = kit.done(SCRIPT, "--replay", "--rate", "2", "--json")
    assert Counter(ids(ended)) == Counter(set(ids(ended))) and len(ids(ended)) == 4
    kit.wait_for_depth(DLQ, 4)
    assert running.interrupt() == 0
    kit.wait_for_depth(DLQ, 4)
    assert [properties.headers["x-replays"] for properties, _ in kit.messages(DLQ)] == [1] * 4


def test_a_letter_that_dies_again_where_the_clock_lags_behind_is_not_replayed_again(kit):
    first, second = letter(kit), letter(kit, "loyalty")
    running = kit.start(SCRIPT, "--replay", "--rate", "0.5", "--json")
    wait_until(lambda: first in ids(running), "the first replay", running.text)
    [(properties, body)] = kit.messages("email_queue")
    headers = retry.failed_headers(properties.headers, OSError("sin red"), retry.Step(None), consumer="email", to=DLQ,
                                   source_queue="email_queue", failed_at="2020-01-01T00:00:00.000Z")
    kit.publish(body, queue=DLQ, properties=pika.BasicProperties(message_id=first, delivery_mode=2, headers=headers))
    assert running.end() == 0
    assert ids(running) == [first, second]
    assert kit.depth(DLQ) == 1 and kit.depth("email_queue") == 0


def test_a_replay_takes_what_somebody_else_was_holding_when_it_began(kit):
    made = [letter(kit) for _ in range(10)]
    with kit.channel() as channel:
        for _ in range(8):
            channel.basic_get(DLQ)
        running = kit.start(SCRIPT, "--replay", "--json")
        wait_until(lambda: len(running.out) == 2, "the two that are free", running.text)
    assert running.end() == 0
    assert Counter(ids(running)) == Counter(made)
    assert (kit.depth(DLQ), kit.depth("email_queue")) == (0, 10)


def test_a_summary_counts_what_somebody_else_was_holding_when_it_began(kit):
    for _ in range(5):
        letter(kit)
    with kit.channel() as channel:
        for _ in range(3):
            channel.basic_get(DLQ)
        running = kit.start(SCRIPT, "--summary")
        wait_until(lambda: kit.depth(DLQ) == 0, "it to hold the two that are free")
    assert running.end() == 0
    assert running.out[-1] == "total: 5"


def test_a_replay_while_a_live_view_runs_takes_every_letter_once(kit):
    made = [letter(kit) for _ in range(150)]
    view = kit.start(SCRIPT, "--json")
    wait_until(lambda: view.out, "it to look", view.text)
    ended = kit.done(SCRIPT, "--replay", "--json")
    assert Counter(ids(ended)) == Counter(made)
    kit.wait_for_depth("email_queue", 150)
    assert kit.depth(DLQ) == 0
    late = letter(kit)
    wait_until(lambda: late in "".join(view.out), "the view to go on", view.text)
    assert view.interrupt() == 0
    assert max(Counter(ids(view)).values()) == 1


def test_a_live_view_shows_a_letter_again_when_it_died_again(kit):
    kit.done("simulate_fail_publisher.py", "--mode", "permanent", "--consumer", "loyalty")
    kit.start_consumer("loyalty")
    view = kit.start(SCRIPT, "--json")
    wait_until(lambda: len(view.out) == 1, "the letter", view.text)
    kit.done(SCRIPT, "--replay", "--limit", "1")
    wait_until(lambda: len(view.out) == 2, "the letter again", view.text, timeout=8)
    assert [one["replays"] for one in objects(view)] == [0, 1]


# ---------------------------------------------------------------- discarding


def test_a_discard_asks_and_no_answer_is_a_no(kit):
    letter(kit)
    for ended in (kit.run(SCRIPT, "--discard"), kit.run_at_terminal("n\n", SCRIPT, "--discard")):
        assert ended.returncode == 1
        assert "No se borra nada" in ended.stdout + (ended.stderr or "")
    kit.wait_for_depth(DLQ, 1)
    ended = kit.run_at_terminal("s\n", SCRIPT, "--discard", "--limit", "1")
    assert ended.returncode == 0 and "¿Borrarlas?" in ended.stdout
    assert kit.depth(DLQ) == 0


def test_a_discard_with_yes_does_not_ask(kit):
    made = [letter(kit) for _ in range(3)]
    told = objects(kit.done(SCRIPT, "--discard", "--yes", "--json"))
    assert [(one["id"], one["outcome"]) for one in told] == [(each, "discarded") for each in made]
    assert kit.depth(DLQ) == 0 and depths(kit) == [0, 0, 0]


# ---------------------------------------------------------------- letters made by the broker itself


def rejected(channel) -> None:
    channel.basic_reject(channel.basic_get("email_queue")[0].delivery_tag, requeue=False)


def returned_too_often(channel) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        method, _, _ = channel.basic_get("email_queue")
        if method:
            channel.basic_reject(method.delivery_tag, requeue=True)
        elif channel.queue_declare(DLQ, passive=True).method.message_count:
            return


@pytest.mark.parametrize("how, reason", [(rejected, "rejected"), (returned_too_often, "delivery_limit")])
@pytest.mark.parametrize("headers", [None, retry.failed_headers(
    None, OSError("sin red"), retry.Step(0.3), consumer="email", source_queue="email_queue",
    to="email_queue.retry.300ms", failed_at="2025-11-24T08:00:00.000Z")], ids=["first try", "second try"])
def test_a_letter_of_the_broker_is_shown_with_its_reason_and_can_be_replayed(kit, how, reason, headers):
    event = kit.publish_event(queue="email_queue", headers=headers)
    with kit.channel() as channel:
        how(channel)
    kit.wait_for_depth(DLQ, 1)
    [shown] = objects(kit.done(SCRIPT, "--json", "--limit", "1"))
    assert (shown["id"], shown["consumer"], shown["source_queue"], shown["error_type"]) == (
        event.id, "email", "email_queue", reason)
    assert shown["error_message"] and shown["failed_at"].startswith(events.now()[:11])
    kit.done(SCRIPT, "--replay", "--limit", "1")
    assert kit.depth(DLQ) == 0 and depths(kit) == [1, 0, 0]
    kit.done("email_consumer_simple.py", "--limit", "1")
    assert kit.report("email_consumer_simple.py") == {"emails": 1}


def test_a_letter_without_an_id_and_with_a_foreign_body_is_shown_and_replayed_as_it_is(kit):
    kit.publish(b"\x00\xff", queue="loyalty_queue", properties=pika.BasicProperties(delivery_mode=2))
    kit.done("loyalty_consumer_simple.py", "--limit", "1")
    kit.wait_for_depth(DLQ, 1)
    [shown] = objects(kit.done(SCRIPT, "--json", "--limit", "1"))
    assert (shown["type"], shown["error_type"], shown["body_base64"]) == ("evento inválido", "MalformedEvent", "AP8=")
    kit.done(SCRIPT, "--replay", "--limit", "1")
    assert [body for _, body in kit.messages("loyalty_queue")] == [b"\x00\xff"]
