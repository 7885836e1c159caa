"""setup_queues.py against a real broker: what it declares, shows, compares, resets and explains."""

import base64
import json
import urllib.request

import pytest

from common import exchange
from tests.conftest import wait_until

SETUP = "setup_queues.py"
MAIN = ("email_queue", "loyalty_queue", "analytics_queue")
RETRIES = [f"{queue}.retry.{delay}ms" for queue in MAIN for delay in (300, 600, 900)]
ALL = {*MAIN, *RETRIES, "dead_letter_queue"}


@pytest.fixture
def on_broker(kit, shared_node):
    """Asks the broker's management: on_broker("queues") or "exchanges" or "bindings", of the test's vhost."""
    def ask(what: str) -> list[dict]:
        vhost = kit.url.rpartition("/")[2]
        request = urllib.request.Request(f"{shared_node.management_url}/api/{what}/{vhost}")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)
    return ask


def queues(on_broker) -> dict[str, dict]:
    return {queue["name"]: queue for queue in on_broker("queues")}


def fill(kit, queue: str, count: int) -> None:
    for _ in range(count):
        kit.publish_event(queue=queue)


# ---------------------------------------------------------------- declares


def test_it_declares_the_exchange_every_queue_and_the_three_bindings(kit, on_broker):
    kit.done(SETUP)
    assert set(queues(on_broker)) == ALL
    [found] = [one for one in on_broker("exchanges") if one["name"] == "user_events"]
    assert (found["type"], found["durable"]) == ("fanout", True)
    assert {one["destination"] for one in on_broker("bindings") if one["source"] == "user_events"} == set(MAIN)
    kit.publish_event()
    for queue in MAIN:
        kit.wait_for_depth(queue, 1)


def test_doing_it_again_changes_nothing_and_loses_nothing(kit, on_broker):
    kit.done(SETUP)
    kit.publish_event()
    before = {name: queue["arguments"] for name, queue in queues(on_broker).items()}
    kit.done(SETUP)
    assert {name: queue["arguments"] for name, queue in queues(on_broker).items()} == before
    for queue in MAIN:
        assert kit.depth(queue) == 1


DEAD = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead_letter_queue"}
BACK = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "email_queue", "x-message-ttl": 300}
SAFE = {"x-queue-type": "quorum", "x-queue-leader-locator": "balanced"}
AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
CLASSIC = {"x-queue-type": "classic"}


@pytest.mark.parametrize("queue_type, wanted", [
    ("quorum", {"email_queue": SAFE | DEAD | AT_LEAST_ONCE | {"x-delivery-limit": 100},
                "email_queue.retry.300ms": SAFE | BACK | AT_LEAST_ONCE,
                "dead_letter_queue": SAFE | {"x-delivery-limit": 1_000_000}}),
    ("classic", {"email_queue": CLASSIC | DEAD, "email_queue.retry.300ms": CLASSIC | BACK, "dead_letter_queue": CLASSIC})])
def test_the_broker_has_the_arguments_of_the_design(kit, on_broker, queue_type, wanted):
    kit.using(queue_type=queue_type).done(SETUP)
    found = queues(on_broker)
    assert {name: found[name]["arguments"] for name in wanted} == wanted
    assert {queue["type"] for queue in found.values()} == {queue_type}
    assert all(queue["durable"] and not queue["auto_delete"] for queue in found.values())


def test_the_delivery_limit_is_a_backstop_and_looking_at_dead_letters_never_meets_it(kit):
    """That a declaration was accepted proves nothing (docs/facts.md, broker 18): give a message back 150 times."""
    kit.done(SETUP)
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
    deaths = [(properties.headers or {}).get("x-death") for properties, _ in kit.messages("dead_letter_queue")]
    assert sorted(death[0]["reason"] if death else "" for death in deaths) == ["", "delivery_limit"]


# ---------------------------------------------------------------- shows


