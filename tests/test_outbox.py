"""The outbox of level 3: written before sending, deleted on confirm, sent again by --resume."""

import argparse
import json
import os
import re

import pytest

from common import events
from common.events import encode, user_created
from common.exchange import CONSUMERS
from common.outbox import Outbox
from common.views.tally import Tally
from tests.conftest import wait_until
from tools.node import free_port

PUBLISHER = "events_publisher_levels.py"
USER = ("--level", "3", "--nombre", "Juan", "--email", "juan@eco.com")


@pytest.fixture
def outbox(tmp_path):
    yield from open_outbox(tmp_path)


@pytest.fixture
def other_outbox(tmp_path):
    """Open the outbox a second time, as another publisher does."""
    yield from open_outbox(tmp_path)


def open_outbox(folder):
    one = Outbox(folder / "state")
    yield one
    one.db.close()


def new_events(count: int) -> dict[str, events.Event]:
    return {event.id: event for event in (user_created(f"P{number}", "p@eco.com")
                                          for number in range(count))}


def pairs(written: dict[str, events.Event]) -> list[tuple[str, bytes]]:
    return [(event.id, encode(event)) for event in written.values()]


def test_written_events_stay_in_order_until_they_are_confirmed(outbox, other_outbox):
    written = new_events(1200)
    outbox.write(pairs(written))
    assert [event._replace(body=b"") for event in other_outbox.left()] == list(written.values())
    first, *rest = written
    other_outbox.write([], [first])
    assert [event.id for event in outbox.left()] == rest
    assert outbox.count() == 1199


def test_events_can_be_deleted_and_rewritten_while_they_are_read(outbox, other_outbox):
    written = new_events(1200)
    outbox.write(pairs(written))
    seen = []
    for event in outbox.left():
        seen.append(event.id)
        other_outbox.write(pairs(new_events(1)))  # another publisher's event is not read
        outbox.write([(event.id, encode(event))])  # writing an event again adds no row
        outbox.write([], [event.id])
    assert seen == list(written)
    assert outbox.count() == 1200


def test_a_batch_is_written_whole_or_not_at_all(outbox, other_outbox):
    written = new_events(3)

    def failing_batch():
        yield from pairs(written)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        outbox.write(failing_batch())
    outbox.db.close()
    assert other_outbox.count() == 0


