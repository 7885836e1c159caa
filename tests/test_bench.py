"""`kit.py bench` measures what it reports. Few events are enough; no speed is asserted."""

import json
import sys
from dataclasses import replace

import pytest

from benchmarks import bench, race, report
from benchmarks.others import HERE, Peer
from benchmarks.rig import Bench, BenchError
from tests.conftest import ROOT

EVENTS = 60
PIKA = Peer("pika (blocking)", "", [sys.executable, str(HERE / "peers" / "with_pika.py")], False)
PAGES = {  # the marks that each must have
    "docs/performance.md": [f"<!-- {part} -->\n\n" for part in ("run", "goals", *bench.PARTS)],
    **{page: [f"<!-- flow of {name} -->" for name in (report.KIT, "aio-pika")]
       for page in ("README.md", "README.en.md")},
}
RESULTS = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))


@pytest.fixture
def measured(shared_node, tmp_path):
    """In the default vhost, which no other test uses."""
    with Bench(shared_node, tmp_path, [PIKA], 1, EVENTS) as own:
        yield own


def test_publishing_and_consuming_are_measured_beside_a_peer(measured):
    for part in (race.publish, race.consume):
        found = part(measured)
        assert found[report.KIT]["events_per_s"] > 0 and found[PIKA.name]["kit_is"] > 0
    assert PIKA.name + ", multiple acks" in found
    measured.expect(0, "all of them")


def test_a_peer_that_publishes_less_than_it_reports_is_an_error(measured):
    measured.peers = [replace(PIKA, name="liar", command=[sys.executable, "-c", "print(0.1)"])]
    with pytest.raises(BenchError, match="Con liar quedan 0 eventos en loyalty_queue, y no 1"):
        race.publish(measured)


def test_a_failing_peer_is_named_with_its_last_line(measured):
    measured.peers = [replace(PIKA, name="broken",
                              command=[sys.executable, "-c", "raise SystemExit('no route')"])]
    with pytest.raises(BenchError, match="broken salió con código 1: .*no route"):
        race.publish(measured)


def test_a_peer_does_the_work_of_the_kit_and_a_kill_loses_and_doubles_nothing(measured):
    names = {report.KIT, *(f"{PIKA.name}, {how}" for how in (report.ONE_BY_ONE, report.BATCHES))}
    measured.events = 60 * EVENTS
    assert set(race.outbox(measured)) == names
    found = race.work(measured)
    assert {name: (one["lost"], one["doubled"]) for name, one in found.items()} == dict.fromkeys(
        names, (0, 0))


@pytest.mark.parametrize("ack, work, wrong, again_s", [
    ("True", "inbox.do(body), inbox.commit()", "lost", 2),  # acked before it is done
    ("False", "inbox.handler(work.decode(body), inbox.db)", "doubled", 60)])  # no ledger, no ack
def test_what_a_peer_loses_or_doubles_when_it_is_killed_is_counted(
        measured, tmp_path, monkeypatch, ack, work, wrong, again_s):
    program = tmp_path / "careless.py"
    program.write_text(f"""
import sys
sys.path.insert(0, {str(HERE / "peers")!r})
import pika, work
def consume(url, inbox):
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.basic_consume(inbox.queue, lambda c, d, p, body: ({work}), auto_ack={ack})
    channel.start_consuming()
work.main(None, consume)
""", encoding="utf-8")
    careless = replace(PIKA, name="careless", command=[sys.executable, str(program)])
    monkeypatch.setattr(race, "AGAIN_S", again_s)
    found = race.killed(measured, race.Racer("careless", careless, race.EACH))
    assert found.pop(wrong) > 0 and set(found.values()) == {0}


def test_dead_letters_are_counted_exported_and_replayed(measured):
    assert bench.letters(measured)["dead letters"] == 200
    assert measured.on_channel(lambda channel: channel.queue_declare(
        "dead_letter_queue", passive=True).method.message_count) == 0


def test_flow_processes_memory_and_ledger_are_measured(measured):
    assert race.flow(measured)[report.KIT]["events_per_s"] > 0
    assert 0 < bench.latency(measured)["p50_ms"] < 60_000
    assert set(bench.scale(measured)) == {"1", "2", "4"}
    memory = bench.memory(measured)
    assert memory["events"] == bench.MANY * EVENTS and 5 < memory["consumer_mb"] < 500
    assert bench.ledger(measured)["rows"] == bench.MANY * EVENTS
    assert bench.start_up(measured)["python -c pass"] > 0


def test_no_retry_arrives_before_its_delay_is_over(measured):
    measured.settings = replace(measured.settings, retry_delays=(0.3, 0.6))
    measured.environment["RETRY_DELAYS"] = "0.3,0.6"
    found = bench.retries(measured)
    least_ms = [found[delay]["least_ms"] for delay in ("0.3", "0.6")]
    assert found["waiting"] == 20 and min(least_ms) >= -2, least_ms  # two rounded times


def test_a_page_of_a_run_of_one_part_says_that_the_others_were_not_measured():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    others = set(bench.PARTS) - {"ledger"}
    alone = report.fill(page, {name: RESULTS[name] for name in set(RESULTS) - others})
    assert alone.count(report.NOTHING) == len(others) + 1  # no goal is about the ledger
    assert report.fill(alone, RESULTS) == page


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_show_the_recorded_figures(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    assert [mark for mark in PAGES[name] if mark not in page] == []
    assert set(bench.PARTS) <= set(RESULTS) and report.fill(page, RESULTS) == page
