"""setup_queues.py with a real broker: it declares, shows, checks, resets and explains."""

import base64
import json
import time
import urllib.request

import pika
import pytest

from common import cli, connection, exchange
from tests.conftest import wait_until

SETUP = "setup_queues.py"
MAIN = ("email_queue", "loyalty_queue", "analytics_queue")
RETRIES = [f"{queue}.retry.{delay}ms" for queue in MAIN for delay in (300, 600, 900)]
ALL = {*MAIN, *RETRIES, "dead_letter_queue"}


@pytest.fixture
def on_broker(kit, shared_node):
    """Return ask(what): it gets "queues", "exchanges" or "bindings" from the management API."""
    def ask(what: str) -> list[dict]:
        vhost = kit.url.rpartition("/")[2]
        request = urllib.request.Request(f"{shared_node.management_url}/api/{what}/{vhost}")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)
    return ask


def queues(on_broker) -> dict[str, dict]:
    return {queue["name"]: queue for queue in on_broker("queues")}


def fill(kit, queue: str, count: int) -> None:
    for _ in range(count):
        kit.publish_event(queue=queue)


# ---------------------------------------------------------------- declaring


def test_it_declares_the_exchange_the_queues_and_the_bindings(kit, on_broker):
    kit.call_ok(SETUP)
    assert set(queues(on_broker)) == ALL
    [found] = [one for one in on_broker("exchanges") if one["name"] == "user_events"]
    assert (found["type"], found["durable"]) == ("fanout", True)
    assert {one["destination"] for one in on_broker("bindings")
            if one["source"] == "user_events"} == set(MAIN)
    kit.publish_event()
    for queue in MAIN:
        kit.wait_for_depth(queue, 1)


def test_a_second_run_changes_nothing_and_loses_nothing(kit, on_broker):
    kit.call_ok(SETUP)
    kit.publish_event()
    before = {name: queue["arguments"] for name, queue in queues(on_broker).items()}
    kit.call_ok(SETUP)
    assert {name: queue["arguments"] for name, queue in queues(on_broker).items()} == before
    for queue in MAIN:
        assert kit.depth(queue) == 1


TO_DEAD_LETTERS = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead_letter_queue"}
TO_MAIN_QUEUE = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "email_queue",
                 "x-message-ttl": 300}
QUORUM = {"x-queue-type": "quorum", "x-queue-leader-locator": "balanced"}
AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
CLASSIC = {"x-queue-type": "classic"}


@pytest.mark.parametrize("queue_type, wanted", [
    ("quorum", {"email_queue": QUORUM | TO_DEAD_LETTERS | AT_LEAST_ONCE | {"x-delivery-limit": 100},
                "email_queue.retry.300ms": QUORUM | TO_MAIN_QUEUE | AT_LEAST_ONCE,
                "dead_letter_queue": QUORUM | {"x-delivery-limit": 1_000_000}}),
    ("classic", {"email_queue": CLASSIC | TO_DEAD_LETTERS,
                 "email_queue.retry.300ms": CLASSIC | TO_MAIN_QUEUE,
                 "dead_letter_queue": CLASSIC})])
def test_the_broker_has_the_documented_arguments(kit, on_broker, queue_type, wanted):
    kit.using(queue_type=queue_type).run_ok(SETUP)
    found = queues(on_broker)
    assert {name: found[name]["arguments"] for name in wanted} == wanted
    assert {queue["type"] for queue in found.values()} == {queue_type}
    assert all(queue["durable"] and not queue["auto_delete"] for queue in found.values())


def test_the_delivery_limit_applies_to_main_queues_and_not_to_dead_letters(kit):
    """Requeue 150 times: an accepted declaration proves nothing (docs/facts.md, broker 18)."""
    kit.call_ok(SETUP)
    for queue in ("email_queue", "dead_letter_queue"):
        fill(kit, queue, 1)
    with kit.channel() as channel:
        for _ in range(150):
            for queue in ("email_queue", "dead_letter_queue"):
                method, properties, _ = channel.basic_get(queue)
                if method and not (properties.headers or {}).get("x-death"):
                    channel.basic_reject(method.delivery_tag, requeue=True)
    kit.wait_for_depth("dead_letter_queue", 2)
    assert kit.depth("email_queue") == 0
    deaths = [(properties.headers or {}).get("x-death")
              for properties, _ in kit.messages("dead_letter_queue")]
    assert sorted(death[0]["reason"] if death else "" for death in deaths) == ["", "delivery_limit"]


# ---------------------------------------------------------------- showing


