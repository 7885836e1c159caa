"""The results of `kit.py bench` as Markdown tables, for the screen and docs/performance.md."""

KIT = "kit"


def table(results: dict, part: str) -> list[str]:
    """The lines of one part's table; [] for a part that was not measured."""
    found = results.get(part)
    if not found:
        return []
    layouts = {"publish": _comparison, "apart": _comparison, "consume": _comparison,
               "scale": _scaling, "retries": _lateness}
    head, *body = layouts.get(part, _plain)(found)
    return [_line(cells) for cells in (head, ("---", *["---:"] * (len(head) - 1)), *body)]


def summary(results: dict) -> list[str]:
    """The rows of the READMEs' table: name, publish rate, kit's ratio, consume rate, ratio."""
    publish, consume = results["publish"], results["consume"]
    fastest_first = sorted(publish, key=lambda name: -publish[name]["events_per_s"])
    return [_line((name, publish[name]["events_per_s"], _ratio(publish, name),
                   consume[name]["events_per_s"], _ratio(consume, name)))
            for name in fastest_first]


def _ratio(found: dict, name: str) -> str:
    return "" if name == KIT else f"{found[name]['kit_is']} ×"


def _line(cells: tuple) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _rounds(one: dict) -> str:
    return ", ".join(map(str, one["rounds"]))


def _comparison(found: dict) -> list[tuple]:
    titles = {"broker_us": "broker, µs of CPU an event", "client_us": "client, µs"}
    costs = [cost for cost in titles if cost in found[KIT]]
    head = ("", "events/s", "the kit does", *(titles[cost] for cost in costs), "rounds")
    fastest_first = sorted(found.items(), key=lambda item: -item[1]["events_per_s"])
    return [head, *((name, one["events_per_s"], _ratio(found, name),
                     *(one[cost] for cost in costs), _rounds(one))
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
