"""`kit.py bench` measures what it reports. Few events are enough; no speed is asserted."""

import copy
import json
import sys
from dataclasses import replace

import pytest

from benchmarks import bench, report
from benchmarks.others import HERE, Peer
from tests.conftest import ROOT

EVENTS = 60
PIKA = Peer("pika (blocking)", "", [sys.executable, str(HERE / "peers" / "with_pika.py")], False)
RESULTS = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))


@pytest.fixture
def measured(kit, tmp_path):
    """Return a Bench in its own vhost, instead of on a node of its own."""
    node = copy.copy(kit.node)
    node.url = kit.url
    return bench.Bench(node, tmp_path, [PIKA], 1, EVENTS)


def test_publishing_and_consuming_are_measured_beside_a_peer(measured):
    for part in (bench.publish, bench.consume):
        found = part(measured)
        assert found[report.KIT]["events_per_s"] > 0 and found[PIKA.name]["kit_is"] > 0
    assert PIKA.name + ", multiple acks" in found
    measured.expect(0, "all of them")


def test_a_peer_that_publishes_less_than_it_reports_is_an_error(measured):
    dishonest = replace(PIKA, name="liar", command=[sys.executable, "-c", "print(0.1)"])
    with pytest.raises(bench.BenchError,
                       match="Con liar quedan 0 eventos en loyalty_queue, y no 1"):
        bench.publish(bench.Bench(measured.node, measured.folder, [dishonest], 1, EVENTS))


def test_a_failing_peer_is_named_with_its_last_line(measured):
    broken = replace(PIKA, name="broken",
                     command=[sys.executable, "-c", "raise SystemExit('no route')"])
    with pytest.raises(bench.BenchError, match="broken salió con código 1: .*no route"):
        bench.publish(bench.Bench(measured.node, measured.folder, [broken], 1, EVENTS))


def test_flow_processes_memory_and_ledger_are_measured(measured):
    assert 0 < bench.flow(measured)["p50_ms"] < 60_000
    assert set(bench.scale(measured)) == {"1", "2", "4"}
    memory = bench.memory(measured)
    assert memory["events"] == bench.MANY * EVENTS and 5 < memory["consumer_mb"] < 500
    assert bench.ledger(measured)["rows"] == bench.MANY * EVENTS
    assert bench.start_up(measured)["python -c pass"] > 0


def test_no_retry_arrives_before_its_delay_is_over(measured):
    measured.settings = replace(measured.settings, retry_delays=(0.3, 0.6))
    measured.environment["RETRY_DELAYS"] = "0.3,0.6"
    found = bench.retries(measured)
    assert found["waiting"] == 20 and all(found[delay]["least_ms"] > -5 for delay in ("0.3", "0.6"))


@pytest.mark.parametrize("part", bench.PARTS)
def test_the_performance_page_shows_the_recorded_figures(part):
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = report.table(RESULTS, part)
    assert len(table) > 2 and "\n".join(table) in page


@pytest.mark.parametrize("name", ["README.md", "README.en.md"])
def test_the_readmes_show_the_recorded_figures(name):
    assert "\n".join(report.summary(RESULTS)) in (ROOT / name).read_text(encoding="utf-8")
