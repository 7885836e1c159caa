"""The three consumers as processes: what they print, store, requeue and survive."""

import email
import email.policy
import json
import os
import re
import signal
import sqlite3
import time
import uuid
from collections import Counter
from contextlib import closing
from datetime import datetime
from email.utils import format_datetime

import pika
import pytest

from common import cli, config, events, exchange, publishing
from tests.conftest import wait_until
from tests.faults.proxy import Proxy

EMAIL, LOYALTY = "email_consumer_simple.py", "loyalty_consumer_simple.py"
ANALYTICS = "analytics_consumer.py"
SCRIPTS = {"email": EMAIL, "loyalty": LOYALTY, "analytics": ANALYTICS}
NO_BROKER = "amqp://guest:guest@127.0.0.1:1/%2F"


def declare(kit) -> None:
    with kit.channel() as channel:
        exchange.declare(channel, kit.settings)


def publish(kit, count: int, domain: str = "eco.com") -> list[events.Event]:
    """Publish one event each for `count` users, to all consumers."""
    made = [events.user_created(f"Persona {number}", f"p{number}@{domain}")
            for number in range(count)]
    with kit.channel() as channel:
        exchange.declare(channel, kit.settings)
        channel.confirm_delivery()
        for event in made:
            channel.basic_publish("user_events", "", events.encode(event),
                                  publishing.properties(event, 2), mandatory=True)
    return made


def records(result) -> list[dict]:
    lines = result.out if hasattr(result, "out") else result.stdout.splitlines()
    return [json.loads(line) for line in lines]


def outbox(kit) -> list[tuple[str, str, bytes]]:
    """Return (event id, recipient, message) of each e-mail."""
    with closing(sqlite3.connect(kit.state / "email.db")) as db:
        return db.execute("SELECT event_id, recipient, message FROM outbox").fetchall()


def leave_redelivered(kit, queue: str) -> None:
    """Take the first event of the queue and vanish with it."""
    with kit.channel() as channel:
        wait_until(lambda: channel.basic_get(queue)[0], "the event")


# ---------------------------------------------------------------- what they print


@pytest.mark.parametrize("name, words", [
    ("email", "correo enviado a zoe.fernandez@eco.com"),
    ("loyalty", "lealtad activada para Zoë Hernández García"),
    ("analytics", "contado: UsuarioCreado, eco.com")])
def test_each_event_prints_one_line_with_time_result_id_and_attempt(kit, name, words):
    declare(kit)
    event = kit.publish_event(events.user_created("Zoë Hernández García", "zoe.fernandez@eco.com"))
    shown = kit.run_ok(SCRIPTS[name], "--limit", "1").stdout.splitlines()
    lines = [line for line in shown if event.id[-8:] in line]
    assert len(lines) == 1
    assert re.fullmatch(rf"\d\d:\d\d:\d\d {re.escape(words)}.* · id {event.id[-8:]}"
                        r" · intento 1", lines[0])
    assert len(lines[0]) < 80
    assert shown[-1] == f"{name}: procesados 1."


def test_with_json_stdout_has_one_object_per_event_only(kit):
    first, second = publish(kit, 2)
    result = kit.run_ok(LOYALTY, "--json", "--limit", "2")
    found = records(result)
    assert [(one["event_id"], one["outcome"], one["consumer"], one["attempt"])
            for one in found] == [
        (first.id, "done", "loyalty", 1), (second.id, "done", "loyalty", 1)]
    assert all(one["time"].endswith("Z") for one in found)
    assert "loyalty: procesados 2" in result.stderr


def test_terminal_escapes_in_an_event_are_never_printed(kit):
    declare(kit)
    kit.publish(b"\x1b[2J", queue="email_queue",
                properties=pika.BasicProperties(message_id="\x1b]0;x\x07", delivery_mode=2))
    result = kit.call_ok(EMAIL, "--limit", "1")
    assert "MalformedEvent" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr and "\x07" not in result.stdout


