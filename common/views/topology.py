"""The topology drawn: as a tree, as JSON, as a Mermaid diagram."""

from common import console
from common.config import Settings
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, EXCHANGE, topology
from common.views.status import Found


def tree(states: list[Found]) -> list[str]:
    """The exchange, its queues with their retries below them, the dead letter queue."""
    rows = [(f"{EXCHANGE} (fanout)", "", "", "")]
    names = list(CONSUMERS.values())
    for name in names:
        branch, below = ("└─ ", "   ") if name == names[-1] else ("├─ ", "│  ")
        own, *others, last = (state for state in states if state.queue.name.startswith(name))
        rows += [row(own, branch), *(row(state, f"{below}├─ ") for state in others),
                 row(last, f"{below}└─ ")]
    return console.table([*rows, row(states[0])])  # topology() begins with the dead letters


def row(state: Found, branch: str = "") -> tuple[str, str, str, str]:
    """Its name and what is in it; "" for what is not known."""
    name = f"{branch}{state.queue.name}"
    if state.ready is None:
        return name, "no está", "", ""
    return (name, f"listos: {state.ready}",
            "" if state.unacked is None else f"sin ack: {state.unacked}",
            "de otro RETRY_DELAYS" if state.other else f"consumidores: {state.consumers}")


def as_json(states) -> dict:
    return {"exchange": EXCHANGE, "queues": [
        {"name": state.queue.name, "ready": state.ready, "unacked": state.unacked,
         "consumers": state.consumers, "bound": state.queue.bound,
         "arguments": state.queue.arguments} for state in states]}


def mermaid(settings: Settings) -> str:
    """The diagram of docs/topologia.md; needs no broker."""
    lines = ["flowchart LR",
             f"  publisher([events_publisher_levels.py]) --> {EXCHANGE}{{{{{EXCHANGE} · fanout}}}}"]
    for queue in topology(settings):
        target = queue.arguments.get("x-dead-letter-routing-key")
        consumer = next((name for name, own in CONSUMERS.items()
                         if own in (queue.name, target)), "")
        if queue.bound:
            lines += [f"  {EXCHANGE} --> {queue.name}",
                      f"  {queue.name} --> {consumer}([consumidor {consumer}])",
                      f"  {consumer} -. sin más intentos .-> {DEAD_LETTER_QUEUE}"]
        elif target:
            delay_s = queue.arguments["x-message-ttl"] / 1000
            lines += [f"  {consumer} -. falla .-> {queue.name}",
                      f"  {queue.name} -- {delay_s:g} s --> {target}"]
    return "\n".join(lines)
