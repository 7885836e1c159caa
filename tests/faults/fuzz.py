"""Random hostile messages, reproducible by seed. No body is a valid event."""

import json
import random
import struct
import uuid
from collections.abc import Callable

import pika

from common import events
from common.exchange import DEAD_LETTER_QUEUE
from tests.test_hostile_messages import ESCAPES, Raw, nested

ODD = ["", " ", "\x00", ESCAPES, "ñ" * 127, "m" * 255, "漢😀", "\u202e", b"\xff\xfe",
       b"\xc0\x80" * 127, "0", "-1", "guest", "email_queue", "../../etc", "UsuarioCreado",
       "application/json"]
LARGE = [2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**300, -(2**31) - 1, -(2**63),
         -(2**63) - 1]
NAMES = ["x-attempt", "x-replays", "x-journey", "x-simulate", "x-error-type", "x-error-message",
         "x-consumer", "x-source-queue", "x-first-failed-at", "x-failed-at", "traceparent",
         "tracestate", "x-death", "x-first-death-queue", "x-last-death-queue", "x-delivery-count",
         "x-acquired-count", "CC ", "n" * 255, b"\xff\xfe", "", "x-\x00", "trace",
         "x-dead-letter-exchange", "x-message-ttl"]
PARTS = ["attempt", "failed_at", "to", "consumer", "mode", "number", "queue", "reason",
         "count", "time"]
NUMBERS = [b"NaN", b"-Infinity", b"9" * 5000, b"1e99999", b"-0", b"01", b"0x1", b"1.", b"+1",
           b"1e", b"--1"]
LONGEST_NAME = 200
FIELDS = ["specversion", "id", "source", "type", "time", "data", "user_id", "nombre",
          "email", "more"]


# ---------------------------------------------------------------- bodies


def body(rng: random.Random) -> bytes:
    """Return bytes that events.decode rejects."""
    while True:
        result = rng.choice(BODIES)(rng)
        try:
            events.decode(result)
        except events.MalformedEvent:
            return result


def valid(rng: random.Random) -> bytes:
    ids = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2)]
    nombre = rng.choice(["Ana", "José 🎉", "x" * LONGEST_NAME])
    return events.encode(
        events.Event(ids[0], events.USER_CREATED, "2024-02-29T23:59:59.999Z", ids[1], nombre,
                     "ana@eco.com"))


def with_flipped_bits(rng: random.Random) -> bytes:
    result = bytearray(valid(rng))
    for _ in range(rng.randint(1, 8)):
        result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
    return bytes(result)


def with_hole(rng: random.Random) -> bytes:
    result = valid(rng)
    start, end = sorted(rng.choices(range(len(result) + 1), k=2))
    return result[:start] + result[end:]


def with_inserted_bytes(rng: random.Random) -> bytes:
    """Insert other bytes in the middle; sometimes drop the second half."""
    result = valid(rng)
    other = rng.choice([valid(rng), rng.randbytes(20), b"\x00", b"\xef\xbb\xbf",
                        b'"', b"}", b"\\u"])
    at = rng.randrange(len(result))
    return result[:at] + other + result[at:] * rng.randrange(2)


def with_wrong_type(rng: random.Random) -> bytes:
    envelope = json.loads(valid(rng))
    data = envelope["data"]
    for field in rng.sample(FIELDS, rng.randint(1, 3)):
        (data if field in data else envelope)[field] = json_value(rng)
    return json.dumps(envelope, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def with_doubled_field(rng: random.Random) -> bytes:
    """Repeat a key. The last value counts."""
    return valid(rng)[:-1] + b',"%s":%s}' % (rng.choice(FIELDS).encode(),
                                             json.dumps(json_value(rng)).encode())


def with_wild_number(rng: random.Random) -> bytes:
    return valid(rng)[:-1] + b',"%s":%s}' % (rng.choice(FIELDS).encode(), rng.choice(NUMBERS))


def deep(rng: random.Random) -> bytes:
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]")])
    depth = rng.choice([10, 500, 1500, 5000])
    nested = opening * depth + b"1" + closing * depth * rng.randrange(2)
    return rng.choice([nested, valid(rng)[:-1] + b',"more":' + nested + b"}"])


def bare_value(rng: random.Random) -> bytes:
    return json.dumps(json_value(rng)).encode()


