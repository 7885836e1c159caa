"""How messages are matched with the broker's answers. A stand-in for pika plays the broker.

The test decides what the broker answers, and when: what a real one does only now and then.
"""

import threading
import time
from types import SimpleNamespace

import pika
import pytest
from pika.exceptions import StreamLostError

from common import config, confirms, connection, publishing
from common.confirms import ACK, NACK, RETURN, TIMEOUT
from common.outbox import Outbox
from common.publishing import ConfirmedChannel
from tests.conftest import wait_until

Ack, Nack = pika.spec.Basic.Ack, pika.spec.Basic.Nack


class Broker:
    """Replaces pika.SelectConnection. Its methods run in the I/O thread, like pika's callbacks."""

    def __init__(self, io):
        self.io = io
        self.connections: list[FakeConnection] = []
        self.confirms_select = True
        self.queues = {"q"}  # to which the test publishes

    def connect(self, parameters, custom_ioloop, on_open_callback, on_open_error_callback,
                on_close_callback):
        made = FakeConnection(self, on_close_callback)
        self.connections.append(made)
        custom_ioloop.call_later(0, lambda: on_open_callback(made))
        return made

    @property
    def published(self) -> list[list[bytes]]:
        """The bodies that arrived on each connection."""
        return [made.published for made in self.connections]

    def wait_for(self, *connections: list[bytes], and_later: bool = False) -> None:
        """and_later: each is soon given up for the next, so that there may be more."""
        end = len(connections) if and_later else None
        wait_until(lambda: self.published[:end] == [*connections], f"{connections}",
                   lambda: f"{self.published}")

    def do(self, function, *arguments) -> None:
        done = threading.Event()
        self.io.call(lambda: (function(*arguments), done.set()))
        assert done.wait(10), "the I/O thread failed or is stuck"

    def answer(self, kind, tag, multiple=False, at=-1) -> None:
        made = self.connections[at]
        self.do(made.on_confirm, SimpleNamespace(method=kind(tag, multiple)))

    def give_back(self, number, at=-1) -> None:
        made = self.connections[at]
        properties = pika.BasicProperties(message_id=str(number))
        self.do(made.on_return, made, SimpleNamespace(routing_key="q"), properties, b"")

    def lose(self) -> None:
        count, made = len(self.connections), self.connections[-1]
        self.do(made.on_close, made, StreamLostError("lost"))
        wait_until(lambda: len(self.connections) > count, "a new connection")


class FakeConnection:
    """A connection, and the one channel on it."""

    is_closed = False

    def __init__(self, broker: Broker, on_close):
        self.broker, self.on_close, self.published = broker, on_close, []
        self.connection = self  # of the channel

    def channel(self, on_open_callback):
        on_open_callback(self)

    def add_on_connection_blocked_callback(self, callback):
        self.on_blocked = callback

    def add_on_connection_unblocked_callback(self, callback):
        pass

    def add_on_close_callback(self, callback):
        pass

    def add_on_return_callback(self, callback):
        self.on_return = callback

    def confirm_delivery(self, on_confirm, callback):
        self.on_confirm, self.on_select_ok = on_confirm, callback
        if self.broker.confirms_select:
            callback(None)

    def basic_publish(self, exchange, routing_key, body, properties, mandatory):
        assert (exchange, mandatory) == ("", True) and routing_key in self.broker.queues
        self.published.append(body)

    def close(self):
        self.is_closed = True


