"""What became of published events: a line for each, or progress and one account of many."""

import sys
import time
from collections import Counter

from common import console
from common.cli import EXIT_NO_BROKER, EXIT_OK, EXIT_PARTLY
from common.config import ConfigError
from common.confirms import ACK, NACK, RETURN, TIMEOUT
from common.problems import NO_BROKER_ADVICE, BrokerUnavailable

LINES_AT_MOST = 20  # beyond, a progress line replaces the lines
PROGRESS_S = 0.2
WORDS = {
    "sent": ("enviado, sin confirmación", "ok"),
    "confirmed": ("confirmado por el broker", "ok"),
    "returned": ("DEVUELTO: ninguna cola lo recibe", "error"),
    "unconfirmed": ("SIN CONFIRMAR: no se sabe si llegó", "error"),
}


class Tally:
    """options: of a publisher. channel, outbox: set at level 3."""

    def __init__(self, options):
        self.options, self.counts = options, Counter[str]()
        self._kind = {key: vars(options)[key] for key in ("level", "mode") if key in options}
        self.wanted = "returned" if self._kind.get("mode") == "unroutable" else "confirmed"
        self.channel = self.outbox = None
        self._broke_off, self._is_terminal = False, sys.stderr.isatty()
        self._started_at = self._shown_at = time.monotonic()

    def add(self, event_id: str, outcome: str, *notes: str) -> None:
        self.counts[outcome] += 1
        many = self.options.count > LINES_AT_MOST
        words, colour = WORDS[outcome][0], "ok" if outcome == self.wanted else WORDS[outcome][1]
        bad = colour == "error" and self.counts[outcome] <= LINES_AT_MOST
        if console.json_mode:
            console.print_json({"id": event_id, **self._kind, "outcome": outcome})
        elif bad or not many:
            console.print_line(" · ".join(filter(None, (
                console.paint(words, colour), f"id {console.short(event_id)}", *notes))))
        if many and self._is_terminal and time.monotonic() - self._shown_at > PROGRESS_S:
            self._shown_at = time.monotonic()
            copies = 2 if self._kind.get("mode") == "duplicate" else 1
            shown = f"{self.counts.total()} de {self.options.count * copies} …"
            print(shown, end="\r", file=sys.stderr, flush=True)  # any line is longer: it covers it

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _) -> bool:
        """Print the account, also when it was interrupted."""
        self._broke_off = kind is BrokerUnavailable and bool(self.counts)
        if kind in (None, KeyboardInterrupt, ConfigError) or self._broke_off:
            self._print_account(ended=kind is None)
        if self._broke_off:
            console.print_error(f"{error} De lo enviado puede haberse perdido algo, y nadie sabe"
                                " qué: el nivel 3 lo habría enviado de nuevo.")
        return self._broke_off

    def _print_account(self, ended: bool) -> None:
        """enviados is the sum of what follows it; all but confirmados are in the outbox."""
        left = Counter[str]()  # what was interrupted before its line
        if self.channel:
            left = self.channel.late + Counter(
                message.answer or TIMEOUT for message in self.channel.unanswered)
        confirmed = self.counts["confirmed"] + left[ACK]
        returned = self.counts["returned"] + left[RETURN]
        refused = left[NACK]  # by a queue that is full, and not sent again yet
        silent = self.counts["unconfirmed"] + left[TIMEOUT]
        unconfirmed = returned + refused + silent
        total = self.counts["sent"] + confirmed + unconfirmed
        if not total:
            if ended:  # --resume found nothing
                console.print_line("No queda nada por enviar.")
            return
        rate = total / max(time.monotonic() - self._started_at, 1e-6)
        answers = (f"confirmados {confirmed}, devueltos {returned}, "
                   + f"rechazados {refused}, " * bool(refused) + f"sin respuesta {silent}"
                   if self.channel else "sin confirmación")
        if self.options.count > 1:
            console.print_line(f"enviados {total}, {answers} · {rate:.0f} eventos/s")
        if self.outbox and unconfirmed:
            console.print_error(f"Eventos sin confirmar: {unconfirmed}. Están en"
                                f" {self.outbox.path} y se envían con python"
                                " events_publisher_levels.py --resume.")

    def exit_code(self) -> int:
        if self._broke_off:
            return EXIT_PARTLY
        if self.counts["unconfirmed"]:
            console.print_error(f"El broker no confirmó nada durante {self.options.timeout:g} s."
                                f" {NO_BROKER_ADVICE} Si está en marcha, mira si hay colas llenas.")
        if self.counts["returned"] and self.wanted != "returned":
            console.print_error("Algún evento no llegó a ninguna cola: créalas con"
                                " python setup_queues.py.")
        if self.counts.total() == self.counts["sent"] + self.counts[self.wanted]:
            return EXIT_OK
        answered = self.counts["confirmed"] or self.counts["returned"]
        return EXIT_PARTLY if answered else EXIT_NO_BROKER
