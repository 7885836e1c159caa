"""amqps:// with an authority of one's own: RABBITMQ_CA_FILE; what cannot be trusted is not talked to."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from common.connection import refused
from tests.conftest import Kit
from tools.node import Node, free_port

PUBLISHER, EMAIL = "events_publisher_levels.py", "email_consumer_simple.py"
USER = ("--nombre", "Juan", "--email", "juan@eco.com")


def certificates(folder: Path, names: str) -> Path:
    """Make an authority (ca.pem) and a server certificate for the names; returns the folder."""
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "1",
            "-subj", "/CN=autoridad de la clase", "-addext", "keyUsage=critical,keyCertSign")  # Python 3.13 asks for it
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=broker")
    (folder / "names").write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n", encoding="utf-8")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "server.pem", "-days", "1", "-extfile", "names")
    return folder


@pytest.fixture(scope="module")
def secured(server, tmp_path_factory):
    """A node with TLS, for localhost but not for 127.0.0.1; yields (port of TLS, port without, its authority)."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl on this machine to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    made = certificates(folder / "certificates", "DNS:localhost")
    port = free_port()
    with Node(folder / "node", configuration=f"""
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {made}/ca.pem
ssl_options.certfile = {made}/server.pem
ssl_options.keyfile = {made}/server.key
""") as node:
        node.start()
        yield port, node.port, made / "ca.pem"


@pytest.fixture
def kit(secured, tmp_path):
    hands = Kit(f"amqps://guest:guest@localhost:{secured[0]}/%2F", tmp_path / "state")
    yield hands
    hands.close()


def publish(kit, level: str, **environment):
    return kit.run(PUBLISHER, "--level", level, *USER, **environment)


def test_all_three_levels_and_a_consumer_talk_tls_with_an_authority_of_ones_own(kit, secured):
    authority = {"RABBITMQ_CA_FILE": str(secured[2])}
    consumer = kit.start(EMAIL, **authority)
    consumer.wait_for("escucha email_queue")
    for level in "123":
        ended = publish(kit, level, **authority)
        assert ended.returncode == 0, ended.stderr
    consumer.wait_for("email enviado", count=3)
    assert consumer.interrupt() == 0
    assert kit.report(EMAIL) == {"emails": 3}
    failing = kit.start(EMAIL, **authority)  # its second connection, which sends the copies, talks it too
    kit.done("simulate_fail_publisher.py", "--mode", "permanent", "--consumer", "email", "--ca-file", str(secured[2]))
    failing.wait_for("→ dead_letter_queue")
    assert failing.interrupt() == 0
    assert "total: 1" in kit.done("dead_letter_consumer.py", "--summary", **authority).stdout


@pytest.mark.parametrize("level", "123")
def test_a_certificate_of_an_unknown_authority_ends_in_78_and_says_what_to_do(kit, level):
    ended = publish(kit, level)
    assert ended.returncode == 78
    assert "nadie de confianza lo firmó; pon en RABBITMQ_CA_FILE" in ended.stderr and "guest" not in ended.stderr


def test_a_certificate_of_another_server_ends_a_consumer_in_78(kit, secured):
    other = kit.using(url=kit.url.replace("localhost", "127.0.0.1"))
    ended = other.run(EMAIL, RABBITMQ_CA_FILE=str(secured[2]))
    assert ended.returncode == 78
    assert "es de otro servidor" in ended.stderr
    assert "Sin conexión" not in ended.stderr + ended.stdout


def test_a_port_without_tls_is_said_to_be_one(kit, secured):
    plain = kit.using(url=kit.url.replace(str(secured[0]), str(secured[1])))
    ended = publish(plain, "1", RABBITMQ_CA_FILE=str(secured[2]))
    assert ended.returncode == 69
    assert "ahí no se habla TLS" in ended.stderr


@pytest.mark.parametrize("content", [None, b"", b"no es un certificado", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_ca_file_that_is_none_ends_in_78(kit, tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    ended = publish(kit, "1", RABBITMQ_CA_FILE=str(file))
    assert ended.returncode == 78
    assert "RABBITMQ_CA_FILE no es un archivo con certificados" in ended.stderr and "Traceback" not in ended.stderr


def test_an_expired_certificate_is_said_to_be_expired():
    error = ssl.SSLCertVerificationError("certificate has expired")
    error.verify_code = 10
    assert "ha caducado" in str(refused(error, "amqps://guest:secreto@servidor:5671/%2F"))
