"""setup_queues.py --watch: the live view, with and without a terminal."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from common import cli, exchange
from common.config import load
from common.views import flow, live
from common.views.status import Found
from tests.conftest import ROOT, wait_until

SETUP = "setup_queues.py"


def found(depths: dict[str, int]) -> list[Found]:
    first, *rest = exchange.topology(load({"RETRY_DELAYS": "5,30,120"}))
    return [Found(queue, depths.get(queue.name, 0), 0) for queue in (*rest, first)]


def test_a_view_pauses_after_a_look_however_long_that_took(monkeypatch):
    """So that other terminals get their turn."""
    clock, looks = [100.0], []

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def look(_connection) -> float:
        looks.append(clock[0])
        sleep(20)
        return 5

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(live, "connect", lambda _: nullcontext(SimpleNamespace(sleep=sleep)))
    monkeypatch.setattr(cli, "stop_on_signals", lambda *_, **__: None)  # those of pytest stay
    live.keep_looking(SimpleNamespace(settings=None, look=look, done=lambda: len(looks) == 2))
    assert looks[1] - looks[0] == pytest.approx(25, abs=0.3)


# ---------------------------------------------------------------- the time to the next return


def test_the_next_return_is_one_delay_after_a_retry_was_seen():
    waiting = flow.Waiting(30)
    looks = (0, 0), (1, 10), (1, 15), (3, 20), (3, 39)
    assert [waiting.next_return_s(*look) for look in looks] == [None, 30, 25, 20, 1]
    assert waiting.next_return_s(2, 40) == 10  # the first is back; the next two were seen at 20
    assert waiting.next_return_s(0, 49.5) is None  # they left before their delay was over


def test_messages_from_before_the_first_look_have_no_return_time():
    waiting = flow.Waiting(30)
    looks = (5, 0), (7, 10), (4, 20)
    assert [waiting.next_return_s(*look) for look in looks] == [None, None, None]
    assert waiting.next_return_s(2, 25) == 15  # the two of second 10 are next


def test_messages_from_before_the_first_look_are_gone_after_one_delay():
    waiting = flow.Waiting(5)
    # The depth stays five: as many messages arrive as leave.
    returns = [waiting.next_return_s(5, second) for second in range(9)]
    assert returns[:5] == [None] * 5 and None not in returns[5:]


def test_a_constant_depth_starts_a_new_delay():
    waiting = flow.Waiting(5)
    waiting.next_return_s(0, 0)
    waiting.next_return_s(2, 1)
    assert waiting.next_return_s(2, 6) == 5


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("columns", [80, 120, 40])
@pytest.mark.parametrize("depth", [0, 7, 10**9])
def test_no_line_is_wider_than_the_terminal(columns, depth):
    deep = "email_queue", "analytics_queue.retry.120s", "dead_letter_queue"
    states = found(dict.fromkeys(deep, depth))
    lines = flow.picture(states, {state.queue.name: 119.2 for state in states}, columns, "")
    assert max(map(len, lines)) <= columns and len(lines) == 15
    names = "email_queue", "retry.5s", "retry.30s", "retry.120s", "loyalty_queue"
    assert all(name in line for name, line in zip(names, lines[2:]))


def test_a_bar_has_one_block_per_message_until_it_has_to_scale():
    few, many = (flow.picture(found({"email_queue": 3, "dead_letter_queue": most}), dict.fromkeys(
        (state.queue.name for state in found({})), None), 80, "") for most in (12, 2400))
    assert [line.count("█") for line in (few[2], few[-1], many[2], many[-1])] == [3, 12, 1, 24]


def test_a_low_terminal_hides_the_retries_and_keeps_the_dead_letters(monkeypatch, capsys):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 10)))
    view = flow.Flow(load())
    view._redraws = True
    view._show(found({"email_queue": 3, "dead_letter_queue": 9}))
    frame = capsys.readouterr().out
    assert frame.count("\n") < 10
    assert "email_queue" in frame and "dead_letter_queue" in frame and "retry" not in frame


# ---------------------------------------------------------------- the script


def test_without_a_terminal_each_change_is_one_line(kit):
    running = kit.start(SETUP, "--watch")
    running.wait_for("no hay colas")
    kit.declare()
    running.wait_for("todo vacío")
    kit.publish_event(queue="loyalty_queue")
    running.wait_for("loyalty_queue 1")
    kit.publish(b"x", queue="dead_letter_queue")
    running.wait_for("loyalty_queue 1 · dead_letter_queue 1")
    assert running.interrupt() == 0
    assert len(running.out) == 4 and all(re.match(r"\d\d:\d\d:\d\d ", line) for line in running.out)
    assert "\x1b" not in running.text()


def test_with_json_each_look_has_the_time_to_the_next_return(kit):
    kit = kit.using(delays="300")
    consumer = kit.start_consumer("email")
    running = kit.start(SETUP, "--watch", "--json")
    wait_until(lambda: running.out, "the first look", running.text)
    # The retry queue of analytics is not declared yet.
    assert json.loads(running.out[0])["queues"][-2]["ready"] is None
    kit.call_ok("simulate_fail_publisher.py", "--consumer", "email")

    def last(name):
        return next(queue for queue in json.loads(running.out[-1])["queues"]
                    if queue["name"] == name)

    wait_until(lambda: last("email_queue.retry.300s")["ready"] == 1, "the retry", running.text)
    assert 290 < last("email_queue.retry.300s")["next_return_s"] <= 300
    assert (last("email_queue")["consumers"], last("loyalty_queue")["consumers"]) == (1, 0)
    assert running.interrupt() == consumer.interrupt() == 0


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_a_terminal_of_80_columns_is_redrawn_in_place(kit):
    import fcntl
    import pty
    import termios

    kit.declare()
    kit.publish_event(queue="email_queue")
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = b""
    process = subprocess.Popen([sys.executable, str(ROOT / SETUP), "--watch"],
                               stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
                               env=kit.environment(TERM="xterm", NO_COLOR="1"))
    os.close(terminal)
    try:
        while shown.count(b"dead_letter_queue") < 2:
            shown += os.read(keyboard, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(keyboard)
    frames = shown.decode().split("\x1b[H")[1:]
    lines = re.sub(r"\x1b\[[0-9]*[A-Z]", "", frames[0]).split("\r\n")
    assert lines[0].startswith("user_events (fanout)")
    assert "email_queue" in lines[2] and "█" in lines[2]
    assert max(map(len, lines)) <= 80
