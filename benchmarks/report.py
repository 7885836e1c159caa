"""The results of `kit.py bench` as Markdown tables: what it prints, and what docs/performance.md shows."""

KIT = "kit"


def table(results: dict, part: str) -> list[str]:
    """The lines of one part's table; [] for a part that was not measured."""
    found = results.get(part)
    if not found:
        return []
    rows = {"publish": _compared, "apart": _compared, "consume": _compared, "scale": _scaled, "retries": _late}
    head, *body = rows.get(part, _plain)(found)
    return [_line(cells) for cells in (head, ("---", *["---:"] * (len(head) - 1)), *body)]


def summary(results: dict) -> list[str]:
    """The body of the READMEs' table: who, confirmed publishes a second, the kit's share, the same for consuming."""
    publish, consume = results["publish"], results["consume"]
    return [_line((name, publish[name]["events_per_s"], _share(publish, name), consume[name]["events_per_s"],
                   _share(consume, name))) for name in sorted(publish, key=lambda name: -publish[name]["events_per_s"])]


def _share(found: dict, name: str) -> str:
    return "" if name == KIT else f"{found[name]['kit_is']} ×"


def _line(cells: tuple) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _compared(found: dict) -> list[tuple]:
    fastest_first = sorted(found.items(), key=lambda item: -item[1]["events_per_s"])
    costs = [(cost, words) for cost, words in (("broker_us", "broker, µs of CPU an event"), ("client_us", "client, µs"))
             if cost in found[KIT]]
    return [("", "events/s", "the kit does", *(words for _, words in costs), "rounds"), *(
        (name, one["events_per_s"], _share(found, name), *(one[cost] for cost, _ in costs), ", ".join(map(str, one["rounds"])))
        for name, one in fastest_first)]


def _scaled(found: dict) -> list[tuple]:
    alone = found["1"]["events_per_s"]
    return [("processes", "events/s", "of one process", "rounds"), *(
        (name, one["events_per_s"], f"{one['events_per_s'] / alone:.2f} ×", ", ".join(map(str, one["rounds"])))
        for name, one in found.items())]


def _late(found: dict) -> list[tuple]:
    return [("delay, s", "late by: median, ms", "99 %, ms", "least, ms"), *(
        (delay, one["p50_ms"], one["p99_ms"], one["least_ms"]) for delay, one in found.items() if delay != "waiting")]


def _plain(found: dict) -> list[tuple]:
    return [("", ""), *((name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else value)
                        for name, value in found.items())]
