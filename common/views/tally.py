"""What became of published events: a line for each, or progress and one account of many."""

import sys
import time
from collections import Counter

from common import console
from common.cli import EXIT_NO_BROKER, EXIT_OK, EXIT_PARTLY
from common.config import ConfigError
from common.problems import NO_BROKER_ADVICE, BrokerUnavailable

LINES_AT_MOST = 20  # beyond, a progress line replaces the lines
PROGRESS_S = 0.2
WORDS = {
    "sent": ("enviado, sin confirmación", "ok"),
    "confirmed": ("confirmado por el broker", "ok"),
    "returned": ("DEVUELTO: ninguna cola lo recibe", "error"),
    "unconfirmed": ("SIN RESPUESTA: no se sabe si llegó", "error"),
}


class Tally:
    """options: of events_publisher_levels.py. channel, outbox: set at level 3."""

    def __init__(self, options):
        self.options, self.counts = options, Counter[str]()
        self.channel = self.outbox = None
        self._broke_off = False
        self._started_at = self._shown_at = time.monotonic()
        self._shown = False  # a progress line that is not ended
        self._is_terminal = sys.stderr.isatty()

    @property
    def gave_up(self) -> bool:
        return bool(self.counts["unconfirmed"])

    def add(self, event_id: str, outcome: str) -> None:
        self.counts[outcome] += 1
        many = self.options.count > LINES_AT_MOST
        bad = outcome in ("returned", "unconfirmed") and self.counts[outcome] <= LINES_AT_MOST
        if console.json_mode:
            console.print_json({"id": event_id, "level": self.options.level, "outcome": outcome})
        elif bad or not many:
            self._end_progress()
            words, colour = WORDS[outcome]
            user = "" if self.options.resume else f" · {self.options.nombre} <{self.options.email}>"
            console.print_line(f"{console.paint(words, colour)} · evento"
                               f" {console.short(event_id)}{user}")
        if many and self._is_terminal and time.monotonic() - self._shown_at > PROGRESS_S:
            self._shown_at, self._shown = time.monotonic(), True
            print(f"\r{self.counts.total()} de {self.options.count} …", end="", file=sys.stderr,
                  flush=True)

    def _end_progress(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _) -> bool:
        """Print the account, also when it was interrupted."""
        self._end_progress()
        self._broke_off = kind is BrokerUnavailable and bool(self.counts)
        if kind in (None, KeyboardInterrupt, ConfigError) or self._broke_off:
            self._print_account(ended=kind is None)
        if self._broke_off:
            console.print_error(f"{error} De lo enviado puede haberse perdido algo, y nadie sabe"
                                " qué: el nivel 3 lo habría enviado de nuevo.")
        return self._broke_off

    def _print_account(self, ended: bool) -> None:
        confirmed, returned, silent = (self.counts[outcome] for outcome in (
            "confirmed", "returned", "unconfirmed"))
        if self.channel:
            confirmed += self.channel.late_acks
            silent += len(self.channel.unanswered)
        total = self.counts["sent"] + confirmed + returned + silent
        if not total:
            if ended:  # --resume found nothing
                console.print_line("No queda nada por enviar.")
            return
        rate = total / max(time.monotonic() - self._started_at, 1e-6)
        answers = (f"confirmados {confirmed}, devueltos {returned}, sin respuesta {silent}"
                   if self.channel else "sin confirmación")
        if self.options.count > 1:
            console.print_line(f"enviados {total}, {answers} · {rate:.0f} eventos/s")
        if self.outbox and returned + silent:
            console.print_error(f"Eventos sin confirmar: {returned + silent}. Están en"
                                f" {self.outbox.path} y se envían con python"
                                " events_publisher_levels.py --resume.")

    def exit_code(self) -> int:
        if self._broke_off:
            return EXIT_PARTLY
        if self.gave_up:
            console.print_error("El broker no contestó durante"
                                f" {self.options.timeout:g} s. {NO_BROKER_ADVICE}")
        if self.counts["returned"]:
            console.print_error("Algún evento no llegó a ninguna cola: créalas con"
                                " python setup_queues.py.")
        if not self.gave_up and not self.counts["returned"]:
            return EXIT_OK
        answered = self.counts["confirmed"] or self.counts["returned"]
        return EXIT_PARTLY if answered else EXIT_NO_BROKER
