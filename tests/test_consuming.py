"""The Consumer class in this process, when the broker closes its connection."""

import gc
import signal
from contextlib import contextmanager
from itertools import count

import pytest

from common import cli, events, exchange, publishing
from common import consuming as verbs
from common.config import KitError
from common.consuming import Consumer
from common.database import Stopped
from common.subscription import Delivery
from tests.conftest import wait_until

QUEUE, EVENTS = "loyalty_queue", 50


@contextmanager
def consuming(kit):
    """Yield a Consumer, its loop and the first event, which is under way in it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options = cli.consumer_options("", ["--url", kit.url, "--state-dir", str(kit.state)])
    with kit.channel() as channel:
        exchange.declare(channel, options.settings, QUEUE)
        channel.confirm_delivery()
        for event in [events.user_created("Juan", "juan@eco.com") for _ in range(EVENTS)]:
            channel.basic_publish("", QUEUE, events.encode(event), publishing.properties(event, 2))
    try:
        with Consumer("loyalty", options) as consumer:
            consumer.queue_declare(QUEUE)
            loop = consumer.basic_consume(QUEUE, prefetch_count=EVENTS)
            yield consumer, loop, next(loop)
            loop.close()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def after_a_reconnect(kit, node):
    """The same, on a connection that is gone: the loop has fetched all events again."""
    with consuming(kit) as (consumer, loop, begun):
        wait_for_all(kit)
        reconnect(kit, node)
        yield consumer, loop, begun


def wait_for_all(kit) -> None:
    wait_until(lambda: len(in_memory(kit)) == EVENTS, "all events to be prefetched",
               lambda: f"{len(in_memory(kit))} are")


def reconnect(kit, node) -> None:
    """Have the broker close the connections; wait until all events are prefetched on a new one."""
    before = {id(one.channel) for one in in_memory(kit)}
    node.ctl("close_all_connections", "-p", kit.url.rpartition("/")[2], "a test")

    def again() -> list[Delivery]:
        return [one for one in in_memory(kit) if id(one.channel) not in before]
    wait_until(lambda: len(again()) == EVENTS, "all events to be prefetched again",
               lambda: f"{len(again())} are, of {len(in_memory(kit))}")


def in_memory(kit) -> list[Delivery]:
    """What came from the virtual host of this test, and not from that of another."""
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, Delivery)
            and kit.url.endswith("/" + one.channel.connection.params.virtual_host)]


def test_events_prefetched_on_a_lost_connection_leave_the_memory(kit, shared_node):
    with after_a_reconnect(kit, shared_node) as (_, _, begun):
        assert [one for one in in_memory(kit) if not one.redelivered] == [begun]


def test_an_ack_for_a_lost_connection_is_not_sent_on_the_next_one(kit, shared_node, capsys):
    with after_a_reconnect(kit, shared_node) as (consumer, loop, begun):
        consumer.basic_ack(begun, consumer.once(begun, done))
        again = next(loop)  # finishes the batch of the first
        assert (again.tag, again.event_id) == (begun.tag, begun.event_id)
        assert consumer.ledger.is_done(begun.event_id)
        assert capsys.readouterr().out.count("Sin conexión") == 1
    kit.wait_for_depth(QUEUE, EVENTS)


def test_a_loop_that_forgets_the_verb_of_an_event_is_told_so(kit):
    with consuming(kit) as (consumer, loop, begun):
        consumer.once(begun, done)
        with pytest.raises(KitError, match="sin verbo: llama a basic_ack"):
            next(loop)
    kit.wait_for_depth(QUEUE, EVENTS)


def test_an_event_whose_connection_is_lost_while_the_batch_before_it_ends_is_not_begun(
        kit, shared_node, monkeypatch):
    with after_a_reconnect(kit, shared_node) as (consumer, loop, begun):
        finish, calls = consumer.finish, count(1)

        def finish_slowly():
            finish()
            if next(calls) == 2:  # the next event is out of the inbox, but not begun
                reconnect(kit, shared_node)

        monkeypatch.setattr(consumer, "finish", finish_slowly)
        consumer.basic_ack(begun, consumer.once(begun, done))
        assert next(loop).channel.is_open
        assert next(calls) > 2


def test_a_batch_that_is_old_takes_no_more(kit, monkeypatch):
    monkeypatch.setattr(verbs, "BATCH_S", -1)
    with consuming(kit) as (consumer, loop, begun):
        wait_for_all(kit)
        consumer.basic_ack(begun, consumer.once(begun, done))
        next(loop)
        assert not consumer.ledger.db.in_transaction


def test_nothing_is_locked_while_a_service_is_called(kit, monkeypatch):
    monkeypatch.setattr(verbs, "BATCH_S", 60)
    with consuming(kit) as (consumer, loop, begun):
        wait_for_all(kit)
        consumer.basic_ack(begun, consumer.once(begun, done))
        second, locked = next(loop), []
        assert consumer.ledger.db.in_transaction
        consumer.once(second, done, lambda event: locked.append(consumer.ledger.db.in_transaction))
        consumer.basic_ack(second, "done")
    assert locked == [False]


def test_no_service_is_called_for_an_event_that_comes_again(kit, shared_node):
    with after_a_reconnect(kit, shared_node) as (consumer, _, begun):
        called: list = []
        with pytest.raises(ConnectionError):
            consumer.once(begun, done, called.append)
        assert not called


def test_a_copy_that_a_full_queue_refuses_is_sent_again(kit, monkeypatch):
    publish_again = publishing.ConfirmedChannel.publish_again

    def make_room_first(copies, message):
        channel.queue_purge("full")
        publish_again(copies, message)

    monkeypatch.setattr(publishing.ConfirmedChannel, "publish_again", make_room_first)
    with consuming(kit) as (consumer, _, begun), kit.channel() as channel:
        channel.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        kit.publish(b"it is full", queue="full")
        consumer.retry(begun, OSError("sin red"))
        begun.copy = ("full", begun.copy[1])
        consumer.finish()
        assert [body for _, body in kit.messages("full")] == [begun.body]
    kit.wait_for_depth(QUEUE, EVENTS - 1)


def test_a_stop_acks_nothing_whose_copy_has_no_confirm(kit, monkeypatch):
    monkeypatch.setattr(verbs, "STOP_TIMEOUT_S", -1)
    with consuming(kit) as (consumer, _, begun):
        consumer.dead_letter(begun, ValueError("no"))
        consumer.stop_wanted = True
        with pytest.raises(Stopped):
            consumer.finish()
    kit.wait_for_depth(QUEUE, EVENTS)


def test_the_end_of_a_redelivered_event_deletes_the_count_of_its_starts(kit, shared_node):
    with after_a_reconnect(kit, shared_node) as (consumer, loop, begun):
        consumer.basic_ack(begun, consumer.once(begun, done))
        for fails in (False, True):
            again = next(loop)
            consumer.once(again, done)
            assert starts(consumer) == [(1,)]
            if fails:
                consumer.retry(again, OSError("sin red"))
            else:
                consumer.basic_ack(again, "done")
            consumer.finish()
            assert starts(consumer) == []


def done(event, db) -> str:
    return "done"


def starts(consumer) -> list[tuple]:
    return consumer.ledger.db.execute("SELECT starts FROM started").fetchall()
