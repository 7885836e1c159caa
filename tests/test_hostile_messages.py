"""Hostile messages stop no consumer and end in the dead letter queue."""

import base64
import email
import email.policy
import json
import struct
import sys
from collections import Counter
from contextlib import contextmanager

import pika
import pytest

import common.connection  # noqa: F401  patches pika's decoder
from common import events, mail, simulation
from common.exchange import CONSUMERS, DEAD_LETTER_QUEUE, retry_queue

ESCAPES = "\x1b]0;mal\x07\x1b[2J\x9b31m\r\n\u202e"
FAILS = {"consumer": "email", "mode": "transient"}
ATTEMPTS = 4  # the first attempt and three retries


def event_body(**changes) -> bytes:
    """Return a valid event with these changes. None removes a field."""
    envelope = json.loads(events.encode(events.user_created("Ana", "ana@eco.com")))
    for name, value in changes.items():
        fields = envelope["data"] if name in envelope["data"] else envelope
        fields[name] = value
        if value is None:
            del fields[name]
    return json.dumps(envelope).encode()


MALFORMED = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "UTF-16": event_body().decode().encode("utf-16"),
    "not JSON": b"{'id': 1}",
    "NUL bytes": b"\x00" * 100,
    "a BOM in front": b"\xef\xbb\xbf" + event_body(),
    "two objects": event_body() * 2,
    "100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "100,000 deep in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "above 256 KiB": event_body(more="x" * 256 * 1024),
    "5 MiB": b"x" * 5 * 1024 * 1024,
    "NaN": event_body(more=float("nan")),
    "Infinity": event_body(more=float("inf")),
    "a number": b"7",
    "null": b"null",
    "a list": b"[" + event_body() + b"]",
    "a text": b'"hola"',
    "specversion 0.3": event_body(specversion="0.3"),
    "specversion is a number": event_body(specversion=1.0),
    **{f"no {field}": event_body(**{field: None})
       for field in ("specversion", "id", "source", "type", "time", "data", "user_id", "nombre",
                     "email")},
    **{f"{field} is a list": event_body(**{field: [1]})
       for field in ("id", "source", "type", "time", "data", "user_id", "nombre", "email")},
    "id is no UUID": event_body(id="1"),
    "user_id is no UUID": event_body(user_id="../../etc/passwd"),
    "time is no time": event_body(time="ayer"),
    "time is a day": event_body(time="2024-01-01"),
    "time is a week": event_body(time="2024-W01-1T10:00:00Z"),
    "time without a zone": event_body(time="2024-01-01T10:00:00"),
    "month 13": event_body(time="2024-13-01T10:00:00Z"),
    "a type with escapes": event_body(type=ESCAPES),
    "nombre is empty": event_body(nombre=" "),
    "nombre of 201 characters": event_body(nombre="x" * 201),
    "nombre with escapes": event_body(nombre=ESCAPES),
    "nombre with CR LF": event_body(nombre="Ana\r\nBcc: otro@eco.com"),
    "nombre with a lone surrogate": event_body(nombre="\ud800"),
    "email with CR LF": event_body(email="ana@eco.com\r\nBcc: otro@eco.com"),
    "email without @": event_body(email="ana"),
    "email in another alphabet": event_body(email="ana@экo.com"),
}
UNUSUAL = {  # but valid: unknown fields are ignored, and the last of two equal keys counts
    "bidi nombre": event_body(nombre="Ana \u202eanA"),
    "a nombre that is no mail header": event_body(nombre='"; <a@b> =?utf-8?q?x?= , \\ 👩‍👩‍👧'),
    "a nombre that breaks no line": event_body(nombre="x" * 200),
    "doubled keys": event_body().replace(b'"id"', b'"id": "1", "id"'),
    "unknown fields": event_body(more={"deep": [[[["\ud800"]]]], "big": 10**300}),
    "another type": event_body(type="UsuarioBorrado", data=None),
}
if sys.version_info >= (3, 11):  # older versions read a number of 5,000 digits
    MALFORMED["a number of 5,000 digits"] = event_body(more="@").replace(b'"@"', b"9" * 5000)


class Raw(bytes):
    """The encoded value of a header: a type byte and the value's bytes."""


def nested(levels: int) -> Raw:
    """Return a table nested this many levels deep."""
    value = b"I" + struct.pack(">i", 1)
    for _ in range(levels):
        value = b"F" + struct.pack(">I", len(value) + 2) + b"\x01a" + value
    return Raw(value)


