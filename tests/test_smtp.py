"""E-mail over SMTP: a real server that takes, defers, refuses, goes away and comes back."""

import email
import email.policy
import json
import socket
import sqlite3
import threading
import time
from contextlib import closing, suppress

import pytest

import email_consumer_simple
from common import events, smtp
from common.config import ConfigError
from common.retry import PermanentError
from tests.conftest import MailServer, wait_until
from tests.test_bad_input import refused
from tests.test_tls import certificates

EMAIL = "email_consumer_simple.py"
SECRET = "s3cr3t0"


def to(kit, *names: str) -> list[events.Event]:
    """One event for the e-mail consumer for each name of a mailbox at eco.com."""
    kit.done("setup_queues.py")
    return [kit.publish_event(events.user_created("Zoë Ñandú", f"{name}@eco.com"), queue="email_queue") for name in names]


@pytest.fixture
def mail(smtp_python, tmp_path):
    """A server without TLS; it may be stopped and started."""
    with MailServer(smtp_python, tmp_path / "mail") as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """A certificate for localhost: (its authority, the certificate, its key)."""
    made = certificates(tmp_path_factory.mktemp("smtp") / "certificates", "DNS:localhost")
    return made / "ca.pem", made / "server.pem", made / "server.key"


@pytest.fixture(params=["smtp", "smtps"])
def secured(request, smtp_python, certified, tmp_path, monkeypatch):
    """A server that asks for TLS, later or at once, and for the account ana/secreta; it is trusted here."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certified[0]))
    with MailServer(smtp_python, tmp_path / "mail", certified[1:], request.param) as server:
        server.start()
        yield server


@pytest.fixture
def silent_port():
    """Where a connection is taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# ---------------------------------------------------------------- what arrives


def test_the_mail_is_at_the_server_and_in_the_outbox_with_the_id_of_its_event(kit, mail):
    [event] = to(kit, "zoe")
    kit.done(EMAIL, "--limit", "1", "--smtp-url", mail.url)
    [sent] = mail.messages()
    assert (sent["Message-ID"], sent["To"], sent["From"]) == (
        f"<{event.id}@ecomarket.example>", "Zoë Ñandú <zoe@eco.com>", "Ecomarket <bienvenida@ecomarket.example>")
    assert (sent["X-MailFrom"], sent["X-RcptTo"]) == ("bienvenida@ecomarket.example", "zoe@eco.com")  # the envelope
    assert "Hola, Zoë Ñandú:\n" in sent.get_content()
    [kept] = (kit.state / "outbox" / "new").iterdir()
    assert email.message_from_bytes(kept.read_bytes(), policy=email.policy.default)["Message-ID"] == sent["Message-ID"]
    assert kit.report(EMAIL) == {"emails": 1}


def test_a_copy_of_an_event_is_not_sent_again(kit, mail):
    [event] = to(kit, "zoe")
    kit.publish_event(event, queue="email_queue")
    ended = kit.done(EMAIL, "--json", "--limit", "2", "--smtp-url", mail.url)
    assert [json.loads(line)["outcome"] for line in ended.stdout.splitlines()] == ["done", "duplicate"]
    assert len(mail.messages()) == 1


def test_two_processes_share_the_mails_and_send_each_once(kit, mail):
    made = to(kit, *(f"u{number}" for number in range(60)))
    pair = [kit.start(EMAIL, "--idle-timeout", "3", "--prefetch", "5", "--smtp-url", mail.url) for _ in range(2)]
    assert [running.end() for running in pair] == [0, 0]
    assert sorted(sent["X-RcptTo"] for sent in mail.messages()) == sorted(event.email for event in made)