@pytest.fixture
def broker(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(publishing, "BATCH", 1)  # each message goes out at once
    monkeypatch.setattr(publishing, "AGAIN_S", 0.05)
    io = connection.IoThread()
    own = Broker(io)
    monkeypatch.setattr(pika, "SelectConnection", own.connect)
    io.start()
    yield own
    io.stop(1)


@pytest.fixture
def declared() -> list:
    """The channels on which the queues were declared, once for each time."""
    return []


@pytest.fixture
def channel(broker, declared):
    return ConfirmedChannel(config.load({"RABBITMQ_URL": "amqp://h"}), declare=declared.append,
                            io=broker.io, give_up=lambda: False)


def publish(channel, *numbers: int, to: str = "q") -> None:
    for number in numbers:
        channel.basic_publish("", to, b"%d" % number,
                              pika.BasicProperties(message_id=str(number)), mandatory=True)


def answers(channel, most_unanswered: int) -> list[tuple[str, str]]:
    return [(message.id, answer) for message, answer in channel.answers(most_unanswered)]


def nacked(broker, channel, tag: int) -> confirms.Message:
    """Refuse the only message under way, the one that is called 1."""
    broker.answer(Nack, tag)
    [(message, answer)] = channel.answers(0)
    assert (message.id, answer) == ("1", NACK)
    return message


def test_a_multiple_ack_confirms_all_messages_up_to_its_tag(broker, channel):
    publish(channel, 1, 2, 3)
    broker.wait_for([b"1", b"2", b"3"])
    broker.answer(Ack, 2, multiple=True)
    assert answers(channel, 1) == [("1", ACK), ("2", ACK)]
    broker.answer(Ack, 3)
    assert answers(channel, 0) == [("3", ACK)]


def test_unconfirmed_messages_of_a_lost_connection_are_sent_again_in_order(broker, channel):
    publish(channel, 1, 2, 3)
    broker.wait_for([b"1", b"2", b"3"])
    broker.answer(Ack, 1)
    broker.lose()
    broker.wait_for([b"1", b"2", b"3"], [b"2", b"3"])
    broker.answer(Ack, 2, multiple=True)
    assert answers(channel, 0) == [("1", ACK), ("2", ACK), ("3", ACK)]


def test_a_late_answer_of_an_old_connection_means_no_message_of_the_new_one(broker, channel):
    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.lose()
    broker.wait_for([b"1"], [b"1"])
    broker.answer(Ack, 1, at=0)
    broker.give_back(1, at=0)
    assert answers(channel, 1) == []
    broker.answer(Ack, 1)
    assert answers(channel, 0) == [("1", ACK)]


def test_nothing_is_sent_on_a_channel_that_is_confirmed_after_its_end(broker, channel):
    broker.confirms_select = False
    publish(channel, 1)
    wait_until(lambda: broker.connections, "a connection")
    broker.lose()
    broker.confirms_select = True
    broker.lose()
    broker.wait_for([], [], [b"1"])
    broker.do(broker.connections[0].on_select_ok, None)
    publish(channel, 2)
    broker.wait_for([], [], [b"1", b"2"])


def test_the_queues_are_declared_on_each_new_channel_before_anything_is_sent(
        broker, channel, declared):
    broker.confirms_select = False
    publish(channel, 1)
    wait_until(lambda: declared, "the declaration")
    assert broker.published == [[]]
    broker.lose()
    wait_until(lambda: len(declared) == 2, "the second declaration")
    assert declared == broker.connections


def test_a_return_affects_only_its_own_message(broker, channel):
    publish(channel, 1, 2, 2)
    broker.wait_for([b"1", b"2", b"2"])
    broker.give_back(2)
    broker.answer(Ack, 3, multiple=True)
    assert answers(channel, 0) == [("1", ACK), ("2", RETURN), ("2", ACK)]


def test_two_returns_of_one_id_are_of_two_messages(broker, channel):
    publish(channel, 1, 1)
    broker.wait_for([b"1", b"1"])
    broker.give_back(1)
    broker.give_back(1)
    broker.answer(Ack, 2, multiple=True)
    assert answers(channel, 0) == [("1", RETURN), ("1", RETURN)]


def test_a_return_is_of_the_copy_to_its_own_queue(broker, channel):
    broker.queues = {"other", "q"}
    publish(channel, 1, to="other")
    publish(channel, 1)
    broker.wait_for([b"1", b"1"])
    broker.give_back(1)
    broker.answer(Ack, 2, multiple=True)
    assert [(message.routing_key, answer) for message, answer in channel.answers(0)] == [
        ("other", ACK), ("q", RETURN)]


def test_a_nacked_message_has_no_answer_until_it_is_sent_again(broker, channel, declared):
    publish(channel, 1)
    broker.wait_for([b"1"])
    channel.publish_again(nacked(broker, channel, 1))
    broker.wait_for([b"1", b"1"])
    assert answers(channel, 1) == [] and len(declared) == 1
    broker.answer(Ack, 2)
    assert answers(channel, 0) == [("1", ACK)]


def test_a_returned_message_is_sent_again_to_a_queue_that_is_declared_again(
        broker, channel, declared):
    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.give_back(1)
    broker.answer(Ack, 1)
    [(message, answer)] = channel.answers(0)
    assert answer == RETURN
    channel.publish_again(message)
    broker.wait_for([b"1", b"1"])
    assert len(declared) == 2
    broker.answer(Ack, 2)
    assert answers(channel, 0) == [("1", ACK)]


def test_a_channel_that_nacks_a_message_for_long_is_replaced(broker, channel, capsys, monkeypatch):
    """However seldom it does."""
    publish(channel, 1)
    broker.wait_for([b"1"])
    channel.publish_again(nacked(broker, channel, 1))
    broker.wait_for([b"1", b"1"])
    monkeypatch.setattr(confirms, "CONFIRM_TIMEOUT_S", publishing.AGAIN_S)
    channel.publish_again(nacked(broker, channel, 2))
    broker.wait_for([b"1", b"1"], [b"1"], and_later=True)
    assert "el broker rechaza un mensaje desde hace" in capsys.readouterr().out
    assert broker.connections[0].is_closed


def test_a_message_refused_for_long_costs_a_new_connection_no_time_of_its_own(broker, channel):
    publish(channel, 1)
    broker.wait_for([b"1"])
    message = nacked(broker, channel, 1)
    message.sent_at -= confirms.CONFIRM_TIMEOUT_S + 1
    broker.lose()
    channel.publish_again(message)
    broker.wait_for([b"1"], [b"1"])
    channel.publish_again(nacked(broker, channel, 1))
    broker.wait_for([b"1"], [b"1", b"1"])


def test_a_new_message_is_no_answer_to_a_refused_one(broker, channel):
    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.answer(Nack, 1)
    answered_at = channel.answered_at
    publish(channel, 2)
    assert channel.answered_at == answered_at


def test_each_failure_in_a_row_makes_the_pause_longer(broker, channel, monkeypatch):
    waits: list[int] = []
    monkeypatch.setattr(connection, "backoff_s", lambda failures: waits.append(failures) or 0.02)
    broker.confirms_select = False
    publish(channel, 1)
    wait_until(lambda: broker.connections, "a connection")
    broker.lose()
    broker.lose()
    broker.confirms_select = True
    broker.lose()
    broker.wait_for([], [], [], [b"1"])
    broker.lose()
    assert waits == [0, 1, 2, 0]


def test_a_pause_that_pika_forgets_with_its_timers_ends_all_the_same(broker, channel):
    def fail() -> None:
        made = broker.connections[0]
        made.on_close(made, StreamLostError("lost"))
        broker.io.ioloop.call_later(0, lambda: 1 / 0)
        time.sleep(0.1)  # so the end of the pause is due in the same moment

    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.io.call(fail)
    broker.wait_for([b"1"], [b"1"])


def test_a_broker_that_stays_silent_gets_a_new_connection(broker, channel, monkeypatch):
    monkeypatch.setattr(confirms, "CONFIRM_TIMEOUT_S", 0.1)
    publish(channel, 1)
    broker.wait_for([b"1"], [b"1"], and_later=True)
    assert broker.connections[0].is_closed


def test_silence_is_noticed_also_after_an_error_in_pika_that_ends_all_timers_due_with_it(
        broker, channel, monkeypatch):
    def fail() -> None:
        broker.io.ioloop.call_later(0, lambda: 1 / 0)
        time.sleep(1.1)  # so the timer that looks, once a second, is due in the same moment

    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.io.call(fail)
    broker.wait_for([b"1"], [b"1"])
    monkeypatch.setattr(confirms, "CONFIRM_TIMEOUT_S", 0.1)
    broker.wait_for([b"1"], [b"1"], [b"1"], and_later=True)


def test_a_broker_with_an_alarm_is_not_silent(broker, channel, monkeypatch):
    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.do(broker.connections[0].on_blocked)
    monkeypatch.setattr(confirms, "CONFIRM_TIMEOUT_S", 0)
    looked = threading.Event()
    broker.io.call(lambda: broker.io.ioloop.call_later(2.5, looked.set))  # it looks once a second
    assert looked.wait(10)
    assert len(broker.connections) == 1 and not broker.connections[0].is_closed


def test_an_alarm_ends_with_its_connection(broker, channel, monkeypatch):
    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.do(broker.connections[0].on_blocked)
    broker.lose()
    broker.wait_for([b"1"], [b"1"])
    monkeypatch.setattr(confirms, "CONFIRM_TIMEOUT_S", 0.1)
    broker.wait_for([b"1"], [b"1"], [b"1"], and_later=True)


def test_an_answer_after_a_message_was_given_up_does_not_count(broker):
    channel = ConfirmedChannel(config.load({"RABBITMQ_URL": "amqp://h"}),
                               declare=lambda _: None, io=broker.io, give_up=lambda: True)
    publish(channel, 1)
    broker.wait_for([b"1"])
    assert answers(channel, 0) == [("1", TIMEOUT)]
    broker.answer(Ack, 1)
    assert answers(channel, 0) == []


def test_an_ack_that_comes_while_the_connection_closes_counts(broker, monkeypatch):
    def close(made) -> None:
        made.on_confirm(SimpleNamespace(method=Ack(1)))
        made.is_closed = True

    monkeypatch.setattr(FakeConnection, "close", close)
    with ConfirmedChannel(config.load({"RABBITMQ_URL": "amqp://h"}), 9,
                          declare=lambda _: None) as channel:
        publish(channel, 1)
        broker.wait_for([b"1"])
    assert channel.late == {ACK: 1} and not channel.unanswered


def test_a_second_ctrl_c_leaves_the_last_batch_and_the_last_answers_in_the_outbox(
        broker, monkeypatch, tmp_path):
    def interrupted(_timeout_s) -> None:
        broker.answer(Ack, 1)
        raise KeyboardInterrupt

    outbox = Outbox(tmp_path)
    channel = ConfirmedChannel(config.load({"RABBITMQ_URL": "amqp://h"}), 9, outbox,
                               declare=lambda _: None, io=broker.io)
    publish(channel, 1)
    broker.wait_for([b"1"])
    assert outbox.count() == 1
    monkeypatch.setattr(publishing, "BATCH", 2)
    monkeypatch.setattr(publishing, "BATCH_S", 1e9)  # the next message waits in its batch
    publish(channel, 2)
    with monkeypatch.context() as stopping:
        stopping.setattr(broker.io, "stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            channel.__exit__()
    assert channel.late == {ACK: 1}
    assert outbox.db.execute("SELECT event_id FROM unconfirmed").fetchall() == [("2",)]


def test_a_message_is_not_given_up_before_it_was_sent(broker, monkeypatch):
    channel = ConfirmedChannel(config.load({"RABBITMQ_URL": "amqp://h"}), timeout_s=60,
                               declare=lambda _: None, io=broker.io)
    publish(channel, 1)
    broker.wait_for([b"1"])
    broker.answer(Ack, 1)
    assert answers(channel, 0) == [("1", ACK)]
    monkeypatch.setattr(publishing, "BATCH", 2)
    monkeypatch.setattr(publishing, "BATCH_S", 1e9)  # the next message waits in its batch
    publish(channel, 2)
    channel.answered_at -= 1000  # for so long
    assert answers(channel, 1) == []
    threading.Thread(target=lambda: (broker.wait_for([b"1", b"2"]), broker.answer(Ack, 2))).start()
    assert answers(channel, 0) == [("2", ACK)]


def test_a_message_that_was_given_up_is_not_sent_by_a_later_connection(broker):
    given_up = threading.Event()
    channel = ConfirmedChannel(config.load({"RABBITMQ_URL": "amqp://h"}),
                               declare=lambda _: None, io=broker.io, give_up=given_up.is_set)
    publish(channel, 1)
    broker.wait_for([b"1"])
    given_up.set()
    assert answers(channel, 0) == [("1", TIMEOUT)]
    given_up.clear()
    publish(channel, 2)
    broker.wait_for([b"1", b"2"])
    broker.lose()
    broker.wait_for([b"1", b"2"], [b"2"])
    broker.answer(Ack, 1)
    assert answers(channel, 0) == [("2", ACK)]


def test_a_window_of_messages_is_under_way_at_once(broker, channel, monkeypatch):
    monkeypatch.setattr(confirms, "WINDOW", 2)
    publish(channel, 1, 2, 3)
    broker.wait_for([b"1", b"2"])
    broker.answer(Ack, 1)
    broker.wait_for([b"1", b"2", b"3"])