HEADERS = {
    "attempt many": {"x-attempt": "many"},
    "attempt -1": {"x-attempt": -1},
    "attempt 0": {"x-attempt": 0},
    "attempt 2**40": {"x-attempt": 2**40},
    "attempt 2**63-1": {"x-attempt": 2**63 - 1},
    "attempt True": {"x-attempt": True},
    "attempt list": {"x-attempt": [3]},
    "replays many": {"x-replays": "many"},
    "replays -1": {"x-replays": -1},
    "replays 2**63-1": {"x-replays": 2**63 - 1},
    "replays True": {"x-replays": True},
    "journey text": {"x-journey": "garbage"},
    "journey garbage": {"x-journey": [1, {}, {"failed_at": 1, "to": "x"},
                                      {"failed_at": ESCAPES, "to": ESCAPES, "attempt": ESCAPES,
                                       "more": [None]}]},
    "journey huge": {"x-journey": [{"failed_at": "x" * 10_000, "to": "y"}] * 10},
    "journey dates": {"x-journey": [{"failed_at": "x", "to": "y",
                                     "attempt": Raw(b"T" + struct.pack(">Q", 1))}]},
    "error headers garbage": {"x-error-type": 1, "x-error-message": [], "x-consumer": {},
                              "x-failed-at": True},
    "error headers with escapes": {"x-error-type": ESCAPES, "x-error-message": ESCAPES,
                                   "x-failed-at": ESCAPES},
    "first failed huge": {"x-first-failed-at": "x" * 100_000},
    "foreign source": {"x-source-queue": "ajena", "x-consumer": "ajena"},
    "death garbage": {"x-death": "garbage", "x-first-death-queue": 1},
    "death of garbage": {"x-death": [1, "x"]},
    "deaths of garbage": {"x-death": [{"queue": [1], "reason": {}, "time": "x", "count": -1}]},
    "cycle": {"x-death": [{"queue": "email_queue", "reason": "expired", "count": 9}] * 3},
    "double 1e19": {"n": Raw(b"d" + struct.pack(">d", 1e19))},
    "double 1.5": {"n": Raw(b"d" + struct.pack(">d", 1.5))},
    "decimal": {"n": Raw(b"D" + struct.pack(">BI", 255, 2**32 - 1))},
    "year 30000": {"t": Raw(b"T" + struct.pack(">Q", 10**12))},
    "year without end": {"t": Raw(b"T" + struct.pack(">Q", 2**63 - 1))},
    "400 deep": {"d": nested(400)},
    "10,000 deep": {"d": nested(10_000)},
    "400 deep in the history": {"x-journey": nested(400)},
    "100 KB in one": {"big": "x" * 100_000},
    "100 KB in many": {f"h{number}": "x" * 90 for number in range(1000)},
    "bytes not UTF-8": {"s": Raw(b"S" + struct.pack(">I", 2) + b"\xff\xfe")},
    "name not UTF-8": {b"\xff\xfe": 1},
    "long name not UTF-8 within": {"t": {b"\xff" * 255: 1}},
    "name of 255": {"n" * 255: 1},
    "CC": {"CC": ["copias"]},
    "BCC": {"BCC": ["copias"]},
    "void": {"v": None},
}
PROPERTIES = {
    "none at all": {},
    "expires never": {"expiration": "600000"},
    "reply to": {"reply_to": "ajena", "correlation_id": "7"},
    "user": {"user_id": "guest"},
    "empty message id": {"message_id": ""},
    "message id of 255": {"message_id": "m" * 255},
    "message id not UTF-8": {"message_id": b"\xff" * 255},
    "message id with escapes": {"message_id": ESCAPES},
    "type not UTF-8": {"type": b"\xff\xfe", "app_id": b"\xff"},
    "timestamp without end": {"timestamp": 2**63 - 1},
    "content encoding": {"content_encoding": "gzip", "content_type": "text/html"},
}


@contextmanager
def raw_values():
    """Make pika write each Raw value as it is, within the context."""
    encode_value = pika.data.encode_value

    def encode(pieces, value):
        if not isinstance(value, Raw):
            return encode_value(pieces, value)
        pieces.append(value)
        return len(value)

    pika.data.encode_value = encode
    try:
        yield
    finally:
        pika.data.encode_value = encode_value


