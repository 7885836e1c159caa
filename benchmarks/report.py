"""The results of `kit.py bench` as Markdown tables, for the screen and docs/performance.md."""

import re
from functools import partial

KIT = "kit"
NOTHING = "Not measured in this run."
ONE_BY_ONE, BATCHES = "one by one", "batches"  # how a peer commits, or publishes
GOALS = (  # what, part, end of the peers' names, factor asked for
    ("consuming, a commit for each event", "work", ONE_BY_ONE, 3),
    ("consuming, in batches", "work", BATCHES, 1),
    ("publishing with an outbox, one by one", "outbox", ONE_BY_ONE, 3),
    ("publishing with an outbox, in batches", "outbox", BATCHES, 0),
    ("everything at once", "flow", "", 0))


def table(results: dict, part: str) -> list[str]:
    """The lines of one part's table; [] for a part that was not measured."""
    found = results.get(part)
    if not found:
        return []
    head, *body = LAYOUTS.get(part, _plain)(found)
    return _lines(head, body)


def fill(page: str, results: dict) -> str:
    """Put what was measured after each <!-- part -->, and the number after each <!-- flow of NAME
    --> in a sentence: the kit's events a second, and the factor to the best flow with a library."""
    def lines_of(found: re.Match) -> str:
        lines = {"run": run, "goals": goals}.get(found[1], partial(table, part=found[1]))(results)
        return f"<!-- {found[1]} -->\n\n" + "\n".join([*(lines or [NOTHING]), ""])

    page = re.sub(r"<!-- (\w+) -->\n\n(?:(?:\||Measured |Not measured).*\n)*", lines_of, page)
    if "flow" not in results:
        return page
    return re.sub(r"(<!-- flow of ([\w-]+) -->)[\d.]+",
                  lambda found: f"{found[1]}{flow_figure(results['flow'], found[2])}", page)


def flow_figure(flow: dict, name: str) -> float:
    if name == KIT:
        return flow[KIT]["events_per_s"]
    return min(one["kit_is"] for peer, one in flow.items() if peer.startswith(name))


def run(results: dict) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return [f"Measured on {results['when']}: {results['machine']}; {results['rounds']} rounds of"
            f" {results['events']} events; {versions}."]


def goals(results: dict) -> list[str]:
    """What the kit does of the best peer of a kind, beside what was asked for."""
    rows: list[tuple] = [
        (what, f"{asked} ×" if asked else "", f"{ratio} ×", name)
        for what, part, kind, asked in GOALS if part in results
        for ratio, name in [min((one["kit_is"], name) for name, one in results[part].items()
                                if name != KIT and name.endswith(kind))]]
    head = ("the kit, of the best peer", "asked for", "is", "the peer")
    return _lines(head, rows) if rows else []


def _lines(head: tuple, body: list[tuple]) -> list[str]:
    return [_line(cells) for cells in (head, ("---", *["---:"] * (len(head) - 1)), *body)]


def _ratio(found: dict, name: str) -> str:
    return "" if name == KIT else f"{found[name]['kit_is']} ×"


def _line(cells: tuple) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _rounds(one: dict) -> str:
    return ", ".join(map(str, one["rounds"]))


TITLES = {"broker_us": "broker, µs of CPU an event", "client_us": "client, µs",
          "lost": "lost when killed", "doubled": "doubled"}


def _comparison(found: dict) -> list[tuple]:
    titles = {name: title for name, title in TITLES.items() if name in found[KIT]}
    head = ("", "events/s", "the kit does", *titles.values(), "rounds")
    fastest_first = sorted(found.items(), key=lambda item: -item[1]["events_per_s"])
    return [head, *((name, one["events_per_s"], _ratio(found, name),
                     *(one[name] for name in titles), _rounds(one))
                    for name, one in fastest_first)]


def _scaling(found: dict) -> list[tuple]:
    alone = found["1"]["events_per_s"]
    return [("processes", "events/s", "of one process", "rounds"), *(
        (name, one["events_per_s"], f"{one['events_per_s'] / alone:.2f} ×", _rounds(one))
        for name, one in found.items())]


def _lateness(found: dict) -> list[tuple]:
    return [("delay, s", "late by: median, ms", "99 %, ms", "least, ms"), *(
        (delay, one["p50_ms"], one["p99_ms"], one["least_ms"])
        for delay, one in found.items() if delay != "waiting")]


def _plain(found: dict) -> list[tuple]:
    return [("", ""), *(
        (name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else value)
        for name, value in found.items())]


LAYOUTS = {**dict.fromkeys(("publish", "apart", "consume", "outbox", "work", "flow"), _comparison),
           "scale": _scaling, "retries": _lateness}