def test_steps_prints_the_life_of_each_event_in_order(kit):
    kit = kit.using(delays="600")
    declare(kit)
    first, second, flaky, dead = (events.user_created(name, "juan@eco.com") for name in "ABCD")
    kit.publish_event(first, queue="loyalty_queue")
    leave_redelivered(kit, "loyalty_queue")
    for event, mode in ((second, "none"), (second, "none"), (flaky, "flaky"), (dead, "permanent")):
        kit.publish_event(event, queue="loyalty_queue", headers={
            "x-simulate": {"consumer": "loyalty", "mode": mode, "number": 1}})
    result = kit.call_ok(LOYALTY, "--steps", "--limit", "5")
    transient = "SimulatedFailure: fallo 1 de 1"
    permanent = "PermanentError: falla siempre (simulado)"
    lines = [re.sub(r"\d\d:\d\d:\d\d +", "", line) for line in result.stdout.splitlines()[1:-1]]
    assert lines == [
        "recibido, reentregado · entrega 1", "trabajo hecho · entrega 1", "commit · entrega 1",
        "ack · entrega 1",
        f"lealtad activada para A · id {first.id[-8:]} · intento 1",
        "recibido · entrega 2", "trabajo hecho · entrega 2", "commit · entrega 2",
        "ack · entrega 2",
        f"lealtad activada para B · id {second.id[-8:]} · intento 1",
        "recibido · entrega 3", "ya procesado · entrega 3", "commit · entrega 3",
        "ack · entrega 3",
        f"duplicado, ya procesado · id {second.id[-8:]} · intento 1",
        "recibido · entrega 4", f"falló: {transient} · entrega 4", "commit · entrega 4",
        "copia confirmada por el broker · entrega 4", "ack · entrega 4",
        f"falló → loyalty_queue.retry.600s · id {flaky.id[-8:]} · intento 1",
        f"         {transient}",
        "recibido · entrega 5", f"falló: {permanent} · entrega 5", "commit · entrega 5",
        "copia confirmada por el broker · entrega 5", "ack · entrega 5",
        f"falló → dead_letter_queue · id {dead.id[-8:]} · intento 1",
        f"         {permanent}"]
    assert [kit.depth(queue) for queue in ("loyalty_queue", "loyalty_queue.retry.600s",
                                           "dead_letter_queue")] == [0, 1, 1]


def test_analytics_prints_a_live_summary(kit):
    running = kit.start_consumer("analytics")
    publish(kit, 3)
    running.wait_for("resumen: eventos 3 · eco.com 3")
    publish(kit, 2, "mar.org")
    running.wait_for("resumen: eventos 5 · eco.com 3, mar.org 2")
    assert running.interrupt() == 0


# ---------------------------------------------------------------- limits


def test_a_limit_leaves_the_rest_in_the_queue(kit):
    publish(kit, 10)
    kit.call_ok(LOYALTY, "--limit", "4")
    kit.wait_for_depth("loyalty_queue", 6)
    assert kit.report(LOYALTY) == {"accounts": 4, "points": 400}
    kit.call_ok(LOYALTY, "--limit", "6")
    assert kit.depth("loyalty_queue") == 0
    assert kit.report(LOYALTY) == {"accounts": 10, "points": 1000}


def test_an_idle_timeout_stops_a_consumer_without_work(kit):
    publish(kit, 3)
    started_at = time.monotonic()
    kit.call_ok(LOYALTY, "--idle-timeout", "3")
    assert time.monotonic() - started_at > 3
    assert kit.report(LOYALTY)["accounts"] == 3


def test_the_idle_timeout_begins_when_the_consumer_listens(kit):
    """A broker that is slow to answer takes nothing from it."""
    kit.declare()  # new queues may take longer than the timeout
    with closing(Proxy(kit.node.port)) as proxy:
        proxy.held = {"down"}
        behind = kit.using(url=kit.url.replace(str(kit.node.port), str(proxy.port)))
        running = behind.start(LOYALTY, "--idle-timeout", "4")
        wait_until(lambda: proxy.open == 1, "the connection", running.text)
        time.sleep(1)
        listens_at, proxy.held = time.monotonic(), set()
        assert running.end() == 0, running.text()
        assert time.monotonic() - listens_at > 4


