"""The outbox of level 3: on disk before it is sent, crossed out when it is confirmed, sent again by --resume."""

import json

import pytest

from common import events
from common.events import encode, user_created
from common.exchange import CONSUMERS
from common.outbox import Outbox
from tools.node import free_port

PUBLISHER = "events_publisher_levels.py"
USER = ("--level", "3", "--nombre", "Juan", "--email", "juan@eco.com")


@pytest.fixture
def outbox(tmp_path):
    yield from opened(tmp_path)


@pytest.fixture
def neighbour(tmp_path):
    """Another publisher's."""
    yield from opened(tmp_path)


def opened(folder):
    one = Outbox(folder / "state")
    yield one
    one.close()


def some(count: int) -> dict[str, events.Event]:
    return {event.id: event for event in (user_created(f"P{number}", "p@eco.com") for number in range(count))}


def pairs(written: dict[str, events.Event]) -> list[tuple[str, bytes]]:
    return [(event.id, encode(event)) for event in written.values()]


def test_what_was_written_is_left_in_its_order_until_it_is_confirmed(outbox, neighbour):
    written = some(1200)
    outbox.write(pairs(written))
    assert list(neighbour.left()) == list(written.values())
    first, *rest = written
    neighbour.write([], [first])
    assert [event.id for event in outbox.left()] == rest
    assert outbox.count() == 1199


def test_what_is_left_may_be_crossed_out_and_written_again_while_it_is_read(outbox, neighbour):
    written = some(1200)
    outbox.write(pairs(written))
    seen = []
    for event in outbox.left():
        seen.append(event.id)
        neighbour.write(pairs(some(1)))  # somebody else publishes all the while: no business of ours
        outbox.write([(event.id, encode(event))])  # what is sent again is written only once
        outbox.write([], [event.id])
    assert seen == list(written)
    assert outbox.count() == 1200


def test_a_batch_is_written_whole_or_not_at_all(outbox, neighbour):
    written = some(3)

    def breaks_off():
        yield from pairs(written)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        outbox.write(breaks_off())
    outbox.close()
    assert neighbour.count() == 0


def test_what_found_no_broker_is_sent_by_resume_under_the_same_ids(kit):
    nobody = kit.using(url=f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F")
    ended = nobody.run(PUBLISHER, *USER, "--count", "3", "--timeout", "1", "--json")
    assert ended.returncode == 69
    assert "Eventos sin confirmar: 3" in ended.stderr
    sent = kit.done(PUBLISHER, "--resume", "--json")
    ids = {json.loads(line)["id"] for line in ended.stdout.splitlines()}
    assert {json.loads(line)["id"] for line in sent.stdout.splitlines()} == ids and len(ids) == 3
    for queue in CONSUMERS.values():
        assert {properties.message_id for properties, _ in kit.messages(queue)} == ids
    again = kit.done(PUBLISHER, "--resume")
    assert again.stdout == "No queda nada por enviar.\n"


def test_what_was_confirmed_is_not_sent_again(kit):
    kit.done(PUBLISHER, *USER, "--count", "450")
    kit.wait_for_depth("email_queue", 450)
    assert kit.done(PUBLISHER, "--resume").stdout == "No queda nada por enviar.\n"


def test_what_no_queue_took_is_kept_too(kit):
    running = kit.start(PUBLISHER, *USER, "--count", "300", "--rate", "100", "--json")
    running.wait_for('"confirmed"', count=50)
    with kit.channel() as channel:
        for queue in CONSUMERS.values():
            channel.queue_unbind(queue, "user_events", "")
    assert running.end() == 3
    returned = {answer["id"] for answer in map(json.loads, running.out) if answer["outcome"] == "returned"}
    sent = kit.done(PUBLISHER, "--resume", "--json")
    assert {json.loads(line)["id"] for line in sent.stdout.splitlines()} == returned
    assert {properties.message_id for properties, _ in kit.messages("email_queue")} >= returned
