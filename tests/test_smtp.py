"""Email over SMTP: a real server accepts, defers and rejects mail, stops and restarts."""

import email
import email.policy
import json
import socket
import sqlite3
import threading
import time
from contextlib import closing, suppress

import pytest

from common import events, mail
from common.config import ConfigError
from common.crash_loop import MAX_STARTS
from common.retry import PermanentError
from tests.conftest import MailServer, wait_until
from tests.test_bad_input import assert_refused
from tests.test_tls import certificates

EMAIL = "email_consumer_simple.py"
SECRET = "s3cr3t0"
EVENT = events.user_created("Juan", "juan@eco.com")


def publish_to(kit, *names: str) -> list[events.Event]:
    """Publish one event for the email consumer per name of a mailbox at eco.com."""
    kit.declare()
    return [kit.publish_event(events.user_created("Zoë Ñandú", f"{name}@eco.com"),
                              queue="email_queue") for name in names]


@pytest.fixture
def mail_server(smtp_python, tmp_path):
    """Start a server without TLS, which the test may stop and start."""
    with MailServer(smtp_python, tmp_path / "mail") as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def certificate_files(tmp_path_factory):
    """Make a certificate for localhost. Return the paths (authority, certificate, key)."""
    made = certificates(tmp_path_factory.mktemp("smtp") / "certificates", "DNS:localhost")
    return made / "ca.pem", made / "server.pem", made / "server.key"


@pytest.fixture(params=["smtp", "smtps"])
def tls_server(request, smtp_python, certificate_files, tmp_path, monkeypatch):
    """Start a trusted server that requires STARTTLS or TLS, and the account ana/secreta."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_files[0]))
    with MailServer(smtp_python, tmp_path / "mail", certificate_files[1:], request.param) as server:
        server.start()
        yield server


@pytest.fixture
def silent_port():
    """Return a port that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# ---------------------------------------------------------------- delivery


def test_the_mail_is_on_the_server_and_the_same_message_is_the_row_of_its_event(kit, mail_server):
    [event] = publish_to(kit, "zoe")
    kit.call_ok(EMAIL, "--limit", "1", "--smtp-url", mail_server.url)
    [sent] = mail_server.messages()
    assert (sent["Message-ID"], sent["To"], sent["From"]) == (
        f"<{event.id}@ecomarket.example>", "Zoë Ñandú <zoe@eco.com>",
        "Ecomarket <bienvenida@ecomarket.example>")
    assert sent["X-MailFrom"] == "bienvenida@ecomarket.example"  # the envelope
    assert sent["X-RcptTo"] == "zoe@eco.com"
    assert "Hola, Zoë Ñandú:\n" in sent.get_content()
    with closing(sqlite3.connect(kit.state / "email.db")) as db:
        [(event_id, message)] = db.execute("SELECT event_id, message FROM outbox").fetchall()
    kept = email.message_from_bytes(message, policy=email.policy.default)
    assert (event_id, kept["Message-ID"], kept["To"], kept.get_content().splitlines()) == (
        event.id, sent["Message-ID"], sent["To"], sent.get_content().splitlines())


def test_a_duplicate_event_is_not_mailed_again(kit, mail_server):
    [event] = publish_to(kit, "zoe")
    kit.publish_event(event, queue="email_queue")
    result = kit.call_ok(EMAIL, "--json", "--limit", "2", "--smtp-url", mail_server.url)
    outcomes = [json.loads(line)["outcome"] for line in result.stdout.splitlines()]
    assert outcomes == ["done", "duplicate"]
    assert len(mail_server.messages()) == 1


def test_two_processes_share_the_mails_and_send_each_once(kit, mail_server):
    made = publish_to(kit, *(f"u{number}" for number in range(60)))
    pair = [kit.start(EMAIL, "--prefetch", "5", "--smtp-url", mail_server.url) for _ in range(2)]
    wait_until(lambda: len(mail_server.messages()) >= 60, "60 mails")
    assert [running.interrupt() for running in pair] == [0, 0]
    assert kit.report(EMAIL) == {"emails": 60} and kit.depth("email_queue") == 0
    recipients = sorted(sent["X-RcptTo"] for sent in mail_server.messages())
    assert recipients == sorted(event.email for event in made)


