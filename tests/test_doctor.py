"""kit.py doctor prints one line per check and changes nothing."""

import shutil
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Kit
from tools.node import free_port

SECRET = "s3cr3t0"


def run_doctor(kit, code: int, **environment) -> str:
    result = kit.run("kit.py", "doctor", **environment)
    assert result.returncode == code, result.stdout + result.stderr
    assert all(line[0] in "✔✘" for line in result.stdout.splitlines()[:-1])
    assert "Traceback" not in result.stderr
    assert SECRET not in result.stdout + result.stderr
    assert not kit.state.exists()
    return result.stdout


@pytest.fixture
def offline_kit(tmp_path):
    """Return a Kit whose URL points to a closed port."""
    return Kit(f"amqp://guest:{SECRET}@127.0.0.1:{free_port()}/%2F", tmp_path / "state")


def test_a_working_setup_exits_with_0(kit):
    shown = run_doctor(kit, 0)
    assert "✘" not in shown
    assert "admite el usuario y la contraseña" in shown and "Todo listo" in shown


def test_a_wrong_password_is_reported(kit):
    wrong = kit.using(url=kit.url.replace("guest:guest", f"guest:{SECRET}"))
    assert "✘ El broker no acepta el usuario o la contraseña" in run_doctor(wrong, 1)


def test_a_missing_broker_is_reported_with_a_way_to_start_one(offline_kit):
    shown = run_doctor(offline_kit, 1)
    [line] = [line for line in shown.splitlines() if line.startswith("✘")]
    assert "ningún broker responde en 127.0.0.1:" in line
    assert "kit.py broker up" in line or "Docker" in line


def test_another_program_on_the_broker_port_is_reported(offline_kit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"✘ en 127.0.0.1:{port} responde otro programa" in run_doctor(
            offline_kit.using(url=f"amqp://guest:guest@127.0.0.1:{port}/"), 1)


def test_an_invalid_setting_is_one_line_and_the_checks_continue(offline_kit):
    shown = run_doctor(offline_kit.using(delays="cinco"), 1)
    assert "✘ RETRY_DELAYS='cinco' no vale" in shown and "✔ Python" in shown


def test_an_unusable_folder_is_one_line_without_a_traceback(kit):
    result = kit.run("kit.py", "doctor", STATE_DIR="a" * 300)
    assert result.returncode == 1 and "✘ no se puede escribir en" in result.stdout
    assert "Traceback" not in result.stderr


def test_an_unavailable_mail_server_is_reported(kit):
    port = free_port()
    shown = run_doctor(kit, 1, SMTP_URL=f"smtp://localhost:{port}")
    assert f"✘ el servidor de correo no responde en localhost:{port}" in shown


def test_a_terminal_without_utf_8_gets_advice(kit):
    result = kit.run("kit.py", "doctor", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert [line for line in result.stdout.splitlines()
            if line.startswith("? lo que se imprime va en ascii: escribe")]


def test_missing_packages_are_reported_without_changing_anything(offline_kit, tmp_path):
    copy = tmp_path / "kit"
    for folder in ("common", "tools"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kit.py", "requirements.txt", ".env.example"):
        shutil.copy(ROOT / name, copy / name.replace(".example", ""))
    result = subprocess.run([sys.executable, "-S", str(copy / "kit.py"), "doctor"],
                            env=offline_kit.environment(),
                            capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert result.returncode == 1, result.stderr
    assert "✘ A este Python le faltan los paquetes del kit" in result.stdout
    assert "Traceback" not in result.stderr
    assert not (copy / ".venv").exists()
