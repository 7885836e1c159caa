"""The two demos of the class."""

from common import events


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
