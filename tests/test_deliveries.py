"""How the consumer tracks its deliveries, without a broker."""

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


def test_a_returned_copy_is_sent_again_unless_its_original_is_redelivered(deliveries, monkeypatch):
    sent = []
    monkeypatch.setattr(deliveries._publisher, "send", lambda message, _: sent.append(message))
    original = Delivery(deliveries._generation, 1, False, pika.BasicProperties(), b"")
    copy = Message("", "email_queue.retry.5s", b"", pika.BasicProperties())
    deliveries._copied(original, copy, RETURNED)
    assert sent == [copy]
    deliveries._lost()  # the broker delivers the original again
    deliveries._copied(original, copy, RETURNED)
    assert sent == [copy]


@pytest.mark.skipif(not hasattr(signal, "setitimer"),
                    reason="Windows has no timer that sends a signal")
def test_take_returns_in_time_when_a_signal_handler_overruns_the_timeout(deliveries):
    calls = []

    def slow(*_):
        calls.append(time.sleep(0.3))
        assert len(calls) == 1, "take() did not return"

    before = signal.signal(signal.SIGALRM, slow)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 3)
    try:
        assert deliveries.take(1, 0.2) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls == [None]