def test_prefetch_limits_the_unacked_messages(kit):
    kit.call_ok("simulate_fail_publisher.py", "--consumer", "email", "--mode", "slow",
                "--seconds", "30")
    publish(kit, 9)
    running = kit.start_consumer("email", "--prefetch", "3")
    kit.wait_for_depth("email_queue", 7)
    running.kill()  # it sleeps
    kit.wait_for_depth("email_queue", 10)


# ---------------------------------------------------------------- what they store


def test_a_report_is_read_from_disk_without_a_broker(kit):
    publish(kit, 3)
    [newest] = publish(kit, 1, "Mar.ORG")
    for script in SCRIPTS.values():
        kit.call_ok(script, "--limit", "4")
    kit = kit.using(url=NO_BROKER)
    day = events.now()[:10]
    assert kit.report(EMAIL) == {"emails": 4}
    assert kit.report(LOYALTY) == {"accounts": 4, "points": 400}
    assert kit.report(ANALYTICS) == {"events": 4, "by_type": {"UsuarioCreado": 4},
                                     "by_day": {day: 4}, "by_domain": {"eco.com": 3, "mar.org": 1}}
    assert kit.call_ok(EMAIL, "--report").stdout.splitlines() == [
        "correos enviados: 4", "From: Ecomarket <bienvenida@ecomarket.example>",
        "To: Persona 0 <p0@Mar.ORG>", "Subject: Te damos la bienvenida, Persona 0",
        f"Date: {format_datetime(datetime.fromisoformat(newest.time[:19]))}", "",
        "Hola, Persona 0:", "",
        "Tu cuenta de Ecomarket está lista. ¡Te damos la bienvenida!"]
    assert kit.call_ok(LOYALTY, "--report").stdout == "cuentas: 4, puntos: 400\n"
    table = kit.call_ok(ANALYTICS, "--report").stdout
    assert re.search(r"eco\.com +3  (█+)\n +mar\.org +1  (█+)", table)
    bars = re.findall(r"(?:eco\.com|mar\.org).*?(█+)", table)
    assert len(bars[0]) == 3 * len(bars[1])


def test_a_report_before_the_first_event_is_all_zeros_and_creates_no_file(kit):
    kit = kit.using(url=NO_BROKER)
    kit.state.mkdir()
    assert kit.report(EMAIL) == {"emails": 0}
    assert kit.report(LOYALTY) == {"accounts": 0, "points": 0}
    assert kit.report(ANALYTICS) == {"events": 0, "by_type": {}, "by_day": {}, "by_domain": {}}
    nothing, counted, *_ = kit.call_ok(ANALYTICS, "--report").stdout.splitlines()
    assert nothing.startswith(f"Todavía no hay nada en {kit.state / 'analytics.db'}: ")
    assert counted == "eventos contados: 0"
    assert list(kit.state.iterdir()) == []


def test_a_report_changes_nothing_and_waits_for_no_consumer(kit):
    publish(kit, 1)
    kit.call_ok(LOYALTY, "--limit", "1")
    with closing(sqlite3.connect(kit.state / "loyalty.db", isolation_level=None)) as consumer:
        consumer.execute("BEGIN IMMEDIATE")
        told = kit.call_ok(LOYALTY, "--report", "--retry-delays", "77")
        assert told.stdout == "cuentas: 1, puntos: 100\n"
        assert consumer.execute("SELECT count(*) FROM retry_delays WHERE delay_s = 77"
                                ).fetchone() == (0,)


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_a_report_of_a_mistyped_folder_exits_with_78_and_does_not_create_it(kit, script):
    result = kit.call(script, "--report", "--state-dir", "nope")
    assert (result.returncode, result.stdout) == (78, "")
    folder = kit.state.parent / "nope"
    assert result.stderr.startswith(f"No hay nada que leer: la carpeta {folder} no existe, o falta")
    assert not folder.exists()


def test_a_report_before_the_default_folder_is_there_is_no_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.delenv("STATE_DIR", raising=False)
    assert cli.state_dir(cli.consumer_options("", ["--report"]), "email") is None
    assert "Todavía no hay nada" in capsys.readouterr().out