def test_a_consumer_killed_before_the_ledger_commit_resends_the_same_message_id(kit, mail_server):
    publish_to(kit, "ana")
    killed = kit.start(EMAIL, "--smtp-url", mail_server.url)
    killed.wait_for("correo enviado a ana@eco.com")
    with closing(sqlite3.connect(kit.state / "email.db", isolation_level=None)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")  # every other writer waits
        [event] = publish_to(kit, "zoe")
        wait_until(lambda: len(mail_server.messages()) == 2, "the mail", killed.text)
        killed.kill()
    kit.call_ok(EMAIL, "--limit", "1", "--smtp-url", mail_server.url)
    ids = [sent["Message-ID"] for sent in mail_server.messages()
           if sent["X-RcptTo"] == event.email]
    assert ids == 2 * [f"<{event.id}@ecomarket.example>"]
    assert kit.report(EMAIL) == {"emails": 2} and kit.depth("email_queue") == 0


# ---------------------------------------------------------------- error handling


def test_451_is_retried_and_550_is_a_dead_letter_at_once(kit, mail_server):
    kit = kit.using(delays="0.1,0.2,0.3")
    publish_to(kit, "espera", "nadie", "zoe")
    running = kit.start(EMAIL, "--json", "--smtp-url", mail_server.url)
    kit.wait_for_depth("dead_letter_queue", 2)
    assert running.interrupt() == 0
    dead_letters = {json.loads(body)["data"]["email"]: properties.headers
                    for properties, body in kit.messages("dead_letter_queue")}
    deferred, denied = dead_letters["espera@eco.com"], dead_letters["nadie@eco.com"]
    assert (deferred["x-attempt"], deferred["x-error-type"]) == (4, "MailNotSent")
    assert deferred["x-error-message"] == "el servidor de correo contesta 451 vuelve más tarde"
    assert (denied["x-attempt"], denied["x-error-type"]) == (1, "PermanentError")
    assert denied["x-error-message"] == "el servidor de correo contesta 550 no conozco a nadie"
    assert [sent["X-RcptTo"] for sent in mail_server.messages()] == ["zoe@eco.com"]


def test_mail_waits_for_an_unavailable_server(kit, mail_server):
    kit = kit.using(delays="0.3" + 15 * ",1")
    mail_server.stop()
    [event] = publish_to(kit, "zoe")
    running = kit.start(EMAIL, "--smtp-url", mail_server.url)
    running.wait_for("MailNotSent: no hay servidor de correo (conexión rechazada)", count=2)
    mail_server.start()
    running.wait_for("correo enviado a zoe@eco.com")
    [sent] = mail_server.messages()
    assert sent["Message-ID"] == f"<{event.id}@ecomarket.example>"
    assert running.interrupt() == 0


def test_a_silent_server_counts_as_unavailable_and_blocks_no_other_process(
        monkeypatch, kit, silent_port):
    monkeypatch.setattr(mail, "TIMEOUT_S", 0.3)
    with pytest.raises(mail.MailNotSent, match="no responde a tiempo|se cortó"):
        mail.send(f"smtp://127.0.0.1:{silent_port}", EVENT)
    publish_to(kit, "zoe")
    waiting = kit.start(EMAIL, "--prefetch", "1", "--smtp-url", f"smtp://127.0.0.1:{silent_port}")
    wait_until(lambda: kit.consumers("email_queue") == 1 and kit.depth("email_queue") == 0,
               "the delivery", waiting.text)
    kit.publish_event(queue="email_queue")
    kit.call_ok(EMAIL, "--limit", "1", timeout=25)  # a second process that writes the same ledger


@pytest.fixture
def server_replying(request):
    """Return start(**replies): it starts a server and returns its URL.

    `replies` maps a command, GREETING or DOT (the end of the data) to an unusual reply, or to an
    iterator of replies.
    """
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
        def reply(name: str, usual: str) -> None:
            line = replies.get(name, usual)
            line = line if isinstance(line, str) else next(line)
            connection.sendall(f"{line}\r\n".encode("utf-8", "surrogateescape"))

        reply("GREETING", "220 hola")
        data = False
        for line in connection.makefile("rb"):
            command = line.split()[0].upper().decode() if line.split() else ""
            if data and line != b".\r\n":
                continue
            if data or command not in ("DATA", "EHLO"):
                reply("DOT" if data else command, "250 bien" if command != "AUTH" else "235 pasa")
            else:
                reply(command, "354 adelante" if command == "DATA"
                      else "250-hola\r\n250 AUTH PLAIN")
            data = command == "DATA" and not data


LONG = "250 " + "x" * 10_000


@pytest.mark.parametrize("replies, error", [
    ({"AUTH": "454 luego"}, mail.MailNotSent), ({"AUTH": f"501 esto no: {SECRET}"}, ConfigError),
    ({"AUTH": "504 así no"}, ConfigError), ({"AUTH": "554 no"}, ConfigError),
    ({"EHLO": "250 AUTH XOAUTH2"}, ConfigError), ({"EHLO": "250 hola"}, ConfigError),
    ({"GREETING": "554 nadie"}, mail.MailNotSent), ({"GREETING": LONG}, mail.MailNotSent),
    ({"EHLO": "550 no", "HELO": "550 no"}, mail.MailNotSent),
    ({"EHLO": "250-x\r\n250 STARTTLS", "STARTTLS": "502 no"}, mail.MailNotSent),
    ({"MAIL": "451 luego"}, mail.MailNotSent), ({"MAIL": "553 tú no"}, PermanentError),
    ({"MAIL": "530 entra antes"}, ConfigError), ({"RCPT": "452 lleno"}, mail.MailNotSent),
    ({"RCPT": "550-nadie\r\n550 \x1b[2J \udcff"}, PermanentError),
    ({"DATA": "554 no"}, PermanentError), ({"DOT": "452 lleno"}, mail.MailNotSent),
    ({"DOT": "552 grande"}, PermanentError)],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else value.__name__)
def test_only_replies_about_the_message_itself_are_permanent_errors(
        server_replying, replies, error):
    with pytest.raises(error) as raised:
        mail.send(server_replying(**replies), EVENT)
    assert SECRET not in str(raised.value)


def test_a_server_that_refuses_to_go_on_after_starttls_does_not_refuse_the_account(
        server_replying, monkeypatch):
    def forget_the_greeting(server, context):  # what starttls() does, without TLS
        server.ehlo_resp = server.helo_resp = None
    monkeypatch.setattr(mail.smtplib.SMTP, "starttls", forget_the_greeting)
    url = server_replying(EHLO=iter(["250-x\r\n250 STARTTLS", "550 no"]), HELO="550 no")
    with pytest.raises(mail.MailNotSent, match="550"):
        mail.send(url, EVENT)


@pytest.mark.parametrize("when", ["2016-12-31T23:59:60Z", "2026-02-31t00:00:00Z"])
def test_an_event_whose_time_no_calendar_has_becomes_an_e_mail_all_the_same(when):
    event = events.decode(events.encode(EVENT._replace(time=when)))
    assert b"\r\nDate: " in mail.welcome(event)


@pytest.mark.parametrize("time, date", [
    ("2026-01-31T00:30:00Z", "Sat, 31 Jan 2026 00:30:00 -0000"),
    ("2026-01-31T00:30:00.5+05:30", "Sat, 31 Jan 2026 00:30:00 +0530")])
def test_the_date_of_an_e_mail_is_the_moment_of_the_event(time, date):
    assert f"\r\nDate: {date}\r\n".encode() in mail.welcome(EVENT._replace(time=time))


def test_the_own_name_of_this_machine_is_not_looked_up(server_replying, monkeypatch):
    """That takes seconds where there is no reverse DNS."""
    monkeypatch.setattr(mail.socket, "getfqdn", lambda *_: pytest.fail("looked up"))
    mail.send(server_replying(), EVENT)


def test_a_failed_quit_is_ignored(server_replying):
    mail.send(server_replying(QUIT="500 " + "x" * 10_000), EVENT)


def test_a_slow_server_has_a_deadline(monkeypatch):
    monkeypatch.setattr(mail, "DEADLINE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        def drip():
            with suppress(OSError), server.accept()[0] as connection:
                while True:
                    connection.sendall(b"2")
                    time.sleep(0.1)
        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(mail.MailNotSent):
            mail.send(f"smtp://127.0.0.1:{server.getsockname()[1]}", EVENT)


def test_a_rejected_password_does_not_count_as_a_crash(kit, server_replying):
    publish_to(kit, "zoe")
    for _ in range(MAX_STARTS + 2):  # more runs than the crashes that make a dead letter
        url = server_replying(AUTH="535 no")
        assert_refused(kit.call(EMAIL, "--limit", "1", "--smtp-url", url), 78,
                       "usuario o la contraseña")
    kit.wait_for_depth("email_queue", 1)
    assert kit.depth("dead_letter_queue") == 0


# ---------------------------------------------------------------- accounts and TLS


def test_over_tls_login_works_and_a_wrong_account_stops_the_consumer(kit, tls_server):
    publish_to(kit, "zoe")
    # Without an account, the server replies 530.
    assert_refused(kit.call(EMAIL, "--limit", "1", "--smtp-url", tls_server.url), 78, "SMTP_URL")
    wrong = tls_server.url_for(f"ana:{SECRET}@")
    assert_refused(kit.call(EMAIL, "--limit", "1", "--smtp-url", wrong), 78,
                   "usuario o la contraseña", "://ana@localhost")
    assert tls_server.messages() == [] and kit.depth("dead_letter_queue") == 0
    kit.call_ok(EMAIL, "--limit", "1", "--smtp-url", tls_server.url_for("ana:secreta@"))
    assert [sent["X-RcptTo"] for sent in tls_server.messages()] == ["zoe@eco.com"]


@pytest.mark.parametrize("user, sender", [
    ("ana%40eco.com", "ana@eco.com"), ("ana", mail.SENDER),
    ("%40", mail.SENDER), ("a,b%40eco.com", mail.SENDER)])
def test_the_sender_is_the_account_if_it_is_an_address(user, sender):
    assert mail.sender(f"smtp://{user}:x@h") == sender


def test_an_untrusted_certificate_receives_no_password(kit, tls_server, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    publish_to(kit, "zoe")
    url = tls_server.url_for(f"ana:{SECRET}@")
    assert_refused(kit.call(EMAIL, "--limit", "1", "--smtp-url", url), 78, "certificado")
    kit.wait_for_depth("email_queue", 1)