@pytest.fixture
def sender(kit):
    """Return send(queue, [(body, properties)]): it publishes Raw values too, with confirms."""
    def send(queue: str, messages: list) -> None:
        with raw_values(), kit.channel() as channel:
            channel.confirm_delivery()
            for body, properties in messages:
                channel.basic_publish("", queue, body, properties, mandatory=True)

    kit.declare()
    with kit.channel() as channel:
        for name in ("ajena", "copias"):
            channel.queue_declare(name, durable=True)
    return send


def hostile_messages(body=event_body, **more) -> list:
    """Return (body, properties) for each entry of HEADERS and PROPERTIES."""
    return ([(body(), pika.BasicProperties(headers=headers | more)) for headers in HEADERS.values()]
            + [(body(), pika.BasicProperties(headers=more or None, **changes))
               for changes in PROPERTIES.values()])


def nonempty_queues(kit) -> dict:
    """Return the depth of each nonempty queue, except the dead letter queue."""
    retries = [retry_queue("email_queue", delay) for delay in kit.settings.retry_delays]
    names = [*CONSUMERS.values(), *retries, "ajena"]
    return {name: kit.depth(name) for name in names if kit.depth(name)}


def assert_clean_output(text: str) -> None:
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\r", "\u202e"}, "a terminal escape was printed"
    assert "Traceback" not in text
    assert "Sin conexión" not in text


def consume(kit, name: str, count: int, *flags: str):
    """Run a consumer for `count` deliveries and check its output."""
    script = {"email": "email_consumer_simple.py", "loyalty": "loyalty_consumer_simple.py",
              "analytics": "analytics_consumer.py"}[name]
    result = kit.call_ok(script, "--limit", str(count), "--idle-timeout", "20", *flags)
    assert_clean_output(result.stdout + result.stderr)
    return result


@pytest.mark.parametrize("name", CONSUMERS)
def test_each_malformed_body_becomes_a_dead_letter_unchanged(kit, sender, name):
    bodies = [*MALFORMED.values(), *UNUSUAL.values()]
    sender(CONSUMERS[name], [(body, None) for body in bodies])
    result = consume(kit, name, len(bodies), "--json")
    outcomes = Counter(json.loads(line)["outcome"] for line in result.stdout.splitlines())
    assert outcomes == {"dead": len(MALFORMED), "done": len(UNUSUAL) - 1, "skipped": 1}
    dead_letters = kit.messages(DEAD_LETTER_QUEUE)
    assert [body for _, body in dead_letters] == list(MALFORMED.values())
    assert {properties.headers["x-error-type"]
            for properties, _ in dead_letters} == {"MalformedEvent"}
    assert nonempty_queues(kit) == {}


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_a_malformed_body_with_hostile_headers_becomes_a_dead_letter(kit, sender, flags):
    messages = hostile_messages(lambda: b"no event")
    sender("email_queue", messages)
    consume(kit, "email", len(messages), *flags)
    assert [body for _, body in kit.messages(DEAD_LETTER_QUEUE)] == [b"no event"] * len(messages)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_hostile_headers_do_not_affect_events_that_succeed_or_fail(kit, sender, flags):
    good, failing = hostile_messages(), hostile_messages(**{"x-simulate": FAILS})
    sender("email_queue", good + failing)
    copies = kit.depth("copias")
    consume(kit, "email", len(good) + ATTEMPTS * len(failing), *flags)
    assert kit.report("email_consumer_simple.py") == {"emails": len(good)}
    dead_letters = kit.messages(DEAD_LETTER_QUEUE)
    assert sorted(body for _, body in dead_letters) == sorted(body for body, _ in failing)
    assert {properties.headers["x-attempt"] for properties, _ in dead_letters} == {ATTEMPTS}
    assert {properties.headers["x-source-queue"]
            for properties, _ in dead_letters} == {"email_queue"}
    assert {properties.delivery_mode for properties, _ in dead_letters} == {2}
    assert nonempty_queues(kit) == {} and kit.depth("copias") == copies