def test_each_email_is_a_row_with_its_event_its_recipient_and_a_complete_message(kit):
    declare(kit)
    event = kit.publish_event(events.user_created("José Ñandú, \"el\" 🎉", "jose+x@eco.com"))
    kit.publish_event(event)
    kit.call_ok(EMAIL, "--limit", "2")
    [(event_id, recipient, raw)] = outbox(kit)
    assert (event_id, recipient) == (event.id, "jose+x@eco.com")
    mail = email.message_from_bytes(raw, policy=email.policy.default)
    assert mail["To"].addresses[0].display_name == "José Ñandú, \"el\" 🎉"
    assert [address.addr_spec for address in mail["To"].addresses] == ["jose+x@eco.com"]
    assert mail["Subject"] == "Te damos la bienvenida, José Ñandú, \"el\" 🎉"
    assert mail["Message-ID"] == f"<{event.id}@ecomarket.example>"
    assert mail["Date"].datetime and mail["From"].addresses
    assert "Hola, José Ñandú, \"el\" 🎉:" in mail.get_content() and not mail.defects
    assert b"\n" not in raw.replace(b"\r\n", b"") and max(map(len, raw.split(b"\r\n"))) <= 998
    assert raw.split(b"\r\n\r\n")[0].isascii()
    assert [path.name for path in kit.state.iterdir()] == ["email.db"]


def test_a_state_folder_of_an_earlier_version_is_used_as_it_is(kit):
    """That version kept its e-mails as files of a Maildir."""
    made = publish(kit, 2)
    (kit.state / "outbox" / "new").mkdir(parents=True)
    old_mail = kit.state / "outbox" / "new" / f"{made[0].id}.eml"
    old_mail.write_text("Subject: hola\n\n")
    with closing(sqlite3.connect(kit.state / "email.db")) as db:
        db.execute("CREATE TABLE done (event_id BLOB PRIMARY KEY, done_at INTEGER NOT NULL)"
                   " WITHOUT ROWID")
        db.execute("CREATE TABLE started (event_id BLOB PRIMARY KEY, starts INTEGER NOT NULL)"
                   " WITHOUT ROWID")
        db.execute("INSERT INTO done VALUES (?, 1790000000)", [uuid.UUID(made[0].id).bytes])
        db.commit()
    assert kit.report(EMAIL) == {"emails": 0}
    leave_redelivered(kit, "email_queue")  # the first one, so its start is counted
    result = kit.call_ok(EMAIL, "--json", "--limit", "2")
    assert [one["outcome"] for one in records(result)] == ["duplicate", "done"]
    assert [event_id for event_id, _, _ in outbox(kit)] == [made[1].id]
    assert kit.report(EMAIL) == {"emails": 1} and old_mail.exists()


# ---------------------------------------------------------------- once only


def test_an_event_delivered_twice_has_one_effect(kit):
    kit.call_ok("simulate_fail_publisher.py", "--mode", "duplicate", "--count", "2")
    for script in SCRIPTS.values():
        result = kit.call_ok(script, "--json", "--limit", "4")
        outcomes = [one["outcome"] for one in records(result)]
        assert Counter(outcomes) == {"done": 2, "duplicate": 2}
    assert kit.report(EMAIL) == {"emails": 2}
    assert kit.report(LOYALTY) == {"accounts": 2, "points": 200}
    assert kit.report(ANALYTICS)["events"] == 2


def test_an_event_of_an_unknown_type_is_acked_and_skipped(kit):
    declare(kit)
    order = events.Event(events.user_created("A", "a@eco.com").id, "PedidoCreado", events.now())
    kit.publish_event(order)
    for name, script in SCRIPTS.items():
        [one] = records(kit.call_ok(script, "--json", "--limit", "1"))
        assert (one["outcome"], one["event_id"]) == ("skipped", order.id)
        assert kit.depth(f"{name}_queue") == 0
    assert kit.depth("dead_letter_queue") == 0
    assert kit.report(LOYALTY) == {"accounts": 0, "points": 0}