def test_it_prints_the_tree_with_depths_and_consumers(kit):
    kit.call_ok(SETUP)
    kit.start_consumer("loyalty")
    kit.publish_event()
    kit.wait_for_depth("loyalty_queue", 0)
    fill(kit, "dead_letter_queue", 2)
    lines = [" ".join(line.split()) for line in kit.run_ok(SETUP).stdout.splitlines()]
    assert lines[0] == "user_events (fanout)"
    assert "├─ email_queue listos: 1 consumidores: 0" in lines
    assert "├─ loyalty_queue listos: 0 consumidores: 1" in lines
    assert lines.index("│ ├─ email_queue.retry.300ms listos: 0 consumidores: 0") == 2
    assert "└─ analytics_queue listos: 1 consumidores: 0" in lines
    assert lines[-2] == "dead_letter_queue listos: 2 consumidores: 0"
    assert len(lines) == 2 + len(ALL)
    assert lines[-1] == "Sin ack: no se sabe; http://127.0.0.1:9 no responde (--management-url)."


def test_an_event_without_an_ack_is_shown_where_the_management_api_answers(kit, shared_node):
    watched = kit.using(management=shared_node.management_url)
    kit.run_ok("simulate_fail_publisher.py", "--mode", "slow", "--seconds", "60", "--count", "3",
               "--consumer", "loyalty")
    consumer = kit.start_consumer("loyalty")
    kit.wait_for_depth("loyalty_queue", 0)
    live = watched.start(SETUP, "--watch")
    live.wait_for("loyalty_queue 0 (3 sin ack)")

    def shown() -> dict:
        queues = json.loads(watched.run_ok(SETUP, "--show", "json").stdout)["queues"]
        return next(queue for queue in queues if queue["name"] == "loyalty_queue")

    assert (shown()["ready"], shown()["unacked"], shown()["consumers"]) == (0, 3, 1)
    lines = watched.run_ok(SETUP, "--show", "text").stdout.splitlines()
    [line] = [" ".join(line.split()) for line in lines if "loyalty_queue " in line]
    assert line == "├─ loyalty_queue listos: 0 sin ack: 3 consumidores: 1"
    refused = watched.run(SETUP, "--reset", "--yes")
    assert "loyalty_queue · listos: 0, sin ack: 3, consumidores: 1\n" in refused.stdout
    consumer.kill()
    live.wait_for("loyalty_queue 3")
    refused = watched.run(SETUP, "--reset", "--yes")
    assert refused.returncode == 1 and "loyalty_queue · listos: 3," in refused.stdout


@pytest.mark.parametrize("answers", [True, False], ids=["management API", "announced"])
def test_retry_queues_of_other_delays_are_shown_checked_and_reset(kit, shared_node, answers):
    """A consumer has other RETRY_DELAYS than setup_queues.py."""
    other = kit.using(delays="600")
    other.run_ok("simulate_fail_publisher.py", "--consumer", "loyalty")
    other.run_ok("loyalty_consumer_simple.py", "--limit", "1")
    kit.wait_for_depth("loyalty_queue.retry.600s", 1)
    if answers:
        kit = kit.using(management=shared_node.management_url, state=kit.state / "another")
        kit.state.mkdir()
    files = sorted(kit.state.iterdir())
    kit.run_ok(SETUP)
    assert sorted(kit.state.iterdir()) == files  # a look leaves none behind
    lines = [" ".join(line.split()) for line in kit.run_ok(SETUP).stdout.splitlines()]
    assert [line for line in lines if "otro RETRY_DELAYS" in line and "listos: 1" in line] == [
        line for line in lines if "loyalty_queue.retry.600s" in line] != []
    checked = kit.run(SETUP, "--check")
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        f"✘ {consumer}_queue.retry.600s (listos: {ready}) es de otro RETRY_DELAYS"
        for consumer, ready in (("email", 0), ("loyalty", 1), ("analytics", 0))]
    live = kit.start(SETUP, "--watch")
    live.wait_for("loyalty_queue.retry.600s 1")
    refused = kit.run(SETUP, "--reset", "--yes")
    assert refused.returncode == 1 and "loyalty_queue.retry.600s · listos: 1," in refused.stdout
    kit.run_ok(SETUP, "--reset", "--yes", "--force")
    kit.run_ok(SETUP, "--check")
    with kit.channel() as channel, pytest.raises(pika.exceptions.ChannelClosedByBroker):
        channel.queue_declare("loyalty_queue.retry.600s", passive=True)


@pytest.mark.parametrize("arguments", [
    ["--show", "text"], ["--show", "json"], ["--show", "mermaid"], ["--dry-run"],
    ["--show", "text", "--json"], ["--dry-run", "--json"]])
