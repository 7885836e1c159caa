"""What the README guarantees and no other file of tests proves: a publisher that dies, an e-mail begun twice."""

import json

from common import events
from tests.conftest import wait_until


def test_what_level_3_confirmed_is_there_though_its_publisher_was_killed(kit):
    kit.done("setup_queues.py")
    running = kit.start("events_publisher_levels.py", "--level", "3", "--nombre", "Juan", "--email", "juan@eco.com",
                        "--count", "1000000", "--json")
    wait_until(lambda: len(running.out) > 2000, "2,000 answers", running.text)
    running.kill()
    whole_lines = [line for line in running.out if line.endswith("}")]  # the last one may be cut
    confirmed = {json.loads(line)["id"] for line in whole_lines if '"confirmed"' in line}
    assert len(confirmed) > 2000
    for queue in ("email_queue", "loyalty_queue", "analytics_queue"):
        assert confirmed <= {properties.message_id for properties, _ in kit.messages(queue)}


def test_an_e_mail_whose_consumer_died_between_file_and_commit_is_one_file(kit):
    event = events.user_created("Juan", "juan@eco.com")
    kit.done("setup_queues.py")
    for _ in range(2):
        kit.publish_event(event, queue="email_queue")
        [record] = kit.done("email_consumer_simple.py", "--limit", "1", "--json").stdout.splitlines()
        assert json.loads(record)["outcome"] == "done"  # the second time it is really sent again
        for file in kit.state.glob("email.db*"):  # as if the commit had never been
            file.unlink()
    assert len(list((kit.state / "outbox").rglob(f"*{event.id}*"))) == 1
    assert kit.report("email_consumer_simple.py") == {"emails": 1}
