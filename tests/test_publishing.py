"""How the publisher tracks its messages, on a fake channel."""

from types import SimpleNamespace

import pika
import pytest
from pika.adapters.select_connection import IOLoop

from common import config, connection, publishing
from common.publishing import CONFIRMED, RETURNED, Message, Publisher

Ack, Nack = pika.spec.Basic.Ack, pika.spec.Basic.Nack


class Channel:
    """Keeps the published messages. The test sends the broker's answers."""

    def __init__(self, publisher):
        self.connection, self.published = object(), []
        publisher.link._connection = self.connection
        publisher._channel_opened(self)
        self.ready(None)

    def add_on_return_callback(self, callback):
        self.on_return = callback

    def confirm_delivery(self, on_confirm, callback):
        self.on_confirm, self.ready = on_confirm, callback

    def basic_publish(self, exchange, routing_key, body, properties, mandatory):
        assert mandatory
        self.published.append(body)

    def answer(self, kind, tag, multiple=False):
        self.on_confirm(SimpleNamespace(method=kind(tag, multiple)))

    def give_back(self, message):
        method = SimpleNamespace(routing_key=message.routing_key)
        self.on_return(self, method, message.properties, message.body)


@pytest.fixture
def publisher():
    ioloop = IOLoop()
    yield Publisher(ioloop, config.load({}), lambda channel: None, pytest.fail, quiet=True)
    ioloop.close()


def message(number: int) -> Message:
    return Message("", "q", b"%d" % number, pika.BasicProperties(message_id=str(number)))


def send(publisher, *numbers):
    """Send messages and return the list that receives the answers."""
    publisher.link.open = lambda: None
    answers = []
    for number in numbers:
        publisher.send(message(number), lambda sent, outcome: answers.append((sent.body, outcome)))
    return answers


def test_a_multiple_ack_confirms_all_messages_up_to_its_tag(publisher):
    channel = Channel(publisher)
    answers = send(publisher, 1, 2, 3)
    channel.answer(Ack, 2, multiple=True)
    assert answers == [(b"1", CONFIRMED), (b"2", CONFIRMED)]
    assert publisher.open_count() == 1


def test_unconfirmed_messages_of_a_lost_connection_are_sent_again_in_order(publisher):
    send(publisher, 1, 2, 3)
    Channel(publisher).answer(Ack, 1)
    publisher._lost()
    assert Channel(publisher).published == [b"2", b"3"]


def test_a_late_ack_of_an_old_connection_confirms_nothing(publisher):
    answers = send(publisher, 1)
    old = Channel(publisher)
    publisher._lost()
    new = Channel(publisher)
    old.answer(Ack, 1)
    old.give_back(message(1))
    assert answers == []
    new.answer(Ack, 1)
    assert answers == [(b"1", CONFIRMED)]


def test_a_channel_of_an_old_connection_sends_nothing(publisher):
    send(publisher, 1)
    publisher._lost()
    stale = Channel(publisher)
    publisher._lost()
    new = Channel(publisher)
    stale.ready(None)
    send(publisher, 2)
    assert new.published == [b"1", b"2"]


def test_a_return_affects_only_its_own_message(publisher):
    channel = Channel(publisher)
    answers = send(publisher, 1, 2)
    channel.give_back(message(2))
    channel.answer(Ack, 2, multiple=True)
    assert answers == [(b"1", CONFIRMED), (b"2", RETURNED)]


def test_a_nacked_message_is_sent_again_later(publisher):
    channel = Channel(publisher)
    answers = send(publisher, 1)
    channel.answer(Nack, 1)
    assert answers == [] and publisher.open_count() == 1
    publisher._send_again(publisher._later[0])
    assert channel.published == [b"1", b"1"]


def test_a_channel_that_nacks_a_message_for_long_is_replaced(publisher, monkeypatch):
    given_up = []
    monkeypatch.setattr(publisher.link, "restart", given_up.append)
    channel = Channel(publisher)
    send(publisher, 1, 2)
    channel.answer(Nack, 1)
    channel.answer(Ack, 2)
    publisher._watch()
    assert given_up == []
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT_S", 0)  # the timeout is over
    publisher._watch()
    assert len(given_up) == 1 and "rechaza" in given_up[0]


def test_pending_frames_are_dropped_with_their_connection():
    ioloop, failures = IOLoop(), []
    lost = connection._Connection(
        connection.parameters("amqp://guest:guest@127.0.0.1:1/%2F", None), custom_ioloop=ioloop,
        on_open_error_callback=lambda *_: failures.append(ioloop.stop()))
    lost._output_marshaled_frames([b"a", b"b"])
    ioloop.start()  # raises what a timer callback raises
    assert failures and not lost._frames
