"""amqps:// with a private authority (RABBITMQ_CA_FILE). Untrusted servers receive nothing."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from common.problems import refusal
from tests.conftest import Kit
from tools.node import Node, free_port

PUBLISHER, EMAIL = "events_publisher_levels.py", "email_consumer_simple.py"
USER = ("--nombre", "Juan", "--email", "juan@eco.com")


def certificates(folder: Path, names: str) -> Path:
    """Make an authority (ca.pem) and a server certificate for the names. Return the folder."""
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
            "-days", "1", "-subj", "/CN=autoridad de la clase",
            "-addext", "keyUsage=critical,keyCertSign")  # Python 3.13 requires this key usage
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr",
            "-subj", "/CN=broker")
    (folder / "names").write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n",
                                  encoding="utf-8")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", "server.pem", "-days", "1", "-extfile", "names")
    return folder


@pytest.fixture(scope="module")
def tls_node(server, tmp_path_factory):
    """Start a node whose certificate is for localhost and not for 127.0.0.1.

    Return (port with TLS, port without TLS, path of the authority).
    """
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
def kit(tls_node, tmp_path):
    own = Kit(f"amqps://guest:guest@localhost:{tls_node[0]}/%2F", tmp_path / "state")
    yield own
    own.close()


def publish(kit, level: str, **environment):
    return kit.call(PUBLISHER, "--level", level, *USER, **environment)


def test_all_levels_and_a_consumer_use_tls_with_a_private_authority(kit, tls_node):
    authority = {"RABBITMQ_CA_FILE": str(tls_node[2])}
    consumer = kit.start(EMAIL, **authority)
    consumer.wait_for("escucha email_queue")
    for level in "123":
        result = publish(kit, level, **authority)
        assert result.returncode == 0, result.stderr
    consumer.wait_for("correo enviado", count=3)
    assert consumer.interrupt() == 0
    assert kit.report(EMAIL) == {"emails": 3}
    # The second connection of the consumer, for retry copies, uses TLS too.
    failing = kit.start(EMAIL, **authority)
    kit.run_ok("simulate_fail_publisher.py", "--mode", "permanent", "--consumer", "email",
               "--ca-file", str(tls_node[2]))
    failing.wait_for("→ dead_letter_queue")
    assert failing.interrupt() == 0
    assert "total: 1" in kit.run_ok("dead_letter_consumer.py", "--summary", **authority).stdout


@pytest.mark.parametrize("level", "123")
def test_a_certificate_of_an_unknown_authority_exits_with_78(kit, level):
    result = publish(kit, level)
    assert result.returncode == 78
    assert "nadie de confianza lo firmó; pon en RABBITMQ_CA_FILE" in result.stderr
    assert "guest" not in result.stderr


def test_a_certificate_of_another_server_exits_with_78(kit, tls_node):
    other = kit.using(url=kit.url.replace("localhost", "127.0.0.1"))
    result = other.call(EMAIL, RABBITMQ_CA_FILE=str(tls_node[2]))
    assert result.returncode == 78
    assert "es de otro servidor" in result.stderr
    assert "Sin conexión" not in result.stderr + result.stdout


def test_a_port_without_tls_is_reported(kit, tls_node):
    plain = kit.using(url=kit.url.replace(str(tls_node[0]), str(tls_node[1])))
    result = publish(plain, "1", RABBITMQ_CA_FILE=str(tls_node[2]))
    assert result.returncode == 69
    assert "ahí no se habla TLS" in result.stderr


@pytest.mark.parametrize("content", [None, b"", b"no es un certificado",
                                     b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_an_invalid_ca_file_exits_with_78(kit, tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    result = publish(kit, "1", RABBITMQ_CA_FILE=str(file))
    assert result.returncode == 78
    assert "RABBITMQ_CA_FILE no vale: escribe un archivo, que se pueda leer, con" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("code", [9, 10])
def test_a_certificate_that_is_not_valid_today_is_reported(code):
    error = ssl.SSLCertVerificationError("certificate is not yet valid, or has expired")
    error.verify_code = code
    assert "ha caducado" in str(refusal(error, "amqps://guest:secreto@servidor:5671/%2F"))
