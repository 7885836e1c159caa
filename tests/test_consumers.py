"""The three consumers as processes: what they print, keep, give back and survive."""

import email
import email.policy
import json
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing

import pika
import pytest

from common import events, exchange
from tests.conftest import wait_until

EMAIL, LOYALTY, ANALYTICS = "email_consumer_simple.py", "loyalty_consumer_simple.py", "analytics_consumer.py"
SCRIPTS = {"email": EMAIL, "loyalty": LOYALTY, "analytics": ANALYTICS}
NO_BROKER = "amqp://guest:guest@127.0.0.1:1/%2F"


def declare(kit) -> None:
    with kit.channel() as channel:
        exchange.declare(channel, kit.settings)


def publish(kit, count: int, domain: str = "eco.com") -> list[events.Event]:
    """Publish events of as many users, to all consumers."""
    made = [events.user_created(f"Persona {number}", f"p{number}@{domain}") for number in range(count)]
    with kit.channel() as channel:
        exchange.declare(channel, kit.settings)
        channel.confirm_delivery()
        for event in made:
            channel.basic_publish("user_events", "", events.encode(event), events.properties(event, 2), mandatory=True)
    return made


def records(ended) -> list[dict]:
    lines = ended.out if hasattr(ended, "out") else ended.stdout.splitlines()
    return [json.loads(line) for line in lines]


def mails(kit) -> list:
    return [email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
            for file in sorted((kit.state / "outbox" / "new").iterdir())]


# ---------------------------------------------------------------- what they print


@pytest.mark.parametrize("name, words", [
    ("email", "email enviado a zoe@eco.com"), ("loyalty", "lealtad activada para Zoë 🎉"),
    ("analytics", "contado: UsuarioCreado, eco.com")])
def test_each_event_is_one_line_with_time_what_was_done_id_and_attempt(kit, name, words):
    declare(kit)
    event = kit.publish_event(events.user_created("Zoë 🎉", "zoe@eco.com"))
    shown = kit.done(SCRIPTS[name], "--limit", "1").stdout.splitlines()
    lines = [line for line in shown if event.id[-8:] in line]
    assert len(lines) == 1
    assert re.fullmatch(rf"\d\d:\d\d:\d\d {re.escape(words)}.* · evento {event.id[-8:]} · intento 1", lines[0])
    assert shown[-1] == f"{name}: hechos 1."


def test_with_json_stdout_is_one_object_an_event_and_nothing_else(kit):
    first, second = publish(kit, 2)
    ended = kit.done(LOYALTY, "--json", "--limit", "2")
    found = records(ended)
    assert [(one["event_id"], one["outcome"], one["consumer"], one["attempt"]) for one in found] == [
        (first.id, "done", "loyalty", 1), (second.id, "done", "loyalty", 1)]
    assert all(one["time"].endswith("Z") for one in found)
    assert "loyalty: hechos 2" in ended.stderr


def test_escapes_in_an_events_type_never_reach_the_terminal(kit):
    declare(kit)
    kit.publish(b"\x1b[2J", queue="email_queue", properties=pika.BasicProperties(message_id="\x1b]0;x\x07", delivery_mode=2))
    ended = kit.done(EMAIL, "--limit", "1")
    assert "MalformedEvent" in ended.stdout
    assert "\x1b" not in ended.stdout + ended.stderr and "\x07" not in ended.stdout


def test_analytics_shows_a_live_summary_that_grows(kit):
    running = kit.start_consumer("analytics")
    publish(kit, 3)
    running.wait_for("resumen: eventos 3 · eco.com 3")
    publish(kit, 2, "mar.org")
    running.wait_for("resumen: eventos 5 · eco.com 3, mar.org 2")
    assert running.interrupt() == 0


# ---------------------------------------------------------------- how far they go


def test_a_limit_leaves_exactly_the_rest_in_the_queue(kit):
    publish(kit, 10)
    kit.done(LOYALTY, "--limit", "4")
    kit.wait_for_depth("loyalty_queue", 6)
    assert kit.report(LOYALTY) == {"accounts": 4, "points": 400}
    kit.done(LOYALTY, "--limit", "6")
    assert kit.depth("loyalty_queue") == 0
    assert kit.report(LOYALTY) == {"accounts": 10, "points": 1000}


def test_an_idle_timeout_ends_a_consumer_that_has_nothing_left_to_do(kit):
    publish(kit, 3)
    started_at = time.monotonic()
    kit.done(LOYALTY, "--idle-timeout", "1")
    assert time.monotonic() - started_at > 1
    assert kit.report(LOYALTY)["accounts"] == 3


