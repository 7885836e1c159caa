"""Network faults: connections are reset, cut, blocked in one or both directions, or slow."""

import random
import re
import time
from pathlib import Path

from common.exchange import CONSUMERS
from tests.conftest import Running, wait_until
from tests.faults.proxy import Proxy
from tests.faults.scene import ENDLESS, Scene, confirmed

LOST = "Sin conexión con el broker"
RECONNECTED = "Conectado de nuevo"
CONSUMING_AND_COPYING = 2 * len(CONSUMERS)  # connections
SILENCE_S = 60  # missing heartbeats are detected after 15 to 30 s


def under_load(scene: Scene, proxy: Proxy, count: int, rate: int) -> tuple[Running, list[Running]]:
    """Start a publisher and the three consumers, and wait for all their connections."""
    consumers = scene.consume()
    publisher = scene.publish(count, "--rate", str(rate))
    assert scene.publish_failing("flaky", 1).end() == 0
    wait_until(lambda: proxy.open == CONSUMING_AND_COPYING + 1, "all connections")
    return publisher, consumers


def start_failures(scene: Scene, consumers: list[Running]) -> None:
    """Publish failing events and wait until each consumer sends retry copies."""
    counts = [consumer.text().count("falló") for consumer in consumers]
    scene.publish_failing("flaky", 200)
    for consumer, before in zip(consumers, counts):
        consumer.wait_for("falló", count=before + 1)


def wait_for_all(scripts: list[Running], words: str, count: int = 1) -> None:
    for script in scripts:
        script.wait_for(words, count, SILENCE_S)


def test_repeated_connection_resets_lose_nothing(scene, proxy):
    publisher, consumers = under_load(scene, proxy, ENDLESS, rate=100)
    for reset in (1, 2, 3):
        start_failures(scene, consumers)
        proxy.held = {"down"}  # the broker has confirmed more than the scripts know
        wait_until(lambda: scene.kit.depth("loyalty_queue") > 0, "more than is prefetched",
                   publisher.text)
        proxy.reset()
        proxy.held = set()
        wait_for_all([publisher, *consumers], LOST, count=reset)
        wait_for_all([publisher, *consumers], RECONNECTED, count=reset)
    scene.balance()


def test_connections_cut_in_mid_frame_lose_nothing(scene, proxy):
    publisher, consumers = under_load(scene, proxy, ENDLESS, rate=100)
    start_failures(scene, consumers)
    offsets = random.Random(13)
    for cut in range(1, 31):
        proxy.cut_after = round(10 ** offsets.uniform(1, 5))  # within a handshake, among events
        publisher.wait_for(LOST, count=cut)
        publisher.wait_for(RECONNECTED, count=cut)
    wait_for_all(consumers, LOST, count=10)
    scene.balance()


def test_a_black_hole_longer_than_two_heartbeats_loses_nothing(scene, proxy):
    publisher, consumers = under_load(scene, proxy, ENDLESS, rate=60)
    start_failures(scene, consumers)
    proxy.held = {"up", "down"}
    wait_for_all([publisher, *consumers], LOST)
    wait_until(lambda: not any(map(scene.kit.consumers, CONSUMERS.values())),
               "the broker to close their connections", timeout=SILENCE_S)
    proxy.held = set()  # late data arrives at closed connections
    wait_for_all([publisher, *consumers], RECONNECTED)
    scene.balance()


def test_connections_that_go_silent_are_replaced(scene, proxy):
    publisher, consumers = under_load(scene, proxy, ENDLESS, rate=60)
    start_failures(scene, consumers)
    proxy.swallow()
    wait_for_all([publisher, *consumers], LOST)
    wait_for_all([publisher, *consumers], RECONNECTED)
    scene.balance()


def test_missing_confirms_cause_duplicates_without_a_second_effect(scene, proxy):
    consumers = scene.consume()
    assert scene.publish_failing("flaky", 1).end() == 0
    wait_until(lambda: proxy.open == CONSUMING_AND_COPYING, "all connections")
    assert scene.publish_failing("slow", 1, "--seconds", "12").end() == 0
    # These events wait behind the slow one, and fail while nothing arrives.
    assert scene.publish_failing("flaky", 200).end() == 0
    publisher = scene.publish(600, "--rate", "60")
    publisher.wait_for('"confirmed"')
    before = proxy.accepted
    proxy.held = {"down"}
    publisher.wait_for("Sin conexión con el broker: el broker no confirmó en 10 s")
    unconfirmed = scene.attempted - sum(len(confirmed(each)) for each in scene.publishers)
    wait_until(lambda: proxy.accepted > before + len(CONSUMERS),
               "the copying connections to be replaced too")
    proxy.held = set()
    wait_for_all([publisher], RECONNECTED)
    scene.balance()
    for consumer in consumers:
        duplicates = int(re.search(r"duplicados (\d+)", consumer.text())[1])
        assert duplicates > unconfirmed > 0


def test_high_latency_and_single_byte_segments_break_no_connection(scene, proxy):
    consumers = scene.consume()
    proxy.latency_s = 0.5
    publishers = scene.publish_failing("flaky", 20), scene.publish(100)
    scene.balance()
    assert not [script for script in (*publishers, *consumers) if LOST in script.text()]
    assert proxy.accepted == CONSUMING_AND_COPYING + len(publishers)


def test_the_memory_of_a_consumer_with_a_slow_handler_is_flat_over_fifty_lost_connections(
        scene, proxy):
    [consumer] = scene.consume("loyalty")
    assert scene.publish_failing("slow", 1, "--consumer", "loyalty", "--seconds", "30").end() == 0
    scene.publish_all(400)  # each new connection brings 200 of them
    wait_until(lambda: proxy.open == 1, "the consumer alone")
    used_kib = []
    for _ in range(50):
        accepted = proxy.accepted
        proxy.reset()
        wait_until(lambda: proxy.accepted > accepted and proxy.open, "a new connection")
        time.sleep(0.2)  # it declares, consumes, and is given its 200
        status = Path(f"/proc/{consumer.process.pid}/status")
        used_kib.append(int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]))
    print(f"KiB after 1, 10, 50 lost connections: {used_kib[0]}, {used_kib[9]}, {used_kib[-1]}")
    assert used_kib[-1] < 1.05 * used_kib[9]
    scene.consume("email", "analytics")
    scene.balance()
