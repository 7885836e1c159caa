"""Guarantees of the README that no other test file checks."""

import json

from common import events
from tests.conftest import wait_until


def test_confirmed_events_survive_the_death_of_their_publisher(kit):
    kit.run_ok("setup_queues.py")
    running = kit.start("events_publisher_levels.py", "--level", "3", "--nombre", "Juan",
                        "--email", "juan@eco.com", "--count", "1000000", "--json")
    wait_until(lambda: len(running.out) > 2000, "2,000 answers", running.text)
    running.kill()
    whole_lines = [line for line in running.out if line.endswith("}")]  # the last may be cut
    confirmed = {json.loads(line)["id"] for line in whole_lines if '"confirmed"' in line}
    assert len(confirmed) > 2000
    for queue in ("email_queue", "loyalty_queue", "analytics_queue"):
        assert confirmed <= {properties.message_id for properties, _ in kit.messages(queue)}


def test_a_consumer_killed_between_file_and_commit_leaves_one_email_file(kit):
    event = events.user_created("Juan", "juan@eco.com")
    kit.run_ok("setup_queues.py")
    for _ in range(2):
        kit.publish_event(event, queue="email_queue")
        result = kit.run_ok("email_consumer_simple.py", "--limit", "1", "--json")
        [record] = result.stdout.splitlines()
        assert json.loads(record)["outcome"] == "done"  # the second run writes the email again
        for file in kit.state.glob("email.db*"):  # as if the transaction was not committed
            file.unlink()
    assert len(list((kit.state / "outbox").rglob(f"*{event.id}*"))) == 1
    assert kit.report("email_consumer_simple.py") == {"emails": 1}