def test_several_processes_share_a_queue_without_duplicate_effects(kit):
    workers = [kit.start(LOYALTY, "--json", "--prefetch", "10") for _ in range(3)]
    wait_until(lambda: kit.consumers("loyalty_queue") == 3, "three consumers")
    made = publish(kit, 300)
    wait_until(lambda: sum(len(worker.out) for worker in workers) >= 300, "300 events")
    for worker in workers:
        assert worker.interrupt() == 0
    shares = [records(worker) for worker in workers]
    assert all(shares)
    handled = [one for share in shares for one in share]
    assert Counter(one["event_id"] for one in handled) == {event.id: 1 for event in made}
    assert {one["outcome"] for one in handled} == {"done"}
    assert kit.report(LOYALTY) == {"accounts": 300, "points": 30_000}
    assert kit.depth("loyalty_queue") == 0


def test_an_idle_consumer_deletes_old_ledger_rows(kit):
    publish(kit, 1)
    kit.call_ok(SCRIPTS["loyalty"], "--limit", "1")
    with closing(sqlite3.connect(kit.state / "loyalty.db")) as ledger:
        ledger.execute("UPDATE done SET done_at = 0")
        ledger.commit()
        kit.start_consumer("loyalty")
        wait_until(lambda: not ledger.execute("SELECT count(*) FROM done").fetchone()[0],
                   "the old row to be deleted")
        assert ledger.execute("SELECT count(*) FROM accounts").fetchone()[0] == 1


def test_a_killed_consumer_loses_nothing_and_repeats_no_effect(kit):
    kit.call_ok("events_publisher_levels.py", "--level", "3", "--nombre", "Ana",
                "--email", "ana@eco.com", "--count", "1500")
    for _ in range(2):
        running = kit.start(LOYALTY, "--json", "--prefetch", "3")
        wait_until(lambda: len(running.out) > 20, "some events", running.text)
        running.kill()
    assert kit.report(LOYALTY)["accounts"] < 1500  # it was killed in the middle
    running = kit.start(LOYALTY)
    wait_until(lambda: kit.report(LOYALTY)["accounts"] == 1500, "the rest", running.text)
    kit.wait_for_depth("loyalty_queue", 0)
    assert running.interrupt() == 0
    assert kit.report(LOYALTY) == {"accounts": 1500, "points": 150_000}
    assert kit.depth("loyalty_queue") == kit.depth("dead_letter_queue") == 0


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_shutdown_finishes_the_current_event_and_requeues_the_others(kit, signal_number):
    kit.call_ok("simulate_fail_publisher.py", "--consumer", "email", "--mode", "slow",
                "--seconds", "3")
    publish(kit, 8)
    running = kit.start("email_consumer_simple.py", "--steps")
    running.wait_for("recibido · ")  # it handles the slow one
    kit.wait_for_depth("email_queue", 0)  # and holds all nine
    running.process.send_signal(signal_number)
    assert running.end() == 0
    assert "email: procesados 1." in running.out
    kit.wait_for_depth("email_queue", 8)
    assert kit.report(EMAIL) == {"emails": 1}


def test_an_idle_consumer_stops_within_two_seconds(kit):
    def stop_s() -> float:
        running = kit.start_consumer("loyalty")
        signalled_at = time.monotonic()
        assert running.interrupt() == 0
        assert running.out[-1] == "loyalty: procesados 0."
        return time.monotonic() - signalled_at

    assert any(stop_s() < 2 for _ in range(3))  # the machine may pause


