"""Guarantees of the README, whatever a handler does (tests/scripted_consumer.py)."""

import json
import sqlite3
from contextlib import closing

from common import events
from common.confirms import WINDOW
from common.outbox import Outbox
from common.publishing import BATCH
from tests.conftest import wait_until

CONSUMER, QUEUE = "tests/scripted_consumer.py", "loyalty_queue"
ENDS_THE_TRANSACTION = ("commit", "rollback", "with", "executescript", "end")


def publish(kit, *names: str) -> list[str]:
    """Publish an event for each name to the consumer's queue, in this order. Return the ids."""
    kit.declare()
    return [kit.publish_event(events.user_created(name, "juan@eco.com"), queue=QUEUE).id
            for name in names]


def rows(kit, sql: str) -> list:
    with closing(sqlite3.connect(kit.state / "loyalty.db", timeout=10)) as db:
        return [value for [value] in db.execute(sql)]


def effects(kit) -> list[str]:
    return sorted(rows(kit, "SELECT nombre FROM effects"))


def nombre(body: bytes) -> str:
    return json.loads(body)["data"]["nombre"]


def test_confirmed_events_survive_the_death_of_their_publisher(kit):
    """What has no confirm yet is noted, and --resume sends exactly that."""
    kit.declare()
    running = kit.start("events_publisher_levels.py", "--level", "3", "--nombre", "Juan",
                        "--email", "juan@eco.com", "--count", "1000000", "--rate", "1000",
                        "--json")
    wait_until(lambda: len(running.out) > 300, "300 answers", running.text)
    running.kill()
    outbox = Outbox(kit.state)
    noted = {event.id for event in outbox.left()}
    # It notes an event right before it sends it, and deletes a batch of confirmed ones at once.
    assert 0 < len(noted) <= WINDOW + 2 * BATCH
    whole_lines = [line for line in running.out if line.endswith("}")]  # the last may be cut
    confirmed = {json.loads(line)["id"] for line in whole_lines if '"confirmed"' in line}
    assert len(confirmed) > 250
    resumed = kit.call_ok("events_publisher_levels.py", "--resume", "--json").stdout.splitlines()
    assert {json.loads(line)["id"] for line in resumed} == noted and outbox.count() == 0
    outbox.db.close()
    for queue in ("email_queue", "loyalty_queue", "analytics_queue"):
        assert confirmed | noted <= {properties.message_id
                                     for properties, _ in kit.messages(queue)}


# ---------------------------------------------------------------- what a handler may not do


def test_a_handler_that_ends_the_transaction_fails_alone_and_its_batch_is_kept(kit):
    kit = kit.using(delays="600")
    names = ["normal 1", *ENDS_THE_TRANSACTION, "normal 2", "roll-back-and-fail", "normal 3"]
    ids = dict(zip(names, publish(kit, *names)))
    result = kit.run_ok(CONSUMER, "--limit", str(len(names)))
    normal = ["normal 1", "normal 2", "normal 3"]
    assert effects(kit) == normal
    assert sorted(rows(kit, "SELECT lower(hex(event_id)) FROM done")) == sorted(
        ids[name].replace("-", "") for name in normal)
    dead = kit.messages("dead_letter_queue")
    assert [nombre(body) for _, body in dead] == list(ENDS_THE_TRANSACTION)
    assert {(properties.headers["x-error-type"], properties.headers["x-error-message"])
            for properties, _ in dead} == {("PermanentError", (
                "el trabajo de un evento no hace commit ni rollback: los hace el kit"))}
    [(retried, body)] = kit.messages("loyalty_queue.retry.600s")
    assert (nombre(body), retried.headers["x-error-message"]) == (
        "roll-back-and-fail", "este evento falla")
    assert kit.depth(QUEUE) == 0
    assert result.stdout.splitlines()[-1] == (
        "loyalty: procesados 3, a reintentar 1, a dead_letter_queue 5.")


def test_after_an_or_rollback_nothing_is_committed_nothing_is_acked_and_the_script_stops(kit):
    publish(kit, "normal 1", "or-rollback", "normal 2")
    result = kit.run(CONSUMER, "--limit", "3")
    assert result.returncode == 78
    assert "quita de él OR ROLLBACK" in result.stderr and "Traceback" not in result.stderr
    assert effects(kit) == rows(kit, "SELECT event_id FROM done") == []
    kit.wait_for_depth(QUEUE, 3)
    assert kit.depth("dead_letter_queue") == 0


# ---------------------------------------------------------------- slow handlers


def test_two_processes_with_a_slow_handler_take_turns_and_the_waiting_one_hears_ctrl_c(kit):
    pair = [kit.start(CONSUMER, "--prefetch", "1") for _ in range(2)]
    wait_until(lambda: kit.consumers(QUEUE) == 2, "both to consume")
    publish(kit, *(f"sleep-0.5 {number}" for number in range(5)))
    for running in pair:  # neither starves, neither exits
        running.wait_for("done sleep-0.5", count=2)
    wait_until(lambda: len(effects(kit)) == 5, "five events")
    line = "Otro proceso está usando loyalty.db: se espera a que termine."
    before = [running.text().count(line) for running in pair]
    publish(kit, "wait 1", "wait 2")

    def waiting() -> list:
        return [running for running, count in zip(pair, before)
                if running.text().count(line) == count + 1]

    wait_until(waiting, "one to wait", lambda: pair[0].text() + pair[1].text())
    [second] = waiting()
    [first] = [running for running in pair if running is not second]
    assert second.interrupt() == 0  # while the first has the ledger: nothing has let it go
    assert waiting() == [second]  # one line, however long it takes
    assert second.out[-1].startswith("loyalty: procesados ")
    kit.wait_for_depth(QUEUE, 1)  # it has returned its event
    (kit.state.parent / "go").touch()
    first.wait_for("done wait", count=2)
    assert first.interrupt() == 0
    assert len(effects(kit)) == 7
    assert kit.depth(QUEUE) == kit.depth("dead_letter_queue") == 0


def test_a_slow_handler_keeps_its_connection(kit):
    publish(kit, "sleep-6")
    result = kit.run_ok(CONSUMER, "--limit", "1")  # its heartbeats are 2 s apart
    assert "done sleep-6" in result.stdout and "Sin conexión" not in result.stdout
    assert effects(kit) == ["sleep-6"] and kit.depth(QUEUE) == 0


def test_no_event_is_begun_whose_channel_closed_while_a_handler_held_it_up(kit, shared_node):
    """The broker has given these events back: another process may be doing them."""
    publish(kit, "wait", *(f"normal {number}" for number in range(9)))
    running = kit.start(CONSUMER, "--steps")
    running.wait_for("recibido · ")
    wait_until(lambda: kit.depth(QUEUE) == 0, "it to hold all events")
    shared_node.ctl("close_all_connections", "-p", kit.url.rpartition("/")[2], "a test")
    running.wait_for("Conectado de nuevo")
    (kit.state.parent / "go").touch()
    running.wait_for("duplicado, ya procesado · ")  # the event that was under way
    running.wait_for("done normal", count=9)
    assert running.interrupt() == 0
    assert len([line for line in running.out if "recibido · " in line]) == 1
    assert len([line for line in running.out if "recibido, reentregado · " in line]) == 10
    assert running.out[-1] == "loyalty: procesados 10, duplicados 1."
    assert effects(kit) == [*(f"normal {number}" for number in range(9)), "wait"]
    assert kit.depth(QUEUE) == kit.depth("dead_letter_queue") == 0