def test_hostile_dead_letters_are_shown_exported_and_replayed(kit, sender, tmp_path):
    known = hostile_messages(**{"x-source-queue": "email_queue"})
    unknown_origin = [(body, pika.BasicProperties(headers={"x-source-queue": "ajena"}))
                      for body in MALFORMED.values()]
    sender(DEAD_LETTER_QUEUE, known + unknown_origin)
    bodies = sorted(body for body, _ in known + unknown_origin)
    script = "dead_letter_consumer.py"

    all_of_them = ("--limit", str(len(bodies)), "--idle-timeout", "20", "--full")
    shown = kit.call_ok(script, *all_of_them)
    assert len([line for line in shown.stdout.splitlines()
                if line.startswith("mensaje fallido ")]) == len(bodies)
    lines = kit.call_ok(script, *all_of_them, "--json").stdout.splitlines()
    as_json = [json.loads(line) for line in lines]
    assert sorted(map(body_of, as_json)) == bodies
    summary = kit.call_ok(script, "--summary")
    assert f"total: {len(bodies)}" in summary.stdout
    lines = kit.call_ok(script, "--summary", "--json").stdout.splitlines()
    assert sum(json.loads(line)["count"] for line in lines) == len(bodies)
    kit.call_ok(script, "--export", str(tmp_path / "fallidos.jsonl"))
    exported = (tmp_path / "fallidos.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(body_of(json.loads(line)) for line in exported) == bodies

    copies = kit.depth("copias")
    replayed = kit.call(script, "--replay")
    assert replayed.returncode == 3  # those of unknown origin stay
    for result in (shown, summary, replayed):
        assert_clean_output(result.stdout + result.stderr)
    assert sorted(body for _, body in kit.messages(DEAD_LETTER_QUEUE)) == sorted(MALFORMED.values())
    assert nonempty_queues(kit) == {"email_queue": len(known)} and kit.depth("copias") == copies
    consume(kit, "email", len(known))
    assert kit.report("email_consumer_simple.py") == {"emails": len(known)}


def body_of(dead_letter: dict) -> bytes:
    if "body" in dead_letter:
        return dead_letter["body"].encode()
    return base64.b64decode(dead_letter["body_base64"])


def test_an_expired_event_is_dead_lettered_and_its_replay_does_not_expire(kit, sender):
    sender("email_queue", [(event_body(), pika.BasicProperties(expiration="0"))])
    kit.wait_for_depth(DEAD_LETTER_QUEUE, 1)
    shown = kit.call_ok("dead_letter_consumer.py", "--limit", "1", "--json")
    dead_letter = json.loads(shown.stdout)
    assert (dead_letter["error_type"], dead_letter["source_queue"]) == ("expired", "email_queue")
    kit.call_ok("dead_letter_consumer.py", "--replay")
    consume(kit, "email", 1)
    assert kit.report("email_consumer_simple.py") == {"emails": 1}


@pytest.mark.parametrize("nombre", [
    "Ana, x@y.com", '"Ana" <x@y.com>', "é(b) <x@y.com>,", "=?utf-8?q?a=0D=0ABcc:_x@y.com?=",
    "[́@aé,x@y.com", "漢 =?utf-8?q?=22,x=40y.com,=22?=", "Ana\u00a0;:<", "\\" * 99, "😀" * 200])
def test_no_name_adds_a_recipient_or_a_header_to_the_email(nombre):
    raw = mail.welcome(events.user_created(nombre, "ana@eco.com"))
    read = email.message_from_bytes(raw, policy=email.policy.default)
    assert [address.addr_spec for address in read["To"].addresses] == ["ana@eco.com"]
    assert read.keys() == ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version",
                           "Content-Type", "Content-Transfer-Encoding"] and not read.defects
    assert nombre in read["Subject"] and nombre in read.get_content()


@pytest.mark.parametrize("instruction", [
    "transient", 7, [1], {}, {"consumer": "email"}, {"consumer": ["email"], "mode": "crash"},
    {"consumer": "email", "mode": ["crash"]}, {"consumer": "email", "mode": "slow", "number": -1},
    {"consumer": "email", "mode": "slow", "number": 2**62},
    {"consumer": "email", "mode": "flaky", "number": "many"}, {"mode": "crash"}], ids=str)
def test_an_invalid_x_simulate_header_is_ignored(instruction):
    simulation.obey({"x-simulate": instruction}, "email", ATTEMPTS)


@pytest.mark.parametrize("value", [Raw(b"d" + struct.pack(">d", float("nan"))),
                                   Raw(b"f" + struct.pack(">f", float("inf"))),
                                   Raw(b"T" + struct.pack(">Q", 2**64 - 1)), nested(400)],
                         ids=["NaN", "Inf", "T", "deep"])
def test_only_the_header_that_pika_cannot_decode_is_dropped(value):
    """RabbitMQ itself rejects NaN and Infinity (541), but other brokers may not."""
    table = b"\x03bad" + value + b"\x04good" + b"t\x01"
    headers, _ = pika.data.decode_table(struct.pack(">I", len(table)) + table, 0)
    assert headers["good"] is True and set(headers) == {"bad", "good"}