def test_a_consumer_killed_between_the_servers_answer_and_the_ledger_sends_it_again_with_the_same_message_id(kit, mail):
    kit.done(EMAIL, "--idle-timeout", "0.1")  # makes the ledger
    [event] = to(kit, "zoe")
    with closing(sqlite3.connect(kit.state / "email.db", isolation_level=None)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")  # whoever wants to write waits
        killed = kit.start(EMAIL, "--smtp-url", mail.url)
        wait_until(mail.messages, "the first mail", killed.text)
        killed.kill()
    kit.done(EMAIL, "--limit", "1", "--smtp-url", mail.url)
    assert [sent["Message-ID"] for sent in mail.messages()] == 2 * [f"<{event.id}@ecomarket.example>"]
    assert kit.report(EMAIL) == {"emails": 1} and kit.depth("email_queue") == 0


# ---------------------------------------------------------------- whose fault it is


def test_451_is_tried_again_and_550_is_a_dead_letter_at_once(kit, mail):
    to(kit, "espera", "nadie", "zoe")
    running = kit.start(EMAIL, "--json", "--smtp-url", mail.url)
    kit.wait_for_depth("dead_letter_queue", 2)
    assert running.interrupt() == 0
    letters = {json.loads(body)["data"]["email"]: properties.headers for properties, body in kit.messages("dead_letter_queue")}
    deferred, denied = letters["espera@eco.com"], letters["nadie@eco.com"]
    assert (deferred["x-attempt"], deferred["x-error-type"]) == (4, "MailNotSent")
    assert deferred["x-error-message"] == "el servidor de correo contesta 451 vuelve más tarde"
    assert (denied["x-attempt"], denied["x-error-type"]) == (1, "PermanentError")
    assert denied["x-error-message"] == "el servidor de correo contesta 550 no conozco a nadie"
    assert [sent["X-RcptTo"] for sent in mail.messages()] == ["zoe@eco.com"]


def test_mail_waits_for_a_server_that_is_away_and_then_goes_out(kit, mail):
    kit = kit.using(delays="0.3,1,60")
    mail.stop()
    [event] = to(kit, "zoe")
    running = kit.start(EMAIL, "--smtp-url", mail.url)
    running.wait_for("MailNotSent: no hay servidor de correo (conexión rechazada)", count=2)
    mail.start()
    running.wait_for("email enviado a zoe@eco.com")
    assert [sent["Message-ID"] for sent in mail.messages()] == [f"<{event.id}@ecomarket.example>"]
    assert running.interrupt() == 0


def test_a_server_that_says_nothing_counts_as_away_and_locks_nobody_out(monkeypatch, kit, silent_port):
    monkeypatch.setattr(smtp, "TIMEOUT_S", 0.3)
    with pytest.raises(smtp.MailNotSent, match="no responde a tiempo|se cortó"):
        smtp.send(f"smtp://127.0.0.1:{silent_port}", "a@eco.com", "b@eco.com", b"x")
    to(kit, "zoe")
    waiting = kit.start(EMAIL, "--prefetch", "1", "--smtp-url", f"smtp://127.0.0.1:{silent_port}")
    wait_until(lambda: kit.consumers("email_queue") == 1 and kit.depth("email_queue") == 0, "it to be taken", waiting.text)
    kit.publish_event(queue="email_queue")
    kit.done(EMAIL, "--limit", "1", timeout=8)  # a second process, which writes the same ledger


@pytest.fixture
def odd(request):
    """odd(**replies) -> URL of a server that answers a command (or GREETING, DOT) as told, and else as it should."""
    sockets = []

    def start(**replies) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)
        threading.Thread(target=serve, args=(server, replies), daemon=True).start()
        return f"smtp://ana:{SECRET}@localhost:{server.getsockname()[1]}"

    yield start
    for server in sockets:
        server.close()


def serve(server, replies: dict) -> None:
    with suppress(OSError), server.accept()[0] as connection:
        say = lambda name, usual: connection.sendall(f"{replies.get(name, usual)}\r\n".encode("utf-8", "surrogateescape"))  # noqa: E731
        say("GREETING", "220 hola")
        data = False
        for line in connection.makefile("rb"):
            command = line.split()[0].upper().decode() if line.split() else ""
            if data and line != b".\r\n":
                continue
            if data or command not in ("DATA", "EHLO"):
                say("DOT" if data else command, "250 bien" if command != "AUTH" else "235 pasa")
            else:
                say(command, {"DATA": "354 adelante", "EHLO": "250-hola\r\n250 AUTH PLAIN"}[command])
            data = command == "DATA" and not data


LONG = "250 " + "x" * 10_000