def test_it_prints_the_tree_with_depths_and_consumers(kit):
    kit.done(SETUP)
    kit.start_consumer("loyalty")
    kit.publish_event()
    kit.wait_for_depth("loyalty_queue", 0)
    fill(kit, "dead_letter_queue", 2)
    lines = [" ".join(line.split()) for line in kit.done(SETUP).stdout.splitlines()]
    assert lines[0] == "user_events (fanout)"
    assert "├─ email_queue listos: 1 consumidores: 0" in lines
    assert "├─ loyalty_queue listos: 0 consumidores: 1" in lines
    assert lines.index("│ ├─ email_queue.retry.300ms listos: 0 consumidores: 0") == 2
    assert "└─ analytics_queue listos: 1 consumidores: 0" in lines
    assert lines[-1] == "dead_letter_queue listos: 2 consumidores: 0"
    assert len(lines) == 1 + len(ALL)


@pytest.mark.parametrize("arguments", [
    ["--show", "text"], ["--show", "json"], ["--show", "mermaid"], ["--dry-run"], ["--show", "text", "--json"]])
def test_looking_changes_nothing(kit, on_broker, arguments):
    kit.done(SETUP, *arguments)
    assert queues(on_broker) == {}
    assert not [one for one in on_broker("exchanges") if one["name"] == "user_events"]


def test_show_json_tells_depth_consumers_and_arguments_of_each_queue(kit):
    assert {queue["ready"] for queue in json.loads(kit.done(SETUP, "--show", "json").stdout)["queues"]} == {None}
    kit.done(SETUP)
    fill(kit, "email_queue", 2)
    shown = json.loads(kit.done(SETUP, "--show", "json").stdout)
    found = {queue["name"]: queue for queue in shown["queues"]}
    assert shown["exchange"] == "user_events" and set(found) == ALL
    assert (found["email_queue"]["ready"], found["email_queue"]["consumers"], found["email_queue"]["bound"]) == (2, 0, True)
    assert found["email_queue.retry.300ms"]["arguments"]["x-message-ttl"] == 300
    assert not found["dead_letter_queue"]["bound"]


def test_show_mermaid_draws_every_queue_without_a_broker(kit):
    drawn = kit.using(url="amqp://guest:guest@127.0.0.1:1/%2F").done(SETUP, "--show", "mermaid").stdout
    assert drawn.startswith("flowchart")
    assert not [name for name in ALL if name not in drawn]
    assert "email_queue.retry.300ms -- 0.3 s --> email_queue" in drawn


def test_a_dry_run_says_what_it_would_create(kit):
    kit.done(SETUP)
    with kit.channel() as channel:
        channel.queue_delete("email_queue.retry.600ms")
    lines = kit.done(SETUP, "--dry-run").stdout.splitlines()
    assert [line.split()[-1] for line in lines if "crearía" in line] == ["email_queue.retry.600ms"]
    assert len(lines) == len(ALL)


# ---------------------------------------------------------------- compares


def test_check_is_0_for_what_it_declared_and_1_with_each_difference(kit):
    empty = kit.run(SETUP, "--check")
    assert empty.returncode == 1
    assert "falta el exchange user_events" in empty.stdout
    assert not [name for name in ALL if f"falta la cola {name}" not in empty.stdout]
    kit.done(SETUP)
    assert "✔" in kit.done(SETUP, "--check").stdout
    with kit.channel() as channel:
        channel.queue_delete("email_queue.retry.600ms")
        channel.queue_delete("loyalty_queue")
        channel.queue_declare("loyalty_queue", durable=True, arguments={"x-queue-type": "quorum"})
    changed = kit.run(SETUP, "--check")
    assert changed.returncode == 1
    [missing, otherwise] = [line for line in changed.stdout.splitlines() if line.startswith("✘")]
    assert "falta la cola email_queue.retry.600ms" in missing
    assert "loyalty_queue ya existe sin x-" in otherwise and "piden" in otherwise
    assert kit.run(SETUP, "--check").stdout == changed.stdout  # it changed nothing


def test_check_sees_an_exchange_of_another_type(kit):
    kit.done(SETUP)
    with kit.channel() as channel:
        channel.exchange_delete("user_events")
        channel.exchange_declare("user_events", "topic", durable=True)
    ended = kit.run(SETUP, "--check")
    assert ended.returncode == 1
    assert "user_events ya existe con type = 'topic'" in ended.stdout