def in_another_encoding(rng: random.Random) -> bytes:
    return valid(rng).decode().encode(rng.choice(["utf-16", "utf-32-be", "utf-7", "cp500"]),
                                      "replace")


def too_large(rng: random.Random) -> bytes:
    return valid(rng) + b" " * events.MAX_BYTES if rng.random() < 0.01 else b""


def json_value(rng: random.Random, depth: int = 0):
    """Return a value for any field, including NaN and lone surrogates, which json accepts."""
    kind = rng.randrange(9 if depth < 4 else 7)
    if kind == 7:
        return [json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(FIELDS): json_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice([
        None, rng.random() < 0.5, rng.choice(LARGE),
        rng.choice([0, -0.0, 1e300, float("nan"), float("inf")]),
        "x" * rng.randrange(400),
        rng.choice([ESCAPES, "\ud800", "\udfff\ud800", "", "1.0", "\x00", "a@b"]),
        "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(20)))])


BODIES: list[Callable[[random.Random], bytes]] = [
    with_flipped_bits, with_hole, with_inserted_bytes, with_wrong_type, with_doubled_field,
    with_wild_number, deep, bare_value, in_another_encoding, too_large,
    lambda rng: rng.randbytes(rng.randrange(400)),
    lambda rng: rng.randbytes(1) * rng.randrange(99)]


# ---------------------------------------------------------------- properties


def properties(rng: random.Random) -> pika.BasicProperties:
    """Set random properties to odd values that the broker neither rejects nor acts upon."""
    def now_and_then(*values):
        return rng.choice(values) if rng.random() < 0.4 else None

    return pika.BasicProperties(
        content_type=now_and_then(*ODD), content_encoding=now_and_then(*ODD),
        correlation_id=now_and_then(*ODD), reply_to=now_and_then(*ODD),
        message_id=now_and_then(*ODD, rng.randbytes(rng.randrange(256))),
        type=now_and_then(*ODD), app_id=now_and_then(*ODD), cluster_id=now_and_then(*ODD),
        user_id=now_and_then("guest"), expiration=now_and_then("600000", "4294967295"),
        delivery_mode=now_and_then(1, 2), priority=now_and_then(0, 9, 255),
        timestamp=now_and_then(0, 1, 2**32, 10**12, 2**63, 2**64 - 1), headers=headers(rng))


def headers(rng: random.Random) -> dict | None:
    if rng.random() < 0.2:
        return None
    result = {rng.choice(NAMES): Raw(field(rng)) for _ in range(rng.randrange(6))}
    if rng.random() < 0.05:
        result["CC"] = ["nobody", DEAD_LETTER_QUEUE + "s"]
    if rng.random() < 0.01:  # only one of the two: both may exceed a frame
        large = [Raw(b"S" + counted(b"x" * rng.randrange(100_000))),
                 nested(rng.choice([9, 400, 5000]))]
        result["large"] = rng.choice(large)
    return result


def field(rng: random.Random, depth: int = 0) -> bytes:
    """Return a value of any field type.

    NaN and Infinity are left out: RabbitMQ closes the connection for them.
    """
    kind = rng.choice("tbBsuIilfdDSTVx" + "AF" * (depth < rng.choice([2, 20]))).encode()
    if kind == b"A":
        return kind + counted(b"".join(field(rng, depth + 1) for _ in range(rng.randrange(4))))
    if kind == b"F":
        return kind + counted(b"".join(name(rng) + field(rng, depth + 1)
                                       for _ in range(rng.randrange(4))))
    if kind in b"Sx":
        odd = rng.choice([*ODD, rng.randbytes(rng.randrange(99))])
        return kind + counted(odd.encode() if isinstance(odd, str) else odd)
    if kind == b"f":
        return kind + struct.pack(">f", rng.choice([0.0, 1.5, -1e38, 1e-45]))
    if kind == b"d":
        return kind + struct.pack(">d", rng.choice([0.0, 1.5, 1e19, -1e300, 5e-324]))
    sizes = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"D": 5, b"V": 0}
    size = sizes.get(kind, 8)
    return kind + rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size,
                              (b"\x7f" + b"\xff" * 7)[:size]])


def name(rng: random.Random) -> bytes:
    chosen = rng.choice(NAMES + PARTS)
    encoded = chosen.encode() if isinstance(chosen, str) else chosen
    return bytes([len(encoded)]) + encoded


def counted(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value