def test_a_consumer_that_waits_for_its_file_at_the_start_hears_a_stop(kit):
    kit.state.mkdir()
    with closing(sqlite3.connect(kit.state / "loyalty.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        running = kit.start(LOYALTY)
        running.wait_for("Otro proceso está usando loyalty.db")
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0


def test_a_second_ctrl_c_exits_at_once_and_the_event_stays_in_the_queue(kit):
    kit.call_ok("simulate_fail_publisher.py", "--consumer", "email", "--mode", "slow",
                "--seconds", "60")
    running = kit.start("email_consumer_simple.py", "--steps")
    running.wait_for("recibido · ")  # before that, one Ctrl-C would be enough
    running.process.send_signal(signal.SIGINT)
    wait_until(lambda: _handled_interrupts(running), "the first Ctrl-C to be handled")
    running.process.send_signal(signal.SIGINT)
    assert running.end(timeout=30) == 130  # the event takes 60 s
    kit.wait_for_depth("email_queue", 1)


def _handled_interrupts(running) -> bool:
    """Whether no SIGINT is pending. Only Linux tells; elsewhere wait for a moment."""
    status = f"/proc/{running.process.pid}/status"
    if not os.path.exists(status):
        time.sleep(0.5)
        return True
    with open(status, encoding="utf-8") as file:
        pending = re.findall(r"(?:SigPnd|ShdPnd):\t([0-9a-f]+)", file.read())
    time.sleep(0.2)  # Python runs its handler between two bytecodes
    return not any(int(mask, 16) & 1 << signal.SIGINT - 1 for mask in pending)


# ---------------------------------------------------------------- a missing broker


def test_a_consumer_without_a_broker_shuts_down_cleanly(kit):
    running = kit.using(url=NO_BROKER).start(LOYALTY)
    running.wait_for("Sin conexión con el broker")
    assert running.interrupt() == 0
    running.kill()


# ---------------------------------------------------------------- ephemeral


def test_an_ephemeral_consumer_misses_events_published_while_it_is_stopped(kit):
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
    """Publish until one event arrives: an ephemeral queue has no name to wait for."""
    published = []

    def arrives() -> bool:
        published.append(publish(kit, 1)[0].id)
        return bool(running.out)

    wait_until(arrives, "an event in the ephemeral queue", running.text)
    first = json.loads(running.out[0])["event_id"]
    received = published[published.index(first):]
    wait_until(lambda: len(running.out) == len(received), "the other events", running.text)
    return set(received)


def test_a_failure_in_an_ephemeral_consumer_is_a_dead_letter_at_once(kit):
    running = kit.start(LOYALTY, "--ephemeral", "--json")
    running.wait_for("cola efímera")
    _published_until_seen(kit, running)
    already = len(running.out)
    kit.call_ok("simulate_fail_publisher.py", "--consumer", "loyalty", "--mode", "flaky")
    kit.wait_for_depth("dead_letter_queue", 1)
    wait_until(lambda: len(running.out) == already + 1, "its line", running.text)
    assert records(running)[-1]["outcome"] == "dead"
    [(properties, _)] = kit.messages("dead_letter_queue")
    assert properties.headers["x-attempt"] == 1
    # A replay goes to the durable consumer.
    assert properties.headers["x-source-queue"] == "loyalty_queue"
    assert running.interrupt() == 0


# ---------------------------------------------------------------- crash loop


def test_an_event_that_crashes_its_consumer_repeatedly_becomes_a_dead_letter(kit):
    before = publish(kit, 3)
    kit.call_ok("simulate_fail_publisher.py", "--mode", "crash", "--consumer", "loyalty")
    after = publish(kit, 3)
    crashes, lines = 0, []
    while True:
        running = kit.start(LOYALTY, "--json")
        wait_until(lambda: running.process.poll() is not None or (
            kit.depth("dead_letter_queue") and kit.report(LOYALTY)["accounts"] == 6),
            "its end, or that of the events", running.text)
        code = running.interrupt() if running.process.poll() is None else running.end()
        lines += records(running)
        if code != 70:
            break
        crashes += 1
        # The effects of the earlier events are on disk.
        assert kit.report(LOYALTY)["accounts"] >= len(before)
        assert crashes < 15, "the event is never dead-lettered"
    assert code == 0
    assert crashes == 6  # the first delivery and five recorded starts
    assert Counter(one["event_id"] for one in lines if one["outcome"] == "done") == {
        event.id: 1 for event in before + after}
    [(properties, body)] = kit.messages("dead_letter_queue")
    assert properties.headers["x-error-type"] == "CrashLoop"
    assert events.decode(body).id == properties.message_id
    assert kit.report(LOYALTY) == {"accounts": 6, "points": 600}
    assert kit.depth("loyalty_queue") == 0


def test_eight_redeliveries_without_a_start_are_not_a_crash_loop(kit):
    publish(kit, 1)
    for _ in range(8):
        leave_redelivered(kit, "loyalty_queue")
    [one] = records(kit.call_ok(LOYALTY, "--json", "--limit", "1"))
    assert one["outcome"] == "done"
    assert kit.report(LOYALTY)["accounts"] == 1