def test_read_only_options_change_nothing(kit, on_broker, arguments):
    kit.call_ok(SETUP, *arguments)
    assert queues(on_broker) == {}
    assert not [one for one in on_broker("exchanges") if one["name"] == "user_events"]


def test_show_json_has_depth_consumers_and_arguments_of_each_queue(kit):
    shown = json.loads(kit.call_ok(SETUP, "--show", "json").stdout)
    assert {queue["ready"] for queue in shown["queues"]} == {None}
    kit.call_ok(SETUP)
    fill(kit, "email_queue", 2)
    shown = json.loads(kit.call_ok(SETUP, "--show", "json").stdout)
    found = {queue["name"]: queue for queue in shown["queues"]}
    assert shown["exchange"] == "user_events" and set(found) == ALL
    email = found["email_queue"]
    assert (email["ready"], email["consumers"], email["bound"]) == (2, 0, True)
    assert found["email_queue.retry.300ms"]["arguments"]["x-message-ttl"] == 300
    assert not found["dead_letter_queue"]["bound"]


def test_show_mermaid_draws_every_queue_without_a_broker(kit):
    offline_kit = kit.using(url="amqp://guest:guest@127.0.0.1:1/%2F")
    drawn = offline_kit.call_ok(SETUP, "--show", "mermaid").stdout
    assert drawn.startswith("flowchart")
    assert not [name for name in ALL if name not in drawn]
    assert "email_queue.retry.300ms -- 0.3 s --> email_queue" in drawn
    data = json.loads(offline_kit.call_ok(SETUP, "--show", "mermaid", "--json").stdout)
    assert data["mermaid"] == drawn.rstrip("\n")


def test_a_dry_run_prints_what_it_would_declare(kit):
    kit.call_ok(SETUP)
    with kit.channel() as channel:
        channel.queue_delete("email_queue.retry.600ms")
    lines = kit.call_ok(SETUP, "--dry-run").stdout.splitlines()
    assert [line.split()[-1] for line in lines if "crearía" in line] == ["email_queue.retry.600ms"]
    assert len(lines) == len(ALL)
    data = json.loads(kit.call_ok(SETUP, "--dry-run", "--json").stdout)["queues"]
    assert [queue["name"] for queue in data if queue["ready"] is None] == [
        "email_queue.retry.600ms"]


# ---------------------------------------------------------------- checking


def test_check_exits_with_1_and_prints_each_difference(kit):
    empty = kit.run(SETUP, "--check")
    assert empty.returncode == 1
    assert "falta el exchange user_events" in empty.stdout
    assert not [name for name in ALL if f"falta la cola {name}" not in empty.stdout]
    kit.call_ok(SETUP)
    assert "✔" in kit.call_ok(SETUP, "--check").stdout
    with kit.channel() as channel:
        channel.queue_delete("email_queue.retry.600ms")
        channel.queue_delete("loyalty_queue")
        channel.queue_declare("loyalty_queue", durable=True, arguments={"x-queue-type": "quorum"})
    changed = kit.call(SETUP, "--check")
    assert changed.returncode == 1
    [missing, otherwise] = [line for line in changed.stdout.splitlines() if line.startswith("✘")]
    assert "falta la cola email_queue.retry.600ms" in missing
    assert "loyalty_queue ya existe sin x-" in otherwise and "piden" in otherwise
    assert kit.call(SETUP, "--check").stdout == changed.stdout  # --check changes nothing


def test_check_detects_an_exchange_of_another_type(kit):
    kit.call_ok(SETUP)
    with kit.channel() as channel:
        channel.exchange_delete("user_events")
        channel.exchange_declare("user_events", "topic", durable=True)
    result = kit.call(SETUP, "--check")
    assert result.returncode == 1
    assert "user_events ya existe con type = 'topic'" in result.stdout


def test_every_script_explains_an_inequivalent_declaration(kit):
    kit.call_ok(SETUP)
    classic = kit.using(queue_type="classic")
    for command in (["setup_queues.py"], ["loyalty_consumer_simple.py"],
                    ["dead_letter_consumer.py", "--summary"],
                    ["events_publisher_levels.py", "--level", "3", "--nombre", "Ana",
                     "--email", "ana@eco.com"]):
        result = classic.call(*command, timeout=20)
        assert result.returncode == 78, command
        assert "_queue ya existe con x-" in result.stderr and "'quorum'" in result.stderr, command
        assert "QUEUE_TYPE" in result.stderr and "setup_queues.py --reset" in result.stderr, command
        assert "Traceback" not in result.stderr, command
    assert kit.depth("email_queue") == 0