def test_an_inequivalent_declaration_is_explained_by_whoever_meets_it(kit):
    kit.done(SETUP)
    classic = kit.using(queue_type="classic")
    for command in (["setup_queues.py"], ["loyalty_consumer_simple.py"], ["dead_letter_consumer.py", "--summary"],
                    ["events_publisher_levels.py", "--level", "3", "--nombre", "Ana", "--email", "ana@eco.com"]):
        ended = classic.run(*command, timeout=20)
        assert ended.returncode == 78, command
        assert "_queue ya existe con x-" in ended.stderr and "'quorum'" in ended.stderr, command
        assert "QUEUE_TYPE" in ended.stderr and "setup_queues.py --reset" in ended.stderr, command
        assert "Traceback" not in ended.stderr, command
    assert kit.depth("email_queue") == 0


def test_the_explanation_names_the_queue_and_the_argument(kit):
    with kit.channel() as channel:
        channel.queue_declare("email_queue.retry.300ms", durable=True, arguments={
            "x-queue-type": "quorum", "x-queue-leader-locator": "balanced", "x-message-ttl": 4000,
            "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish", **exchange.dead_lettering("email_queue")})
    ended = kit.run(SETUP)
    assert ended.returncode == 78
    assert "email_queue.retry.300ms ya existe con x-message-ttl = '4000', y estos ajustes piden '300'" in ended.stderr


# ---------------------------------------------------------------- resets


def test_reset_makes_everything_anew_even_what_was_declared_otherwise(kit, on_broker):
    kit.using(queue_type="classic").done(SETUP)
    kit.done(SETUP, "--reset", "--yes")
    assert {queue["type"] for queue in queues(on_broker).values()} == {"quorum"}
    assert set(queues(on_broker)) == ALL
    kit.done(SETUP, "--check")


def test_reset_refuses_to_drop_messages_unless_forced(kit):
    kit.done(SETUP)
    fill(kit, "email_queue", 2)
    for arguments in (["--reset"], ["--reset", "--yes"]):
        refused = kit.run(SETUP, *arguments)
        assert refused.returncode == 1
        assert "email_queue: 2" in refused.stdout and "--force" in refused.stderr
        assert kit.depth("email_queue") == 2
    kit.done(SETUP, "--reset", "--yes", "--force")
    assert kit.depth("email_queue") == 0
    kit.done(SETUP, "--check")


def test_reset_refuses_while_somebody_consumes(kit):
    running = kit.start_consumer("loyalty")
    refused = kit.run(SETUP, "--reset", "--yes")
    assert refused.returncode == 1 and "loyalty_queue" in refused.stdout
    kit.publish_event()
    running.wait_for("lealtad activada")


def test_reset_asks_and_no_answer_is_a_no(kit):
    kit.done(SETUP)
    with kit.channel() as channel:
        channel.queue_delete("email_queue")  # what a reset would bring back
    for ended in (kit.run(SETUP, "--reset"), kit.run_at_terminal("n\n", SETUP, "--reset"),
                  kit.run_at_terminal("\n", SETUP, "--reset")):
        assert ended.returncode == 1
        assert "No se borra nada" in ended.stdout + (ended.stderr or "")
        assert kit.run(SETUP, "--check").returncode == 1
    assert "Colas: 12, mensajes en ellas: 0. ¿Borrarlo todo?" in kit.run_at_terminal("sí\n", SETUP, "--reset").stdout
    kit.done(SETUP, "--check")


def test_force_still_asks(kit):
    kit.done(SETUP)
    fill(kit, "email_queue", 3)
    refused = kit.run(SETUP, "--reset", "--force")
    assert refused.returncode == 1
    assert kit.depth("email_queue") == 3
    ended = kit.run_at_terminal("s\n", SETUP, "--reset", "--force")
    assert ended.returncode == 0 and "mensajes en ellas: 3" in ended.stdout
    assert kit.depth("email_queue") == 0
    wait_until(lambda: kit.run(SETUP, "--check").returncode == 0, "everything to be there")
