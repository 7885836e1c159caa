"""What happens to an event that failed: pure functions, no broker needed.

Own headers decide, never x-death: RabbitMQ 4 ignores one that a client sends, and 3.10 takes a
replay that kept it for a cycle and drops it (docs/facts.md, broker 6).
"""

from dataclasses import dataclass

from common.config import MAX_DELAYS
from common.events import MalformedEvent

ERROR_BYTES = 1024  # a header larger than a frame would close the connection (docs/facts.md, pika 5)
MOST = 1_000_000  # a larger attempt or replay number is nobody's honest count
FOREIGN_BYTES = 32 * 1024
OWN_BYTES = 4 * 1024  # the longest journey has 3
DECIDING = ("x-attempt", "x-replays", "x-simulate")
TOLD = ("x-error-type", "x-error-message", "x-consumer", "x-source-queue", "x-first-failed-at",
        "x-failed-at", "x-journey")
BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


class PermanentError(Exception):
    """Raised by a handler when no further try can help."""


@dataclass(frozen=True)
class Step:
    """Where a failed event goes next. delay_s is None for the dead letter queue."""

    delay_s: float | None


def next_step(error: Exception, attempt: int, delays: tuple[float, ...]) -> Step:
    """attempt: the try that failed, 1 for the first."""
    if isinstance(error, (PermanentError, MalformedEvent)) or attempt > len(delays):
        return Step(None)
    return Step(delays[attempt - 1])


def attempt_of(headers: dict | None) -> int:
    """The number of this try. Anything but a whole number from 1 up counts as the first."""
    return _positive((headers or {}).get("x-attempt"), default=1)


def replays_of(headers: dict | None) -> int:
    return _positive((headers or {}).get("x-replays"), default=0)


def journey_of(headers: dict | None) -> list[dict]:
    """The failed tries so far, oldest first: {"attempt": int, "failed_at": RFC 3339, "to": queue}."""
    journey = (headers or {}).get("x-journey")
    if not isinstance(journey, list):
        return []
    return [{"attempt": attempt_of({"x-attempt": stop.get("attempt")}), "failed_at": cut(stop["failed_at"], 64),
             "to": cut(stop["to"], 255)} for stop in journey[-MAX_DELAYS:] if isinstance(stop, dict)
            and isinstance(stop.get("failed_at"), str) and isinstance(stop.get("to"), str)]


def failed_headers(headers: dict | None, error: Exception, step: Step, *, consumer: str,
                   source_queue: str, to: str, failed_at: str) -> dict:
    """The headers of the copy that goes to `to`, a retry queue or the dead letter queue."""
    kept = own_headers(headers)
    attempt = attempt_of(headers)
    first = kept.get("x-first-failed-at")
    return kept | {
        "x-attempt": attempt if step.delay_s is None else attempt + 1,
        "x-error-type": type(error).__name__,
        "x-error-message": cut(str(error)),
        "x-consumer": consumer,
        "x-source-queue": source_queue,
        "x-first-failed-at": first if isinstance(first, str) else failed_at,
        "x-failed-at": failed_at,
        "x-journey": journey_of(headers) + [{"attempt": attempt, "failed_at": failed_at, "to": to}],
    }


def replay_headers(headers: dict | None) -> dict:
    """The headers of a dead letter that starts again: first attempt, one more replay."""
    kept = {name: value for name, value in own_headers(headers).items() if name not in TOLD}
    return kept | {"x-attempt": 1, "x-replays": replays_of(headers) + 1}


def own_headers(headers: dict | None) -> dict:
    """The headers that may travel on: none of the broker's, no CC (it would route a copy elsewhere),
    nothing that pika cannot write (a float, an integer of more than 64 bits), and if they are huge none but ours, and small."""
    kept = {name: _plain(value) for name, value in (headers or {}).items()
            if isinstance(name, str) and not name.startswith(BROKERS_OWN) and name not in ("CC", "BCC")}
    if _size(kept) > FOREIGN_BYTES:
        return {name: value for name, value in kept.items() if name in DECIDING + TOLD and _size(value) <= OWN_BYTES}
    return kept


def _size(value: object) -> int:
    """About as many bytes as on the wire."""
    return len(repr(value).encode("utf-8", "replace"))


def _plain(value: object, depth: int = 0) -> object:
    too_large = isinstance(value, int) and not -2**63 <= value < 2**63  # pika reads a double of 1e19 as that
    if isinstance(value, float) or too_large or depth > 8:
        return str(value)[:100]
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item, depth + 1) for name, item in value.items() if isinstance(name, str)}
    return value


def cut(text: str, most: int = ERROR_BYTES) -> str:
    """At most so many bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _positive(value: object, default: int) -> int:
    return int(value) if isinstance(value, int) and value is not True and 1 <= value <= MOST else default