def test_the_explanation_names_the_queue_and_the_argument(kit):
    with kit.channel() as channel:
        channel.queue_declare("email_queue.retry.300ms", durable=True, arguments={
            "x-queue-type": "quorum", "x-queue-leader-locator": "balanced", "x-message-ttl": 4000,
            "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
            **exchange.dead_lettering("email_queue")})
    result = kit.call(SETUP)
    assert result.returncode == 78
    assert ("email_queue.retry.300ms ya existe con x-message-ttl = '4000',"
            " y estos ajustes piden '300'") in result.stderr


# ---------------------------------------------------------------- resetting


def test_reset_replaces_queues_declared_with_other_arguments(kit, on_broker):
    kit.using(queue_type="classic").run_ok(SETUP)
    kit.call_ok(SETUP, "--reset", "--yes")
    assert {queue["type"] for queue in queues(on_broker).values()} == {"quorum"}
    assert set(queues(on_broker)) == ALL
    kit.call_ok(SETUP, "--check")


def test_reset_refuses_to_delete_messages_without_force(kit):
    kit.call_ok(SETUP)
    fill(kit, "email_queue", 2)
    for arguments in (["--reset"], ["--reset", "--yes"]):
        refused = kit.call(SETUP, *arguments)
        assert refused.returncode == 1
        assert "email_queue · listos: 2" in refused.stdout and "--force" in refused.stderr
        assert kit.depth("email_queue") == 2
    kit.call_ok(SETUP, "--reset", "--yes", "--force")
    assert kit.depth("email_queue") == 0
    kit.call_ok(SETUP, "--check")


def test_reset_refuses_while_a_consumer_is_connected(kit):
    running = kit.start_consumer("loyalty")
    refused = kit.call(SETUP, "--reset", "--yes")
    assert refused.returncode == 1 and "loyalty_queue" in refused.stdout
    kit.publish_event()
    running.wait_for("lealtad activada")


def test_reset_asks_and_no_answer_means_no(kit):
    kit.call_ok(SETUP)
    with kit.channel() as channel:
        channel.queue_delete("email_queue")  # a reset would declare it again
    for typed in (None, "n\n", "\n"):
        result = kit.call(SETUP, "--reset", typed=typed)
        assert result.returncode == 1 and "No se borra nada" in result.stderr
        assert kit.call(SETUP, "--check").returncode == 1
    result = kit.run_at_terminal("sí\n", SETUP, "--reset")
    assert "Colas: 12, mensajes: 0. ¿Borrarlo todo?" in result.stdout
    kit.call_ok(SETUP, "--check")


def test_what_is_published_while_reset_asks_is_not_deleted_without_force(kit, monkeypatch):
    kit.call_ok(SETUP)

    def publish_and_say_yes(_) -> bool:
        fill(kit, "email_queue", 1)
        return True
    monkeypatch.setattr(cli, "confirm", publish_and_say_yes)
    refused = kit.call(SETUP, "--reset")
    assert refused.returncode == 1 and "email_queue · listos: 1" in refused.stdout
    kit.wait_for_depth("email_queue", 1)


@pytest.mark.parametrize("command", [(SETUP, "--reset", "--force"),
                                     ("dead_letter_consumer.py", "--discard")])
def test_a_question_may_stand_for_longer_than_the_heartbeat(kit, monkeypatch, command):
    kit.call_ok(SETUP)
    fill(kit, "dead_letter_queue", 1)
    monkeypatch.setattr(connection, "HEARTBEAT_S", 1)

    def think_and_say_yes(_) -> bool:
        time.sleep(3)  # the broker closes a connection that is silent for two heartbeats
        monkeypatch.setattr(connection, "HEARTBEAT_S", 10)  # for what comes after the question
        return True
    monkeypatch.setattr(cli, "confirm", think_and_say_yes)
    kit.call_ok(*command)
    kit.wait_for_depth("dead_letter_queue", 0)


def test_force_still_asks(kit):
    kit.call_ok(SETUP)
    fill(kit, "email_queue", 3)
    refused = kit.call(SETUP, "--reset", "--force")
    assert refused.returncode == 1
    assert kit.depth("email_queue") == 3
    result = kit.call(SETUP, "--reset", "--force", typed="s\n")
    assert result.returncode == 0 and "mensajes: 3" in result.stdout
    assert "Colas borradas: 13, mensajes: 3." in result.stdout
    assert kit.depth("email_queue") == 0
    wait_until(lambda: kit.call(SETUP, "--check").returncode == 0, "all queues to be declared")