@pytest.fixture
def offline_kit(kit):
    """Return the same Kit, with the same state, for a broker that is away."""
    return kit.using(url=f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F")


def ids_of(result) -> set[str]:
    return {json.loads(line)["id"] for line in result.stdout.splitlines()}


def test_resume_sends_unconfirmed_events_under_the_same_ids(kit, offline_kit):
    result = offline_kit.call(PUBLISHER, *USER, "--count", "3", "--timeout", "1", "--json")
    assert result.returncode == 69
    assert "Eventos sin confirmar: 3" in result.stderr
    sent = kit.call_ok(PUBLISHER, "--resume", "--json")
    ids = ids_of(result)
    assert ids_of(sent) == ids and len(ids) == 3
    for queue in CONSUMERS.values():
        assert {properties.message_id for properties, _ in kit.messages(queue)} == ids
    again = kit.call_ok(PUBLISHER, "--resume")
    assert again.stdout == "No queda nada por enviar.\n"


@pytest.mark.parametrize("name", ["nope", "x" * 300])
def test_resume_with_a_mistyped_folder_exits_with_78_and_does_not_create_it(kit, name):
    folder = kit.state.parent / name
    result = kit.call(PUBLISHER, "--resume", "--state-dir", str(folder))
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.startswith(f"No hay nada que leer: la carpeta {folder} no existe, o falta")
    assert not os.path.exists(folder)


def test_events_that_the_password_kept_from_the_broker_are_reported_and_kept(kit, outbox):
    """The refusal may come when only some of the three events are begun."""
    stranger = kit.using(url=kit.url.replace("guest:guest", "guest:wrong"))
    ended = stranger.call(PUBLISHER, *USER, "--count", "3", "--json")
    assert (ended.returncode, ended.stdout) == (78, "")
    left = {event.id for event in outbox.left()}
    assert f"Eventos sin confirmar: {len(left)}. " in ended.stderr and left
    resumed = stranger.call(PUBLISHER, "--resume")
    assert resumed.returncode == 78 and "Eventos sin confirmar: " in resumed.stderr
    assert {event.id for event in outbox.left()} == left
    assert ids_of(kit.call_ok(PUBLISHER, "--resume", "--json")) == left
    assert {properties.message_id for properties, _ in kit.messages("email_queue")} == left


def test_confirmed_events_are_not_sent_again(kit):
    kit.call_ok(PUBLISHER, *USER, "--count", "450")
    kit.wait_for_depth("email_queue", 450)
    assert kit.call_ok(PUBLISHER, "--resume").stdout == "No queda nada por enviar.\n"


def test_level_3_exits_with_3_and_keeps_its_events_when_no_queue_takes_them(kit):
    with kit.channel() as channel:
        running = kit.start(PUBLISHER, *USER, "--count", "600", "--rate", "100", "--json")
        running.wait_for('"confirmed"', count=50)
        # Unbind instead of delete: 3.10 may close the publisher's channel for a deleted queue.
        for queue in CONSUMERS.values():
            channel.queue_unbind(queue, "user_events", "")
    assert running.end() == 3
    ids = {outcome: {answer["id"] for answer in map(json.loads, running.out)
                     if answer["outcome"] == outcome} for outcome in ("confirmed", "returned")}
    returned = ids["returned"]
    assert returned and len(returned | ids["confirmed"]) == 600 == len(running.out)
    assert [line for line in running.err if "no llegó a ninguna cola" in line]
    running.wait_for(f"Eventos sin confirmar: {len(returned)}. ")
    sent = kit.call_ok(PUBLISHER, "--resume", "--json")
    assert ids_of(sent) == returned
    assert {properties.message_id for properties, _ in kit.messages("email_queue")} >= returned


def test_events_that_all_came_back_are_no_missing_broker():
    tally = Tally(argparse.Namespace(level=3, count=1, timeout=1))
    tally.add("00000000", "returned")
    assert tally.exit_code() == 3


def test_another_publisher_that_writes_is_waited_for_ten_seconds(outbox):
    assert outbox.db.execute("PRAGMA busy_timeout").fetchone() == (10_000,)


def test_a_rate_slower_than_the_timeout_is_no_silence_of_the_broker(kit):
    kit.declare()
    sent = kit.call_ok(PUBLISHER, *USER, "--count", "2", "--rate", "0.2", "--timeout", "4.5")
    assert "enviados 2, confirmados 2, " in sent.stdout


def test_a_wrong_password_ends_a_slow_publisher_before_its_timeout(kit):
    stranger = kit.using(url=kit.url.replace("guest:guest", "guest:wrong"))
    ended = stranger.call(PUBLISHER, *USER, "--count", "999", "--rate", "10", timeout=20)
    assert ended.returncode == 78 and "RABBITMQ_URL" in ended.stderr


def test_a_publisher_reports_only_its_own_events_as_unconfirmed(offline_kit, outbox):
    for count in ("3", "2"):
        result = offline_kit.call(PUBLISHER, *USER, "--count", count, "--timeout", "1")
        assert result.returncode == 69
        assert f"Eventos sin confirmar: {count}." in result.stderr
    assert outbox.count() == 5
    left = {event.id for event in outbox.left()}
    result = offline_kit.call(PUBLISHER, "--resume", "--timeout", "1", "--json")
    assert "Eventos sin confirmar: 5." in result.stderr  # a resumed event is its own, too
    assert ids_of(result) == left


def test_after_ctrl_c_the_account_adds_up_and_names_what_the_outbox_has(kit, outbox):
    """Answers under way, and a full queue that nacks: no answer is counted twice or forgotten."""
    kit.run_ok("setup_queues.py")
    with kit.channel() as channel:
        channel.queue_declare("full", durable=True, arguments={
            "x-max-length": 50, "x-overflow": "reject-publish"})
        channel.queue_bind("full", "user_events")
    running = kit.start(PUBLISHER, *USER, "--count", "5000", "--rate", "200", "--json")
    running.wait_for('"confirmed"')  # the other queues may be slower than the full one
    wait_until(lambda: kit.depth("full") == 50 and outbox.count() > 100, "some that are refused",
               running.text)
    assert running.interrupt() == 130
    sent, confirmed, returned, refused, silent = map(int, re.findall(
        r" (\d+)", " ".join(running.wait_for("enviados ")).partition(" ·")[0]))
    assert confirmed > 0 and refused > 0 and returned == 0
    assert sent == confirmed + refused + silent
    assert outbox.count() == refused + silent
    running.wait_for(f"Eventos sin confirmar: {refused + silent}. ")


def test_resume_sends_the_stored_bytes(kit, outbox):
    """A later version of the kit may have written fields that this one does not know."""
    event = user_created("Zoë", "zoe@eco.com")
    fields = json.loads(encode(event)) | {"extra": [1.50, "\u00e9"], "otro": None}
    body = json.dumps(fields, indent=1, ensure_ascii=True).encode()
    outbox.write([(event.id, body)])
    assert ids_of(kit.call_ok(PUBLISHER, "--resume", "--json")) == {event.id}
    for queue in CONSUMERS.values():
        [(properties, received)] = kit.messages(queue)
        assert received == body
        assert (properties.message_id, properties.delivery_mode) == (event.id, 2)