def test_prefetch_bounds_what_a_consumer_holds(kit):
    kit.done("simulate_fail_publisher.py", "--consumer", "email", "--mode", "slow", "--seconds", "30")
    publish(kit, 9)
    running = kit.start_consumer("email", "--prefetch", "3")
    kit.wait_for_depth("email_queue", 7)
    running.kill()  # it sleeps
    kit.wait_for_depth("email_queue", 10)


# ---------------------------------------------------------------- what they keep


def test_a_report_is_counted_from_disk_without_a_broker(kit):
    publish(kit, 3)
    publish(kit, 1, "Mar.ORG")
    for script in SCRIPTS.values():
        kit.done(script, "--limit", "4")
    kit = kit.using(url=NO_BROKER)
    day = events.now()[:10]
    assert kit.report(EMAIL) == {"emails": 4}
    assert kit.report(LOYALTY) == {"accounts": 4, "points": 400}
    assert kit.report(ANALYTICS) == {"events": 4, "by_type": {"UsuarioCreado": 4}, "by_day": {day: 4},
                                     "by_domain": {"eco.com": 3, "mar.org": 1}}
    assert kit.done(EMAIL, "--report").stdout == "correos enviados: 4\n"
    assert kit.done(LOYALTY, "--report").stdout == "cuentas: 4, puntos: 400\n"
    table = kit.done(ANALYTICS, "--report").stdout
    assert re.search(r"eco\.com +3  (█+)\n +mar\.org +1  (█+)", table)
    bars = re.findall(r"(?:eco\.com|mar\.org).*?(█+)", table)
    assert len(bars[0]) == 3 * len(bars[1])


def test_a_report_before_the_first_event_is_all_zeros(kit):
    kit = kit.using(url=NO_BROKER)
    assert kit.report(EMAIL) == {"emails": 0}
    assert kit.report(LOYALTY) == {"accounts": 0, "points": 0}
    assert kit.report(ANALYTICS) == {"events": 0, "by_type": {}, "by_day": {}, "by_domain": {}}
    assert kit.done(ANALYTICS, "--report").stdout.startswith("eventos contados: 0\n")


def test_the_e_mail_is_a_real_message_that_any_mail_program_reads(kit):
    declare(kit)
    event = kit.publish_event(events.user_created("José Ñandú, \"el\" 🎉", "jose+x@eco.com"))
    kit.done(EMAIL, "--limit", "1")
    [mail] = mails(kit)
    raw = next((kit.state / "outbox" / "new").iterdir()).read_bytes()
    assert mail["To"].addresses[0].display_name == "José Ñandú, \"el\" 🎉"
    assert mail["To"].addresses[0].addr_spec == "jose+x@eco.com"
    assert mail["Subject"] == "Te damos la bienvenida, José Ñandú, \"el\" 🎉"
    assert mail["Message-ID"] == f"<{event.id}@ecomarket.example>"
    assert mail["Date"].datetime and mail["From"].addresses
    assert "Hola, José Ñandú, \"el\" 🎉:" in mail.get_content() and not mail.defects
    assert b"\n" not in raw.replace(b"\r\n", b"") and max(map(len, raw.split(b"\r\n"))) <= 998
    assert raw.split(b"\r\n\r\n")[0].isascii()
    assert not list((kit.state / "outbox" / "tmp").iterdir())


# ---------------------------------------------------------------- once


def test_an_event_that_comes_twice_has_one_effect(kit):
    kit.done("simulate_fail_publisher.py", "--mode", "duplicate", "--count", "2")
    for script in SCRIPTS.values():
        outcomes = [one["outcome"] for one in records(kit.done(script, "--json", "--limit", "4"))]
        assert Counter(outcomes) == {"done": 2, "duplicate": 2}
    assert kit.report(EMAIL) == {"emails": 2}
    assert kit.report(LOYALTY) == {"accounts": 2, "points": 200}
    assert kit.report(ANALYTICS)["events"] == 2


def test_an_event_of_an_unknown_type_is_acked_and_skipped(kit):
    declare(kit)
    order = events.Event(events.user_created("A", "a@eco.com").id, "PedidoCreado", events.now())
    kit.publish_event(order)
    for name, script in SCRIPTS.items():
        [one] = records(kit.done(script, "--json", "--limit", "1"))
        assert (one["outcome"], one["event_id"]) == ("skipped", order.id)
        assert kit.depth(f"{name}_queue") == 0
    assert kit.depth("dead_letter_queue") == 0
    assert kit.report(LOYALTY) == {"accounts": 0, "points": 0}


