"""What happens to an event that failed: pure functions, no broker needed.

Only the kit's own headers count, never x-death: RabbitMQ 4 ignores one that a client sends, and
3.10 drops a replay that still has one, as a dead-letter cycle (docs/facts.md, broker 6).
"""

import uuid

import pika

from common.config import MAX_DELAYS
from common.exchange import DEAD_LETTER_QUEUE, retry_queue

ERROR_BYTES = 1024  # a header larger than a frame closes the connection (docs/facts.md, pika 5)
MOST = 1_000_000  # a larger number of attempts or replays is not the kit's
TRACING = ("traceparent", "tracestate")  # https://www.w3.org/TR/trace-context/
EDITED = "x-edited-at"  # RFC 3339: when a person changed the body, for a replay


class PermanentError(Exception):
    """Raised by a handler when no retry can help."""


def next_delay_s(error: Exception, attempt: int, delays: tuple[float, ...]) -> float | None:
    """How long a failed event waits; None: it is a dead letter. attempt: 1 for the first."""
    if isinstance(error, PermanentError) or attempt > len(delays):
        return None
    return delays[attempt - 1]


def attempt_of(headers: dict | None) -> int:
    """The number of this attempt. Anything but a whole number from 1 up counts as the first."""
    return _positive((headers or {}).get("x-attempt"), default=1)


def replays_of(headers: dict | None) -> int:
    return _positive((headers or {}).get("x-replays"), default=0)


def journey_of(headers: dict | None) -> list[dict]:
    """The failed attempts, oldest first: {"attempt": int, "failed_at": RFC 3339, "to": queue}."""
    journey = (headers or {}).get("x-journey")
    if not isinstance(journey, list):
        return []
    return [{"attempt": _positive(stop.get("attempt"), 1), "failed_at": cut(stop["failed_at"], 64),
             "to": cut(stop["to"], 255)}
            for stop in journey[-MAX_DELAYS:] if isinstance(stop, dict)
            and isinstance(stop.get("failed_at"), str) and isinstance(stop.get("to"), str)]


def failed_copy(properties: pika.BasicProperties, error: Exception, delay_s: float | None, *,
                consumer: str, source_queue: str, failed_at: str) -> tuple:
    """(queue, properties) of the copy of a failed event; delay_s as of next_delay_s()."""
    to = DEAD_LETTER_QUEUE if delay_s is None else retry_queue(source_queue, delay_s)
    headers = properties.headers or {}
    attempt, kept = attempt_of(headers), kept_headers(headers)
    journey = [*journey_of(headers), {"attempt": attempt, "failed_at": failed_at, "to": to}]
    if replays_of(headers):
        kept["x-replays"] = replays_of(headers)
    return to, copied_properties(properties, kept | {
        "x-attempt": attempt if delay_s is None else attempt + 1,
        "x-error-type": type(error).__name__,
        "x-error-message": cut(str(error)),
        "x-consumer": consumer,
        "x-source-queue": source_queue,
        "x-first-failed-at": journey[0]["failed_at"],
        "x-failed-at": failed_at,
        "x-journey": journey,
    })


def replay_headers(headers: dict | None) -> dict:
    """The headers of a dead letter that starts again: first attempt, one more replay."""
    return kept_headers(headers) | {"x-attempt": 1, "x-replays": replays_of(headers) + 1}


def kept_headers(headers: dict | None) -> dict:
    """What else travels on: tracing, the time of an edit, the simulated failure. All other headers
    stay behind: the broker's, CC (it would route a copy elsewhere), what pika cannot write."""
    headers = headers or {}
    kept: dict = {name: cut(headers[name], 512) for name in (*TRACING, EDITED)
                  if isinstance(headers.get(name), str)}
    simulated = headers.get("x-simulate")
    if isinstance(simulated, dict) and {type(value) for value in simulated.values()} <= {str, int}:
        kept["x-simulate"] = {name: simulated[name] for name in ("consumer", "mode", "number")
                              if len(str(simulated.get(name, ""))) in range(1, 64)}
    return kept


def copied_properties(original: pika.BasicProperties, headers: dict) -> pika.BasicProperties:
    """Persistent, without what would act again: expiration, reply_to, user_id. A message without
    an id gets one, since a return is matched by it."""
    return pika.BasicProperties(
        content_type=original.content_type, content_encoding=original.content_encoding,
        message_id=original.message_id or str(uuid.uuid4()), type=original.type,
        correlation_id=original.correlation_id, app_id=original.app_id,
        timestamp=original.timestamp, delivery_mode=2, headers=headers)


def cut(text: str, most: int = ERROR_BYTES) -> str:
    """At most so many bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _positive(value: object, default: int) -> int:
    return value if type(value) is int and 1 <= value <= MOST else default