@pytest.mark.parametrize("replies, error", [
    ({"AUTH": "454 luego"}, smtp.MailNotSent), ({"AUTH": f"501 esto no: {SECRET}"}, ConfigError),
    ({"AUTH": "504 así no"}, ConfigError), ({"AUTH": "554 no"}, ConfigError), ({"EHLO": "250 AUTH XOAUTH2"}, ConfigError),
    ({"EHLO": "250 hola"}, ConfigError), ({"GREETING": "554 nadie"}, smtp.MailNotSent), ({"GREETING": LONG}, smtp.MailNotSent),
    ({"EHLO": "550 no", "HELO": "550 no"}, smtp.MailNotSent), ({"EHLO": "250-x\r\n250 STARTTLS", "STARTTLS": "502 no"}, smtp.MailNotSent),
    ({"MAIL": "451 luego"}, smtp.MailNotSent), ({"MAIL": "553 tú no"}, PermanentError), ({"MAIL": "530 entra antes"}, ConfigError),
    ({"RCPT": "452 lleno"}, smtp.MailNotSent), ({"RCPT": "550-nadie\r\n550 \x1b[2J \udcff"}, PermanentError),
    ({"DATA": "554 no"}, PermanentError), ({"DOT": "452 lleno"}, smtp.MailNotSent), ({"DOT": "552 grande"}, PermanentError)],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else value.__name__)
def test_what_is_said_of_the_message_may_be_final_and_what_is_said_before_it_is_not(odd, replies, error):
    with pytest.raises(error) as raised:
        smtp.send(odd(**replies), "a@eco.com", "b@eco.com", b"x")
    assert SECRET not in str(raised.value)


def test_a_clumsy_goodbye_changes_nothing(odd):
    smtp.send(odd(QUIT="500 " + "x" * 10_000), "a@eco.com", "b@eco.com", b"x")


def test_a_server_that_answers_a_little_at_a_time_has_a_deadline(monkeypatch):
    monkeypatch.setattr(smtp, "DEADLINE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        def drip():
            with suppress(OSError), server.accept()[0] as connection:
                while True:
                    connection.sendall(b"2")
                    time.sleep(0.1)
        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(smtp.MailNotSent):
            smtp.send(f"smtp://127.0.0.1:{server.getsockname()[1]}", "a@eco.com", "b@eco.com", b"x")


def test_a_stop_because_of_the_password_is_no_death_of_the_process(kit, odd):
    [event] = to(kit, "zoe")
    for _ in range(8):  # more than the deaths that make a dead letter
        refused(kit.run(EMAIL, "--limit", "1", "--smtp-url", odd(AUTH="535 no")), 78, "usuario o la contraseña")
    assert (kit.depth("email_queue"), kit.depth("dead_letter_queue")) == (1, 0)


@pytest.mark.parametrize("place", ["outbox", "outbox/new"])
def test_where_the_outbox_cannot_be_written_nothing_is_sent_and_nothing_dies(kit, mail, place):
    to(kit, "zoe")
    (kit.state / place).parent.mkdir(parents=True, exist_ok=True)
    (kit.state / place).touch()
    for _ in range(8):
        refused(kit.run(EMAIL, "--limit", "1", "--smtp-url", mail.url), 78, "outbox")
    assert mail.messages() == []
    assert (kit.depth("email_queue"), kit.depth("dead_letter_queue")) == (1, 0)


# ---------------------------------------------------------------- accounts and TLS


def test_over_tls_the_account_logs_in_and_a_wrong_one_stops_the_consumer(kit, secured):
    to(kit, "zoe")
    refused(kit.run(EMAIL, "--limit", "1", "--smtp-url", secured.url), 78, "SMTP_URL")  # 530: it asks for an account
    wrong = secured.url_as(f"ana:{SECRET}@")
    refused(kit.run(EMAIL, "--limit", "1", "--smtp-url", wrong), 78, "usuario o la contraseña", "://ana@localhost")
    assert secured.messages() == [] and kit.depth("dead_letter_queue") == 0
    kit.done(EMAIL, "--limit", "1", "--smtp-url", secured.url_as("ana:secreta@"))
    assert [sent["X-RcptTo"] for sent in secured.messages()] == ["zoe@eco.com"]


@pytest.mark.parametrize("user, sender", [
    ("ana%40eco.com", "ana@eco.com"), ("ana", email_consumer_simple.SENDER), ("%40", email_consumer_simple.SENDER),
    ("a,b%40eco.com", email_consumer_simple.SENDER)])
def test_the_sender_is_the_account_where_that_is_an_address(user, sender):
    assert email_consumer_simple.sender_of(f"smtp://{user}:x@h") == sender


def test_a_certificate_that_nobody_signed_gets_no_password(kit, secured, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    to(kit, "zoe")
    refused(kit.run(EMAIL, "--limit", "1", "--smtp-url", secured.url_as(f"ana:{SECRET}@")), 78, "certificado")
    kit.wait_for_depth("email_queue", 1)
