"""The two demos of the class, and `kit.py demo` at a terminal."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from common import events
from tests.conftest import ROOT
from tools.node import ask_management, free_port

PAUSE = "Enter: el acto siguiente"
# kit.py demo, without making .venv; the management API is that of the tests' node.
PROGRAM = """
from common import cli
from tools import demo, demo_runner
demo_runner.CHECK_TIMEOUT_S = {}
cli.run(lambda: demo.main(yes=False, full=False))
"""


@pytest.fixture
def demo(kit, shared_node, tmp_path):
    """Return a function that plays the demo at a terminal and returns (exit code, its lines).

    The demo sends no e-mail: nothing answers at SMTP_URL.
    """
    pty = pytest.importorskip("pty")  # not available on Windows
    leftovers = tmp_path / "tmp"
    leftovers.mkdir()

    def play(at_pause, checks_within_s: float = 60) -> tuple[int, list[str]]:
        keyboard, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(checks_within_s)],
            cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal,
            env=kit.environment(TMPDIR=str(leftovers), NO_COLOR="1",
                                RABBITMQ_MANAGEMENT_URL=shared_node.management_url,
                                SMTP_URL=f"smtp://localhost:{free_port()}"))
        os.close(terminal)
        shown = ""
        with os.fdopen(keyboard, "r+b", buffering=0) as screen:
            for data in iter(lambda: read(screen), b""):
                paused = shown.count(PAUSE)
                shown += data.decode(errors="replace")
                if shown.count(PAUSE) > paused:
                    at_pause(process, screen)
        return process.wait(60), shown.replace("\r", "").splitlines()

    yield play
    assert list(leftovers.iterdir()) == []
    vhosts = ask_management("GET", shared_node.management_url, "guest", "guest", "vhosts")
    assert [vhost for vhost in vhosts if "demo" in vhost["name"]] == []


def read(screen) -> bytes:
    try:
        return screen.read(4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


def press_enter(process, screen) -> None:
    """Twice: the second comes while the act plays, and leads nowhere."""
    screen.write(b"\n")
    time.sleep(0.2)
    screen.write(b"\n")


def press_ctrl_c(process, screen) -> None:
    """Again, if nothing comes of it: Python does not hear one right before a read() begins."""
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        if select.select([screen], [], [], 10)[0]:
            return
    process.kill()


def test_the_demo_plays_acts_that_fit_on_a_screen_with_enter_between_them(demo):
    code, lines = demo(press_enter)
    assert code == 0, "\n".join(lines)
    starts = [number for number, line in enumerate(lines) if line[1:3] == ". "]
    acts = [lines[start:end] for start, end in zip(starts, [*starts[1:], None])]
    assert [sum(PAUSE in line for line in act) for act in acts] == [1, 1, 1, 1, 0]
    assert max(len([line for line in act if line and PAUSE not in line]) for act in acts) <= 18
    assert [line for line in lines if len(line) > 80] == []
    for act, words in enumerate((("correo enviado a ana@eco.com", "lealtad activada para Ana"),
                                 ("falló → email_queue.retry.4s", "falló → dead_letter_queue"),
                                 ("✘ intento 4 → dead_letter_queue",),
                                 ("reenviado a su cola", "correo enviado a "),
                                 ("total: 9",))):
        for word in words:
            assert sum(word in line for line in acts[act]) == 1, word


def test_ctrl_c_at_a_pause_ends_the_demo_with_130_and_leaves_nothing(demo):
    code, lines = demo(press_ctrl_c)
    assert code == 130 and lines[-1] == "Interrumpido con Ctrl-C."
    assert sum(PAUSE in line for line in lines) == 1


def test_a_demo_that_does_not_show_what_it_promised_exits_with_1(demo):
    code, lines = demo(press_enter, checks_within_s=0)
    assert code == 1
    assert any(line.startswith("  ✘ ") for line in lines)
    assert lines[-1].startswith("La demo no salió como se esperaba.")


def test_both_consumers_print_their_line_for_a_level_1_event(kit):
    email = kit.start_consumer("email")
    loyalty = kit.start_consumer("loyalty")
    sent = kit.run_ok("events_publisher_levels.py", "--level", "1", "--nombre", "Juan",
                      "--email", "juan@eco.com")
    assert "enviado, sin confirmación" in sent.stdout
    email.wait_for("correo enviado a juan@eco.com")
    loyalty.wait_for("lealtad activada para Juan")
    assert kit.report("email_consumer_simple.py") == {"emails": 1}
    assert kit.report("loyalty_consumer_simple.py") == {"accounts": 1, "points": 100}


def test_three_failing_events_become_nine_dead_letters(kit):
    kit.run_ok("setup_queues.py")
    dead = kit.start("dead_letter_consumer.py")
    for name in ("email", "loyalty", "analytics"):
        kit.start_consumer(name)
    kit.run_ok("simulate_fail_publisher.py", "--count", "3")
    assert len(dead.wait_for(" ×4 SimulatedFailure: falla siempre", count=9)) == 9
    kit.wait_for_depth("dead_letter_queue", 9)


def test_simulated_users_differ_within_a_run_and_between_runs(kit):
    shown = "".join(kit.run_ok("simulate_fail_publisher.py", "--count", "2").stdout
                    for _ in range(2))
    users = [events.decode(body) for _, body in kit.messages("email_queue")]
    assert len({user.nombre for user in users}) == len({user.email for user in users}) == 4
    assert all(f" · id {user.id[-8:]} · transient · {user.nombre}\n" in shown for user in users)
    assert max(len(line) for line in shown.splitlines() if " · id " in line) < 80
