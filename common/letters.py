"""Dead letters: what each was, whose, why, how often it was tried, its way here; and how to look at them.

Most were made by a consumer of the kit and carry its headers (common/retry.py). Those made by the
broker itself (delivery limit, rejected) have only x-death: both kinds are read here.
"""

import base64
import hashlib
import time
from dataclasses import dataclass
from datetime import datetime

from common.config import Settings
from common.events import MalformedEvent, decode, now
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, declare_queue, topology
from common.retry import attempt_of, journey_of, own_headers, replays_of

PATIENCE_S = 2
REASONS = {"delivery_limit": "el broker la entregó demasiadas veces sin ack", "rejected": "rechazada sin reintento",
           "expired": "caducó", "maxlen": "la cola estaba llena"}


@dataclass(frozen=True)
class Letter:
    """source_queue is empty when it is unknown or none of ours; user is "nombre <email>" or empty."""

    message_id: str
    type: str
    user: str
    consumer: str
    source_queue: str
    error_type: str
    error_message: str
    attempts: int
    replays: int
    failed_at: str
    journey: tuple[dict, ...]
    headers: dict
    body: bytes
    digest: bytes

    def as_json(self) -> dict:
        """body is text, or base64 under body_base64 when it is not UTF-8."""
        shown = {"id": self.message_id, "type": self.type, "consumer": self.consumer,
                 "source_queue": self.source_queue, "error_type": self.error_type,
                 "error_message": self.error_message, "attempts": self.attempts, "replays": self.replays,
                 "failed_at": self.failed_at, "journey": list(self.journey)}
        try:
            return shown | {"body": self.body.decode()}
        except UnicodeDecodeError:
            return shown | {"body_base64": base64.b64encode(self.body).decode()}


def declare_dead_letter_queue(connection, settings: Settings) -> None:
    channel = connection.channel()
    declare_queue(channel, topology(settings)[0])
    channel.close()


def look(connection, patience_s: float = PATIENCE_S):
    """Each letter that was there at the start, once, as (channel, delivery tag, properties, letter).

    Who acks a letter takes it off; all others go back at the end. That is when none has come for
    patience_s, since somebody else's look holds letters for a moment; those that have died meanwhile,
    perhaps of a replay of ours, do not count.
    """
    channel = connection.channel()
    started_at, deadline = now(), time.monotonic() + patience_s
    try:
        while True:
            method, properties, body = channel.basic_get(DEAD_LETTER_QUEUE)
            letter = read(properties, body) if method else None
            if letter and not started_at < letter.failed_at <= now():
                yield channel, method.delivery_tag, properties, letter
                deadline = time.monotonic() + patience_s
            elif time.monotonic() >= deadline:
                break
            elif not letter:
                connection.sleep(0.1)
    finally:
        if channel.is_open:
            channel.basic_nack(0, multiple=True, requeue=True)
    channel.close()


def depth(connection) -> int:
    """Letters ready to be looked at."""
    channel = connection.channel()
    ready = channel.queue_declare(DEAD_LETTER_QUEUE, passive=True).method.message_count
    channel.close()
    return ready


def read(properties, body: bytes) -> Letter:
    headers = properties.headers or {}
    death = _last_death(headers)
    reason = str(death.get("reason", ""))
    source = _text(headers, "x-source-queue") or str(death.get("queue", ""))
    source = source if source in CONSUMERS.values() else ""
    consumer = next((name for name, queue in CONSUMERS.items() if queue == source), "desconocido")
    try:
        event = decode(body)
        event_type, user = event.type, f"{event.nombre} <{event.email}>" if event.email else ""
    except MalformedEvent:
        event_type, user = "evento inválido", ""
    return Letter(
        message_id=str(properties.message_id or ""), type=event_type, user=user, consumer=consumer,
        source_queue=source, error_type=reason or _text(headers, "x-error-type") or "desconocido",
        error_message=REASONS.get(reason, "") if reason else _text(headers, "x-error-message"),
        attempts=attempt_of(headers), replays=replays_of(headers),
        failed_at=_time(death.get("time")) or _text(headers, "x-failed-at"),
        journey=tuple(journey_of(headers)), headers=headers, body=body,
        digest=_digest(properties.message_id, headers, body))


def _last_death(headers: dict) -> dict:
    """The broker's newest note of a death; a consumer of the kit leaves none when it writes a letter."""
    deaths = headers.get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else {}
    return newest if isinstance(newest, dict) else {}


def _time(when: object) -> str:
    """The broker's time of a death, in whole seconds, as the kit writes its own."""
    return when.strftime("%Y-%m-%dT%H:%M:%S.000Z") if isinstance(when, datetime) else ""


def _text(headers: dict, name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) else ""


def _digest(message_id, headers: dict, body: bytes) -> bytes:
    """The same for the same letter, however often the broker has handed it out."""
    parts = (message_id, own_headers(headers), headers.get("x-death"), body)
    return hashlib.sha256(repr(parts).encode("utf-8", "replace")).digest()[:16]
