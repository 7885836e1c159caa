"""kit.py doctor: one line for what is as it should be and for what is not; it changes nothing."""

import shutil
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Kit
from tools.node import free_port

SECRET = "s3cr3t0"


def examined(kit, code: int, **environment) -> str:
    ended = kit.run("kit.py", "doctor", **environment)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert all(line[0] in "✔✘" for line in ended.stdout.splitlines()[:-1]) and "Traceback" not in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert not kit.state.exists()
    return ended.stdout


@pytest.fixture
def alone(tmp_path):
    """The kit with a URL behind which nobody listens."""
    return Kit(f"amqp://guest:{SECRET}@127.0.0.1:{free_port()}/%2F", tmp_path / "state")


def test_where_all_is_well_it_says_so_and_ends_in_0(kit):
    shown = examined(kit, 0)
    assert "✘" not in shown and "admite el usuario y la contraseña" in shown and "Todo listo" in shown


def test_a_wrong_password_is_told_from_a_broker_that_is_away(kit):
    wrong = kit.using(url=kit.url.replace("guest:guest", f"guest:{SECRET}"))
    assert "✘ El broker no acepta el usuario o la contraseña" in examined(wrong, 1)


def test_without_a_broker_it_says_how_this_machine_gets_one(alone):
    shown = examined(alone, 1)
    [line] = [line for line in shown.splitlines() if line.startswith("✘")]
    assert "ningún broker responde en 127.0.0.1:" in line and ("kit.py broker up" in line or "Docker" in line)


def test_another_program_on_the_brokers_port_is_named(alone):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"✘ en 127.0.0.1:{port} responde otro programa" in examined(
            alone.using(url=f"amqp://guest:guest@127.0.0.1:{port}/"), 1)


def test_a_setting_that_is_wrong_is_one_line_and_not_the_end(alone):
    shown = examined(alone.using(delays="cinco"), 1)
    assert "✘ RETRY_DELAYS='cinco' no vale" in shown and "✔ Python" in shown


def test_a_folder_that_cannot_be_is_one_line_and_not_the_end(kit):
    ended = kit.run("kit.py", "doctor", STATE_DIR="a" * 300)
    assert ended.returncode == 1 and "✘ no se puede escribir en" in ended.stdout and "Traceback" not in ended.stderr


def test_a_mail_server_that_is_away_is_named(kit):
    port = free_port()
    assert f"✘ el servidor de correo no responde en localhost:{port}" in examined(kit, 1, SMTP_URL=f"smtp://localhost:{port}")


def test_a_terminal_without_utf_8_still_gets_its_advice(kit):
    ended = kit.run("kit.py", "doctor", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert [line for line in ended.stdout.splitlines() if line.startswith("? lo que se imprime va en ascii: escribe")]


def test_a_python_without_the_packages_is_told_where_they_are(alone, tmp_path):
    copy = tmp_path / "kit"
    for folder in ("common", "tools"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kit.py", "requirements.txt", ".env.example"):
        shutil.copy(ROOT / name, copy / name.replace(".example", ""))
    ended = subprocess.run([sys.executable, "-S", str(copy / "kit.py"), "doctor"], env=alone.environment(),
                           capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert ended.returncode == 1, ended.stderr
    assert "✘ A este Python le faltan los paquetes del kit" in ended.stdout and "Traceback" not in ended.stderr
    assert not (copy / ".venv").exists()