def test_several_processes_of_one_consumer_share_the_work_and_do_nothing_twice(kit):
    workers = [kit.start(LOYALTY, "--json", "--prefetch", "10") for _ in range(3)]
    wait_until(lambda: kit.consumers("loyalty_queue") == 3, "three consumers")
    made = publish(kit, 300)
    wait_until(lambda: sum(len(worker.out) for worker in workers) >= 300, "300 events")
    for worker in workers:
        assert worker.interrupt() == 0
    shares = [records(worker) for worker in workers]
    assert all(shares)
    assert Counter(one["event_id"] for share in shares for one in share) == {event.id: 1 for event in made}
    assert {one["outcome"] for share in shares for one in share} == {"done"}
    assert kit.report(LOYALTY) == {"accounts": 300, "points": 30_000}
    assert kit.depth("loyalty_queue") == 0


def test_a_consumer_forgets_what_it_did_long_ago_while_it_waits(kit):
    publish(kit, 1)
    kit.done(SCRIPTS["loyalty"], "--limit", "1")
    with closing(sqlite3.connect(kit.state / "loyalty.db")) as ledger:
        ledger.execute("UPDATE done SET done_at = 0")
        ledger.commit()
        kit.start_consumer("loyalty")
        wait_until(lambda: not ledger.execute("SELECT count(*) FROM done").fetchone()[0], "the old row to leave")
        assert ledger.execute("SELECT count(*) FROM accounts").fetchone()[0] == 1


