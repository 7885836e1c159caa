"""What became of each dead letter: a line, or an object, and at the end one account."""

from collections import Counter

from common import console
from common.cli import EXIT_OK, EXIT_PARTLY
from common.views.dead_letters import DeadLetter
from common.views.export import Key

LINES_AT_MOST, EVERY = 20, 10_000  # of one outcome; beyond, a line every so many
OUTCOMES = {
    "replayed": ("reenviado a su cola", "ok"),
    "would_replay": ("se reenviaría a su cola", None),
    "discarded": ("borrado", "warn"),
    "would_discard": ("se borraría", None),
    "unknown_queue": ("sigue aquí: no se sabe de qué cola vino; --export lo copia", "error"),
    "refused": ("sigue aquí: su cola falta (setup_queues.py) o está llena", "error"),
    "unconfirmed": ("sigue aquí: el broker no confirmó su copia; repite la orden", "error"),
    "worn_out": ("sigue aquí: ya alcanzó --max-replays; con --force, otra vez", "error"),
    "gone": ("ya no está: otra terminal lo reenvió o lo borró", "error")}


class Outcomes:
    def __init__(self):
        self.counts = Counter[str]()

    def add(self, found: DeadLetter | Key, outcome: str) -> None:
        self.counts[outcome] += 1
        number = self.counts[outcome]
        if console.json_mode:
            console.print_json({"id": found.message_id, "outcome": outcome,
                                "consumer": found.consumer})
        elif number <= LINES_AT_MOST or number % EVERY == 0:
            console.print_line(f"{console.paint(*OUTCOMES[outcome])} · {found.consumer}"
                               f" · id {console.short(found.message_id)}")

    def close(self, later: int) -> int:
        """Print the account; the exit code. later: how many came after the start."""
        console.print_line(f"mensajes fallidos: {self.counts.total()}" + "".join(
            f" · {OUTCOMES[outcome][0].partition(';')[0]}: {number}"
            for outcome, number in self.counts.items()) + came_later(later))
        return EXIT_PARTLY if any(OUTCOMES[name][1] == "error" for name in self.counts) else EXIT_OK


def came_later(later: int) -> str:
    return f" · {later} más {'llegó' if later == 1 else 'llegaron'} después" if later else ""
