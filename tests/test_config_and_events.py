"""Settings and events. These tests need no broker."""

import json
import uuid
from types import SimpleNamespace

import pika
import pytest

from common import cli, config, events, publishing
from common.config import DEFAULTS, ConfigError
from common.views.management import default_address

SECRET = "s3cr3t0"
EVENT = events.user_created("Zoë Ñandú 🎉", "zoe@eco.com")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Use a folder without .env and an environment without settings."""
    monkeypatch.setattr(config, "ROOT", tmp_path)
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


# ---------------------------------------------------------------- settings


def test_the_defaults_apply_without_settings(folder):
    found = config.load()
    assert found.urls == ("amqp://guest:guest@127.0.0.1:5672/%2F",)
    assert found.retry_delays == (5, 30, 120)
    assert found.state_dir == folder / ".state"
    assert found.queue_type == "quorum"


def test_a_flag_takes_precedence_over_environment_env_file_and_default(folder, monkeypatch):
    (folder / ".env").write_text("RETRY_DELAYS=1\nQUEUE_TYPE=classic\nSTATE_DIR=añejo\n",
                                 encoding="utf-8")
    monkeypatch.setenv("RETRY_DELAYS", "2")
    monkeypatch.setenv("QUEUE_TYPE", "quorum")
    found = config.load({"RETRY_DELAYS": "3", "QUEUE_TYPE": None})
    assert found.retry_delays == (3,)  # the flag
    assert found.queue_type == "quorum"  # the environment
    assert found.state_dir == folder / "añejo"  # .env
    assert found.urls == (DEFAULTS["RABBITMQ_URL"],)


def test_an_empty_variable_counts_as_unset(folder, monkeypatch):
    (folder / ".env").write_text("RETRY_DELAYS=\nQUEUE_TYPE=classic\n", encoding="utf-8")
    monkeypatch.setenv("QUEUE_TYPE", "")
    found = config.load()
    assert (found.retry_delays, found.queue_type) == ((5, 30, 120), "classic")


def test_an_env_file_that_is_not_utf_8_is_an_error(folder):
    (folder / ".env").write_bytes(b"STATE_DIR=a\xf1o\n")
    with pytest.raises(ConfigError, match=r"\.env.*UTF-8"):
        config.load()


@pytest.mark.parametrize("line, meant", [
    ("RETRY_DELAY=1,2", "RETRY_DELAYS"), ("retry_delays=1,2", "RETRY_DELAYS"),
    ("RABBIT_URL=amqp://a:b@c", "RABBITMQ_URL"), ("QUEUETYPE=classic", "QUEUE_TYPE")])
def test_a_misspelt_name_in_dotenv_is_refused_with_the_one_it_resembles(folder, line, meant):
    (folder / ".env").write_text(line, encoding="utf-8")
    name = line.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name}.*¿querías escribir {meant}?"):
        config.load()


def test_an_unknown_name_in_dotenv_is_named_and_not_used(folder, capsys):
    (folder / ".env").write_text("RABBITMQ_USER=ana\nCUPON=10\nQUEUE_TYPE=classic\n",
                                 encoding="utf-8")
    assert config.load().queue_type == "classic"
    assert capsys.readouterr().err == (
        "Aviso: CUPON, en .env, no es un ajuste del kit y no se usa.\n")


def test_a_url_without_its_name_in_dotenv_is_an_error_that_does_not_show_it(folder):
    (folder / ".env").write_text("QUEUE_TYPE=classic\namqp://ana:secret@h/%2F\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"línea 2 de \.env") as raised:
        config.load()
    assert "secret" not in str(raised.value)


def test_what_looks_like_a_variable_in_dotenv_is_kept_as_it_is(folder):
    (folder / ".env").write_text("RABBITMQ_URL=amqp://ana:a${x}b@h\n", encoding="utf-8")
    assert config.load().urls == ("amqp://ana:a${x}b@h",)


def test_a_flag_may_name_the_home_folder_and_must_name_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert config.load({"STATE_DIR": "~/x"}).state_dir == tmp_path / "x"
    with pytest.raises(ConfigError, match="STATE_DIR"):
        config.load({"STATE_DIR": ""})


@pytest.mark.parametrize("text", ["localhost:15672", "http://ana:x@host:15672", "http://a?b",
                                  "http://host:0", "amqp://host"])
def test_a_management_address_that_is_none_is_refused(folder, text):
    with pytest.raises(ConfigError, match="RABBITMQ_MANAGEMENT_URL"):
        config.load({"RABBITMQ_MANAGEMENT_URL": text})


@pytest.mark.parametrize("url, address", [
    ("amqp://ana:x@host/%2F", "http://host:15672"), ("amqps://host", "https://host:15671"),
    ("amqp://[::1]:5673", "http://[::1]:15673")])
def test_the_management_api_is_looked_for_beside_the_broker(url, address):
    assert default_address(url) == address


def test_a_relative_state_dir_flag_starts_at_the_working_directory(
        folder, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("shell")
    monkeypatch.chdir(here)
    assert config.load({"STATE_DIR": "mine"}).state_dir == here / "mine"


def test_several_urls_form_one_cluster():
    found = config.load({"RABBITMQ_URL": "amqp://a:1, amqps://b/v ,"})
    assert found.urls == ("amqp://a:1", "amqps://b/v")


URLS = [
    ",", "amqp://@h",
    "localhost", "guest", f"http://g:{SECRET}@h/", f"amqp:g:{SECRET}@h", f"amqp//g:{SECRET}@h",
    f"Amqps//g:{SECRET}@h", "amqp://", f"amqp://g:{SECRET}@", f"amqp://g:{SECRET}@:5672/",
    f"amqp://g:{SECRET}@h:0", f"amqp://g:{SECRET}@h:65536",
    f"amqp://g:{SECRET}@h:x", f"amqp://g:{SECRET}@h:-1", f"amqp://g:{SECRET}@h:+1",
    f"amqp://g:{SECRET}@h:1_0", f"amqp://g:{SECRET}@h:٣", f"amqp://g:{SECRET}@[::1",
    f"amqp://g:{SECRET}@{'a' * 64}/", f"amqp://g:{SECRET}@a..b/",
    f"amqp://g:{SECRET}/x@h/", f"amqp://g:12/{SECRET}@h", f"amqp://g:12/{SECRET}@h/%2F",
    f"amqp://g:{SECRET}#x@h/", f"amqp://g:12#{SECRET}@h", f"amqp://g:{SECRET}?x@h/",
    f"amqp://g:12?{SECRET}@h/", f"amqp://g:{SECRET},x@h/", f"amqp://g:{SECRET}@h/a/b",
    f"amqp://g:{SECRET}@h/{'v' * 256}", f"amqp://g:{SECRET}@h/?heartbeat=0", "amqp://g@h/",
    f"amqp://g:{SECRET} @h/", f"amqp://g:{SECRET}\n@h/", f"amqp://g:{SECRET}@h h/",
    f"amqp://g:{SECRET}\udcff@h/", f"amqp://g:{SECRET}@\udcff/", f"amqp://g:{SECRET}@h/\udcff",
    f"amqp://g\x1b[31m:{SECRET}@h:x/", " ", ",", " , ", f"amqp://g:{SECRET}@h/,nada",
]
SETTINGS = [
    *(("RABBITMQ_URL", url) for url in URLS),
    *(("RETRY_DELAYS", delays) for delays in ("x", "0", "-1", "nan", "inf", "1e400", "86401",
                                              "5,,3", "5;30", ",", " ", "٣e9", ",".join("1" * 21),
                                              "9" * 5000, "\x1b[31m", "5\n\udcff", "0.0009")),
    *(("QUEUE_TYPE", kind) for kind in ("Quorum", "stream", "\x1b[31m\n", "x" * 5000)),
    ("STATE_DIR", "a\0b"), ("RABBITMQ_CA_FILE", f"amqp://g:{SECRET} x@h"),
    *(("RABBITMQ_MANAGEMENT_URL", url) for url in ("h", "http://", f"http://g:{SECRET}@h",
                                                   f"http://g:12/{SECRET}@h")),
    *(("SMTP_URL", url) for url in ("localhost:1025", "http://h", "smtp://", f"smtp://g:{SECRET}@",
                                    "smtp://g@h", f"smtp://:{SECRET}@h", f"smtp://g:{SECRET}@h:0",
                                    f"smtp://g:{SECRET}@h:x", f"smtp://g:{SECRET}@h:65536",
                                    f"smtp://g:{SECRET}/x@h", f"smtp://g:{SECRET}@h/x",
                                    f"smtp://g:{SECRET}#x@h", f"smtp://g:{SECRET}?x@h",
                                    f"smtp://g:{SECRET} @h", f"smtp://g:{SECRET}ñ@h",
                                    f"smtp://g:{SECRET}%C3%B1@h", f"smtp://g:{SECRET}\n@h",
                                    f"smtp://g:{SECRET}%0d%0aX@h", f"smtp://g:{SECRET}@{'a' * 64}",
                                    f"smtp://g:{SECRET}@[::1", f"smtp://g:{SECRET}@h\udcff", " ")),
]


@pytest.mark.parametrize("name, value", SETTINGS, ids=ascii)
def test_an_invalid_setting_is_named_without_its_password_and_exits_with_78(name, value):
    with pytest.raises(ConfigError, match=name) as raised:
        config.load({name: value})
    assert raised.value.exit_code == 78
    sentence = str(raised.value)
    assert sentence[0].isupper() and sentence.endswith(".") and len(sentence) < 350
    assert SECRET not in sentence


def test_delays_from_a_millisecond_to_a_day_are_valid():
    assert config.load({"RETRY_DELAYS": " 0.001, 0.5,86400 "}).retry_delays == (0.001, 0.5, 86400)


@pytest.mark.parametrize("url, shown", [
    ("amqp://ana:secret@h:1/v", "amqp://ana@h:1/v"), ("amqp://ana:se@cret@h", "amqp://ana@h"),
    ("amqp://h", "amqp://h"), ("amqp://:secret@h", "amqp://@h"),
    ("no se conoce ana:secret@h", "no se conoce ana@h"),
    ("RETRY_DELAYS='amqp://ana:se cret@h' no vale", "RETRY_DELAYS='amqp://ana@h' no vale"),
    ("--timeout: no vale para juan@eco.com", "--timeout: no vale para juan@eco.com"),
    ("amqp://ana:se'c ret@h", "amqp://ana@h"), ("amqp://an/a:se cret@h", "amqp://an/a@h"),
    ("no se conoce http://h:15672 juan@eco.com", "no se conoce http://h:15672 juan@eco.com")])
def test_a_url_is_shown_without_its_password(url, shown):
    assert config.masked(url) == shown


def test_a_rate_is_kept_and_a_stall_is_not_made_up_for(monkeypatch):
    clock, taken = [0.0], []

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for number in cli.paced(range(40), 2, sleep):
        taken.append(clock[0])
        clock[0] += 5 if number == 20 else 0.01
    assert taken[20] == pytest.approx(10) and taken[-1] == pytest.approx(23.9)
    assert max(sum(at <= other < at + 1 for other in taken) for at in taken) <= 3


# ---------------------------------------------------------------- events


def test_decode_returns_the_encoded_event():
    assert events.decode(events.encode(EVENT)) == EVENT


def test_an_encoded_event_has_the_cloudevents_fields():
    wire = json.loads(events.encode(EVENT))
    assert wire == {
        "specversion": "1.0", "id": EVENT.id, "source": "/ecomarket/usuarios",
        "type": "UsuarioCreado", "time": EVENT.time,
        "data": {"user_id": EVENT.user_id, "nombre": EVENT.nombre, "email": EVENT.email}}
    assert EVENT.time.endswith("Z") and uuid.UUID(EVENT.id) != uuid.UUID(EVENT.user_id)


def test_each_event_has_its_own_id_and_user_id():
    made = [events.user_created("Ana", "ana@eco.com") for _ in range(3)]
    assert len({event.id for event in made} | {event.user_id for event in made}) == 6


def test_the_properties_carry_the_id_and_type_of_the_event():
    found = publishing.properties(EVENT, 2, {"x-simulate": {}})
    assert (found.message_id, found.type) == (EVENT.id, "UsuarioCreado")
    assert (found.content_type, found.delivery_mode) == ("application/cloudevents+json", 2)
    assert found.headers == {"x-simulate": {}}
    assert found.timestamp and found.app_id
    found.encode()  # pika can encode them
    assert isinstance(found, pika.BasicProperties)


def test_unknown_fields_are_ignored():
    wire = changed(trace="x", data={"extra": [1, None]})
    assert events.decode(wire) == EVENT


def test_an_event_of_another_type_is_decoded_whatever_its_data():
    for data in ({}, None, 7, {"total": 3}):
        wire = json.loads(events.encode(EVENT)) | {"type": "PedidoCreado", "data": data}
        expected = events.Event(EVENT.id, "PedidoCreado", EVENT.time)
        assert events.decode(json.dumps(wire).encode()) == expected


@pytest.mark.parametrize("when", [
    "2025-11-24T08:30:00Z", "2025-11-24t08:30:00.1z", "2025-11-24T08:30:00.123456789Z",
    "2025-11-24T08:30:00+05:30"])
def test_every_rfc_3339_time_is_valid(when):
    assert events.decode(changed(time=when)).time == when


def changed(*removed: str, **fields) -> bytes:
    """Return EVENT encoded, with fields removed or changed. data={…} changes fields of data."""
    wire = json.loads(events.encode(EVENT))
    data = wire["data"] | fields.pop("data", {})
    wire |= {"data": data} | fields
    for name in removed:
        wire.pop(name, None)
        data.pop(name, None)
    return json.dumps(wire).encode()


MALFORMED = {
    "empty": b"", "blank": b"  ", "not UTF-8": b"\xff\xfe{}",
    "UTF-16": events.encode(EVENT).decode().encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + events.encode(EVENT), "NUL": b"\0", "not JSON": b"{'id': 1}",
    "cut": events.encode(EVENT)[:-1], "two": events.encode(EVENT) * 2,
    "deep": b"[" * 100_000, "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "huge number": b'{"id": ' + b"9" * 5000 + b"}",
    "huge": changed(data={"nota": "x" * events.MAX_BYTES}),
    "list": b"[]", "null": b"null", "text": b'"UsuarioCreado"', "number": b"1",
    "NaN": changed(nota=1).replace(b"1}", b"NaN}"),
    "Infinity": changed(nota=1).replace(b"1}", b"-Infinity}"),
    "specversion 2": changed(specversion="2.0"), "specversion number": changed(specversion=1.0),
    **{f"without {name}": changed(name) for name in
       ("specversion", "id", "source", "type", "time", "data", "user_id", "nombre", "email")},
    **{f"{name} {value!r}": changed(**{name: value}) for name in ("id", "source", "type", "time")
       for value in (None, 1, True, [], {}, "", "x" * 256, "\ud800", "a\nb", "\x1b[2J")},
    **{f"{name} {value!r}": changed(data={name: value}) for name in ("user_id", "nombre", "email")
       for value in (None, 1, False, [], {}, "", " ", "x" * 300, "\ud800", "a\nb", "\x1b[2J",
                     "\x9b2J", "a\u2028b")},
    **{f"data {value!r}": events.encode(EVENT).split(b'"data"')[0] + b'"data":' + value + b"}"
       for value in (b"null", b"[]", b'"x"', b"1")},
    **{f"time {text}": changed(time=text) for text in (
        "ayer", "1764000000", "2025-13-01T00:00:00Z", "2025-11-24T25:00:00Z", "2025-11-24",
        "2025-11-24T08:30:00", "20251124T083000Z", "2025-W48-1T08:30:00Z", "2025-11-24 08:30",
        "２０２５-11-24T08:30:00Z", "0000-11-24T08:30:00Z", "9999-11-24T08:30:00Z")},
    "id no UUID": changed(id="42"), "user_id no UUID": changed(data={"user_id": "juan"}),
    **{f"email {text!r}": changed(data={"email": text}) for text in (
        "juan", "@eco.com", "juan@", "juan@eco", "a@b@eco.com", "juan @eco.com",
        "juan@eco.com\r\nBcc: x@y.z", "josé@eco.com", "juan@-eco.com", "juan@eco..com",
        "a" * 65 + "@eco.com", "<juan@eco.com>", "a,b@eco.com")},
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=[ascii(name) for name in MALFORMED])
def test_a_malformed_body_is_rejected_with_a_reason(body):
    with pytest.raises(events.MalformedEvent) as raised:
        events.decode(body)
    assert 5 < len(str(raised.value)) < 300
    str(raised.value).encode()  # printable, whatever the body contains


@pytest.mark.parametrize("nombre, email", [
    ("", "a@eco.com"), ("  ", "a@eco.com"), ("x" * 201, "a@eco.com"), ("a\r\nb", "a@eco.com"),
    ("\x1b[31m", "a@eco.com"), ("\udce9", "a@eco.com"), ("Ana", ""), ("Ana", "ana"),
    ("Ana", "a@eco.com\n"), ("Ana", "a" * 60 + "@" + "b." * 120 + "com")])
def test_an_invalid_user_is_rejected_with_exit_code_65(nombre, email):
    with pytest.raises(events.InvalidUser) as raised:
        events.user_created(nombre, email)
    assert raised.value.exit_code == 65


def test_the_longest_name_and_any_alphabet_are_valid():
    for nombre in ("x" * 200, "محمد", "王小明", "O'Brien-Núñez", "👩‍👩‍👧"):
        event = events.user_created(nombre, "a+b@sub.eco-market.com")
        assert events.decode(events.encode(event)) == event
    assert events.decode(events.encode(EVENT._replace(nombre="a\u0301"))).nombre == "a\u0301"