def test_a_consumer_killed_in_the_middle_loses_nothing_and_does_nothing_twice(kit):
    kit.done("events_publisher_levels.py", "--level", "3", "--nombre", "Ana", "--email", "ana@eco.com", "--count", "1500")
    for _ in range(2):
        running = kit.start(LOYALTY, "--json", "--prefetch", "3")
        wait_until(lambda: len(running.out) > 20, "it to be busy", running.text)
        running.kill()
    assert kit.report(LOYALTY)["accounts"] < 1500  # it was killed in the middle
    kit.done(LOYALTY, "--idle-timeout", "2")
    assert kit.report(LOYALTY) == {"accounts": 1500, "points": 150_000}
    assert kit.depth("loyalty_queue") == kit.depth("dead_letter_queue") == 0


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("polite", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_event_at_hand_and_gives_the_others_back(kit, polite):
    kit.done("simulate_fail_publisher.py", "--consumer", "email", "--mode", "slow", "--seconds", "2")
    publish(kit, 8)
    running = kit.start("email_consumer_simple.py")
    kit.wait_for_depth("email_queue", 0)  # all nine are on its side, the slow one at hand
    running.process.send_signal(polite)
    assert running.end() == 0
    assert running.out[-1] == "email: hechos 1."
    kit.wait_for_depth("email_queue", 8)
    assert kit.report(EMAIL) == {"emails": 1}


def test_an_idle_consumer_stops_within_two_seconds(kit):
    running = kit.start_consumer("loyalty")
    asked_at = time.monotonic()
    assert running.interrupt() == 0
    assert time.monotonic() - asked_at < 2
    assert running.out[-1] == "loyalty: hechos 0."


def test_a_second_ctrl_c_ends_at_once_and_the_event_stays_in_the_queue(kit):
    kit.done("simulate_fail_publisher.py", "--consumer", "email", "--mode", "slow", "--seconds", "60")
    running = kit.start("email_consumer_simple.py")
    kit.wait_for_depth("email_queue", 0)
    wait_until(lambda: kit.consumers("email_queue") == 1, "the consumer")
    running.process.send_signal(signal.SIGINT)
    wait_until(lambda: _handled_interrupts(running), "the first Ctrl-C to be heard")
    asked_at = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 130
    assert time.monotonic() - asked_at < 2
    kit.wait_for_depth("email_queue", 1)


def _handled_interrupts(running) -> bool:
    """No pending SIGINT: Linux tells; elsewhere a moment must do."""
    status = f"/proc/{running.process.pid}/status"
    if not os.path.exists(status):
        time.sleep(0.5)
        return True
    with open(status, encoding="utf-8") as file:
        pending = re.findall(r"(?:SigPnd|ShdPnd):\t([0-9a-f]+)", file.read())
    time.sleep(0.2)  # Python's own handler runs between two bytecodes
    return not any(int(mask, 16) & 1 << signal.SIGINT - 1 for mask in pending)


# ---------------------------------------------------------------- a broker that is away


def test_a_consumer_waits_for_a_broker_that_is_not_up_yet_and_survives_its_death(own_kit):
    own_kit.node.kill()
    running = own_kit.start(LOYALTY)
    running.wait_for("Sin conexión con el broker")
    own_kit.node.start()
    running.wait_for("Conectado de nuevo")
    own_kit.publish_event()
    running.wait_for("lealtad activada")
    own_kit.node.kill()
    running.wait_for("Sin conexión con el broker", count=2)
    own_kit.node.start()
    running.wait_for("Conectado de nuevo", count=2)
    own_kit.publish_event()
    running.wait_for("lealtad activada", count=2)
    assert running.interrupt() == 0
    assert own_kit.report(LOYALTY) == {"accounts": 2, "points": 200}


def test_a_consumer_without_a_broker_still_stops_politely(kit):
    running = kit.using(url=NO_BROKER).start(LOYALTY)
    running.wait_for("Sin conexión con el broker")
    assert running.interrupt() == 0
    running.kill()


def test_a_queue_deleted_under_a_consumer_is_declared_again(kit):
    running = kit.start_consumer("loyalty")
    with kit.channel() as channel:
        channel.queue_delete("loyalty_queue")
    running.wait_for("loyalty_queue")
    wait_until(lambda: kit.consumers("loyalty_queue") == 1, "it to consume again", running.text)
    kit.publish_event()
    running.wait_for("lealtad activada")
    assert kit.report(LOYALTY)["accounts"] == 1


# ---------------------------------------------------------------- ephemeral


def test_an_ephemeral_consumer_misses_what_came_before_it_and_while_it_was_away(kit):
    publish(kit, 1)
    first = kit.start(LOYALTY, "--ephemeral", "--json")
    first.wait_for("cola efímera")
    assert kit.consumers("loyalty_queue") == 0
    seen = _published_until_seen(kit, first)
    assert first.interrupt() == 0
    publish(kit, 1)
    second = kit.start(LOYALTY, "--ephemeral", "--json")
    seen |= _published_until_seen(kit, second)
    assert second.interrupt() == 0
    done = {one["event_id"] for one in [*records(first), *records(second)]}
    assert done == seen
    assert kit.report(LOYALTY)["accounts"] == len(seen)


def _published_until_seen(kit, running) -> set[str]:
    """An ephemeral queue has no name to wait for: publish until one event comes through."""
    published = []

    def arrives() -> bool:
        published.append(publish(kit, 1)[0].id)
        return bool(running.out)

    wait_until(arrives, "an event in the ephemeral queue", running.text)
    first = json.loads(running.out[0])["event_id"]
    heard = published[published.index(first):]
    wait_until(lambda: len(running.out) == len(heard), "the rest of them", running.text)
    return set(heard)


def test_a_failure_in_an_ephemeral_consumer_waits_and_comes_back_to_it(kit):
    running = kit.start(LOYALTY, "--ephemeral", "--json")
    running.wait_for("cola efímera")
    _published_until_seen(kit, running)
    already = len(running.out)
    kit.done("simulate_fail_publisher.py", "--consumer", "loyalty", "--mode", "flaky", "--times", "2")
    wait_until(lambda: len(running.out) == already + 3, "three tries", running.text)
    assert [(one["outcome"], one["attempt"]) for one in records(running)[already:]] == [
        ("retry", 1), ("retry", 2), ("done", 3)]
    kit.done("simulate_fail_publisher.py", "--consumer", "loyalty")
    kit.wait_for_depth("dead_letter_queue", 1)
    [(properties, _)] = kit.messages("dead_letter_queue")
    assert properties.headers["x-attempt"] == 4
    assert properties.headers["x-source-queue"] == "loyalty_queue"  # a replay reaches the durable consumer
    assert running.interrupt() == 0


# ---------------------------------------------------------------- crash loop


def test_an_event_that_kills_the_process_again_and_again_becomes_a_dead_letter_and_its_neighbours_are_done_once(kit):
    before = publish(kit, 3)
    kit.done("simulate_fail_publisher.py", "--mode", "crash", "--consumer", "loyalty")
    after = publish(kit, 3)
    deaths, lines = 0, []
    while True:
        ended = kit.run(LOYALTY, "--json", "--idle-timeout", "1")
        lines += records(ended)
        if ended.returncode != 70:
            break
        deaths += 1
        assert kit.report(LOYALTY)["accounts"] >= len(before)  # what came before it was safe on disk
        assert deaths < 15, "it is never given up"
    assert ended.returncode == 0
    assert deaths == 6  # the first delivery, and five starts that are on record
    assert Counter(one["event_id"] for one in lines if one["outcome"] == "done") == {
        event.id: 1 for event in before + after}
    [(properties, body)] = kit.messages("dead_letter_queue")
    assert properties.headers["x-error-type"] == "CrashLoop"
    assert events.decode(body).id == properties.message_id
    assert kit.report(LOYALTY) == {"accounts": 6, "points": 600}
    assert kit.depth("loyalty_queue") == 0


def test_an_event_that_came_back_eight_times_unstarted_is_not_taken_for_a_crash(kit):
    publish(kit, 1)
    for _ in range(8):  # eight consumers that vanished with it
        with kit.channel() as channel:
            wait_until(lambda: channel.basic_get("loyalty_queue")[0], "the event")
    [one] = records(kit.done(LOYALTY, "--json", "--limit", "1"))
    assert one["outcome"] == "done"
    assert kit.report(LOYALTY)["accounts"] == 1
