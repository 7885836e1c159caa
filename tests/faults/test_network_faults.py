"""What lies between the scripts and the broker breaks: connections reset, cut, silent, deaf in one ear, slow."""

import random
import re

from common.exchange import CONSUMERS
from tests.conftest import wait_until
from tests.faults.scene import confirmed

LOST = "Sin conexión con el broker"
BACK = "Conectado de nuevo"
CONSUMING_AND_COPYING = 2 * len(CONSUMERS)  # connections
SILENCE_S = 60  # heartbeats that stay away are noticed after 15 to 30 s


def under_load(scene, proxy, count: int, rate: int):
    """The three consumers, with retries under way, and a publisher at work."""
    consumers = scene.consume()
    assert scene.publish_failing("flaky", 300, "--times", "2").end() == 0
    for consumer in consumers:
        consumer.wait_for("falló")
    publisher = scene.publish(count, "--rate", str(rate))
    publisher.wait_for('"confirmed"', count=rate // 2)
    wait_until(lambda: proxy.open == CONSUMING_AND_COPYING + 1, "a connection for copies in each consumer")
    return publisher, consumers


def wait_for_all(scripts, words: str, count: int = 1) -> None:
    for script in scripts:
        script.wait_for(words, count, SILENCE_S)


def test_connections_that_are_reset_again_and_again(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 3000, rate=200)
    for reset in range(1, 6):
        assert scene.publish_failing("flaky", 50, "--times", "2").end() == 0
        publisher.wait_for('"confirmed"', count=len(publisher.out) + 50)
        wait_until(lambda: proxy.open == CONSUMING_AND_COPYING + 1, "all connections")
        proxy.reset()
        wait_for_all((publisher, *consumers), LOST, count=reset)
        wait_for_all((publisher, *consumers), BACK, count=reset)
    scene.balance()


def test_connections_cut_in_mid_frame_at_any_byte(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 2500, rate=100)
    offsets = random.Random(13)
    for _ in range(20):
        proxy.cut_after = round(10 ** offsets.uniform(1, 5))
        wait_until(lambda: proxy.cut_after is None, "the cut", publisher.text)
    wait_for_all((publisher, *consumers), LOST, count=5)
    scene.balance()


def test_a_black_hole_longer_than_two_heartbeats_in_which_both_sides_give_up(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 2000, rate=100)
    proxy.held = {"up", "down"}
    wait_for_all((publisher, *consumers), LOST)
    wait_until(lambda: not any(map(scene.kit.consumers, CONSUMERS.values())), "the broker to give them up",
               timeout=SILENCE_S)
    proxy.held = set()  # what was on its way still arrives, at who no longer waits for it
    wait_for_all((publisher, *consumers), BACK)
    scene.balance()


def test_connections_that_die_without_a_word_are_given_up_for_new_ones(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 2000, rate=100)
    proxy.swallow()
    wait_for_all((publisher, *consumers), LOST)
    wait_for_all((publisher, *consumers), BACK)
    scene.balance()


def test_confirms_that_do_not_arrive_mean_duplicates_that_have_no_second_effect(scene, proxy):
    publisher, consumers = under_load(scene, proxy, 600, rate=200)
    proxy.held = {"down"}
    publisher.wait_for("Sin conexión con el broker: el broker no confirmó en 10 s")
    unheard = publisher_count = 600 - len(confirmed(publisher))
    proxy.held = set()
    wait_for_all([publisher], BACK)
    scene.balance()
    for consumer in consumers:
        repeated = int(re.search(r"repetidos (\d+)", consumer.text())[1])
        print(unheard, repeated)
        assert repeated >= unheard > 0


def test_half_a_second_of_latency_and_single_bytes_make_it_slow_and_nothing_else(scene, proxy):
    consumers = scene.consume()
    proxy.latency_s = 0.5
    publishers = scene.publish_failing("flaky", 20), scene.publish(100)
    scene.balance()
    assert not [script for script in (*publishers, *consumers) if LOST in script.text()]
    assert proxy.accepted == CONSUMING_AND_COPYING + len(publishers)
