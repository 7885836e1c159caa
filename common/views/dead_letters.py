"""Dead letters: how to read one, and how to look at all of them without taking them away.

A consumer of the kit writes its headers (common/retry.py); a dead letter made by the broker itself
(delivery limit, rejected) has only x-death. Both are read here.
"""

import base64
import hashlib
import time
from dataclasses import dataclass
from datetime import datetime

from common.config import Settings
from common.events import MalformedEvent, decode, now
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, dead_letter_arguments
from common.retry import attempt_of, journey_of, replays_of

PATIENCE_S = 2
REASONS = {"delivery_limit": "el broker lo entregó demasiadas veces sin ack",
           "rejected": "rechazado sin reintento", "expired": "caducó",
           "maxlen": "la cola estaba llena"}


@dataclass(frozen=True)
class DeadLetter:
    """source_queue is "" if unknown or not the kit's; user is "nombre <email>" or ""."""

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
    body: bytes
    digest: bytes

    def as_json(self) -> dict:
        """body is text, or base64 under body_base64 when it is not UTF-8."""
        shown = {"id": self.message_id, "type": self.type, "consumer": self.consumer,
                 "source_queue": self.source_queue, "error_type": self.error_type,
                 "error_message": self.error_message, "attempts": self.attempts,
                 "replays": self.replays, "failed_at": self.failed_at,
                 "journey": list(self.journey)}
        try:
            return shown | {"body": self.body.decode()}
        except UnicodeDecodeError:
            return shown | {"body_base64": base64.b64encode(self.body).decode()}


def declare_dead_letter_queue(connection, settings: Settings) -> None:
    channel = connection.channel()
    channel.queue_declare(DEAD_LETTER_QUEUE, durable=True,
                          arguments=dead_letter_arguments(settings))
    channel.close()


def look(connection, patience_s: float = PATIENCE_S):
    """Each dead letter that was there at the start, once: (channel, tag, properties, DeadLetter).

    An ack removes it; all others return to the queue at the end. That is when none has come for
    patience_s, as another view may hold some for a moment. What died meanwhile, perhaps of a
    replay just made, does not count.
    """
    channel = connection.channel()
    started_at, deadline = now(), time.monotonic() + patience_s
    try:
        while True:
            method, properties, body = channel.basic_get(DEAD_LETTER_QUEUE)
            found = read(properties, body) if method else None
            if found and not started_at < found.failed_at <= now():
                yield channel, method.delivery_tag, properties, found
                deadline = time.monotonic() + patience_s
            elif time.monotonic() >= deadline:
                break
            elif not found:
                connection.sleep(0.1)
    finally:
        if channel.is_open:
            channel.basic_nack(0, multiple=True, requeue=True)
    channel.close()


def read(properties, body: bytes) -> DeadLetter:
    headers = properties.headers or {}
    death = _last_death(headers)
    reason = str(death.get("reason", ""))
    source = _text(headers, "x-source-queue") or str(death.get("queue", ""))
    names = {queue: name for name, queue in CONSUMERS.items()}
    try:
        event = decode(body)
        event_type, user = event.type, f"{event.nombre} <{event.email}>" if event.email else ""
    except MalformedEvent:
        event_type, user = "evento inválido", ""
    failed_at = _text(headers, "x-failed-at")
    if isinstance(death.get("time"), datetime):  # in whole seconds
        failed_at = death["time"].strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return DeadLetter(
        message_id=str(properties.message_id or ""), type=event_type, user=user,
        consumer=names.get(source, "desconocido"), source_queue=source if source in names else "",
        error_type=reason or _text(headers, "x-error-type") or "desconocido",
        error_message=REASONS.get(reason, "") if reason else _text(headers, "x-error-message"),
        attempts=attempt_of(headers), replays=replays_of(headers), failed_at=failed_at,
        journey=tuple(journey_of(headers)), body=body,
        digest=_digest(properties.message_id, headers, body))


def _last_death(headers: dict) -> dict:
    """The broker's newest entry; a consumer of the kit leaves none in a dead letter it writes."""
    deaths = headers.get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else {}
    return newest if isinstance(newest, dict) else {}


def _text(headers: dict, name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) else ""


def _digest(message_id, headers: dict, body: bytes) -> bytes:
    """The same for one dead letter, however often the broker has delivered it."""
    told = {name: value for name, value in headers.items()
            if name == "x-death" or not str(name).startswith(("x-delivery-", "x-acquired-"))}
    return hashlib.sha256(repr((message_id, told, body)).encode("utf-8", "replace")).digest()[:16]
