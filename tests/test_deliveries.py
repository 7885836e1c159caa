"""The consumer's book-keeping of its deliveries, without a broker."""

import signal
import time

import pika
import pytest

from common import config
from common.deliveries import Deliveries, Delivery
from common.publishing import RETURNED, Message


@pytest.fixture
def deliveries(monkeypatch):
    own = Deliveries(config.load({}), "email", prefetch=10)
    monkeypatch.setattr(own._ioloop, "call_later", lambda _, callback: callback())
    yield own
    own._ioloop.close()


def test_a_copy_that_no_queue_took_is_sent_again_but_not_when_its_original_comes_again(deliveries, monkeypatch):
    sent = []
    monkeypatch.setattr(deliveries._publisher, "send", lambda message, _: sent.append(message))
    original = Delivery(deliveries._generation, 1, False, pika.BasicProperties(), b"")
    copy = Message("", "email_queue.retry.5s", b"", pika.BasicProperties())
    deliveries._copied(original, copy, RETURNED)
    assert sent == [copy]
    deliveries._lost()  # the connection: the broker will deliver the original again
    deliveries._copied(original, copy, RETURNED)
    assert sent == [copy]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timer that sends a signal")
def test_waiting_for_deliveries_ends_in_time_though_a_signal_was_handled_until_after_it(deliveries):
    heard = []

    def slow(*_):
        heard.append(time.sleep(0.3))
        assert len(heard) == 1, "it still waits"

    before = signal.signal(signal.SIGALRM, slow)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 3)
    try:
        assert deliveries.take(1, 0.2) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard == [None]
