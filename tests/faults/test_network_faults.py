"""What lies between the scripts and the broker breaks: connections reset, cut, silent, deaf in one ear, slow."""

import random
import re

from common.exchange import CONSUMERS
from tests.conftest import Running, wait_until
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene, confirmed

LOST = "Sin conexión con el broker"
BACK = "Conectado de nuevo"
CONSUMING_AND_COPYING = 2 * len(CONSUMERS)  # connections
SILENCE_S = 60  # heartbeats that stay away are noticed after 15 to 30 s


def under_load(scene: Scene, proxy: Proxy, count: int, rate: int) -> tuple[Running, list[Running]]:
    """A publisher at work and the three consumers, each with both its connections."""
    consumers = scene.consume()
    publisher = scene.publish(count, "--rate", str(rate))
    assert scene.publish_failing("flaky", 1).end() == 0
    wait_until(lambda: proxy.open == CONSUMING_AND_COPYING + 1, "all connections")
    return publisher, consumers


def fail(scene: Scene, consumers: list[Running]) -> None:
    """Each consumer has just begun with events that fail, and is busy with their copies."""
    said = [consumer.text().count("falló") for consumer in consumers]
    scene.publish_failing("flaky", 200)
    for consumer, before in zip(consumers, said):
        consumer.wait_for("falló", count=before + 1)


def wait_for_all(scripts: list[Running], words: str, count: int = 1) -> None:
    for script in scripts:
        script.wait_for(words, count, SILENCE_S)


def test_connections_that_are_reset_again_and_again(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 2500, rate=100)
    for reset in (1, 2, 3):
        fail(scene, consumers)
        proxy.held = {"down"}  # so that the broker has more than it was heard to say
        wait_until(lambda: scene.kit.depth("loyalty_queue") > 0, "more than is prefetched", publisher.text)
        proxy.reset()
        proxy.held = set()
        wait_for_all([publisher, *consumers], LOST, count=reset)
        wait_for_all([publisher, *consumers], BACK, count=reset)
    scene.balance()


def test_connections_cut_in_mid_frame_at_any_byte(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 2000, rate=100)
    fail(scene, consumers)
    offsets = random.Random(13)
    for cut in range(1, 31):
        proxy.cut_after = round(10 ** offsets.uniform(1, 5))  # within a handshake, among events
        publisher.wait_for(LOST, count=cut)
        publisher.wait_for(BACK, count=cut)
    wait_for_all(consumers, LOST, count=10)
    scene.balance()


def test_a_black_hole_longer_than_two_heartbeats_in_which_both_sides_give_up(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 600, rate=60)
    fail(scene, consumers)
    proxy.held = {"up", "down"}
    wait_for_all([publisher, *consumers], LOST)
    wait_until(lambda: not any(map(scene.kit.consumers, CONSUMERS.values())), "the broker to give them up",
               timeout=SILENCE_S)
    proxy.held = set()  # what was on its way still arrives, at who no longer waits for it
    wait_for_all([publisher, *consumers], BACK)
    scene.balance()


def test_connections_that_die_without_a_word_are_given_up_for_new_ones(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 600, rate=60)
    fail(scene, consumers)
    proxy.swallow()
    wait_for_all([publisher, *consumers], LOST)
    wait_for_all([publisher, *consumers], BACK)
    scene.balance()


def test_confirms_that_do_not_arrive_mean_duplicates_that_have_no_second_effect(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 600, rate=60)
    assert scene.publish_failing("slow", 1, "--seconds", "4").end() == 0
    assert scene.publish_failing("flaky", 200).end() == 0  # they wait behind it, and fail in the silence
    before = proxy.accepted
    proxy.held = {"down"}
    publisher.wait_for("Sin conexión con el broker: el broker no confirmó en 10 s")
    unheard = scene.attempted - sum(len(confirmed(each)) for each in scene.publishers)
    wait_until(lambda: proxy.accepted > before + len(CONSUMERS), "those who copy to give up as well")
    proxy.held = set()
    wait_for_all([publisher], BACK)
    scene.balance()
    for consumer in consumers:
        repeated = int(re.search(r"repetidos (\d+)", consumer.text())[1])
        assert repeated > unheard > 0


def test_half_a_second_of_latency_and_single_bytes_make_it_slow_and_nothing_else(scene, proxy):
    consumers = scene.consume()
    proxy.latency_s = 0.5
    publishers = scene.publish_failing("flaky", 20), scene.publish(100)
    scene.balance()
    assert not [script for script in (*publishers, *consumers) if LOST in script.text()]
    assert proxy.accepted == CONSUMING_AND_COPYING + len(publishers)
