"""kit.py doctor prints one line per check and changes nothing; kit.py broker up starts a broker."""

import os
import random
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from common import config
from tests.conftest import ROOT, Kit
from tools import broker, command, doctor, node, service
from tools.command import NO_COMPOSE
from tools.node import Node, NodeError, PortTaken, answers_amqp, free_port, new_node

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


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Return a function that puts a docker in front of the PATH: a shell script (POSIX)."""
    if os.name == "nt":
        pytest.skip("a shell script stands in for docker")
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")

    def install(script: str) -> None:
        fake.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        fake.chmod(0o755)

    return install


@pytest.fixture
def docker_without_compose(docker):
    """As Debian's package docker.io."""
    docker("[ $1 = info ] && exit 0; echo \"unknown shorthand flag: 'd' in -d\"; exit 125")


@pytest.fixture
def failing_docker(docker, monkeypatch):
    """Its `compose up` fails with two lines."""
    docker('case "$*" in *" up "*) echo one; echo two; exit 1;; esac')
    monkeypatch.setattr(broker, "AMQP_PORT", free_port())
    monkeypatch.setattr(command, "COMPOSE_PORTS", {free_port(): "AMQP"})


def test_what_docker_compose_says_is_shown_line_by_line(failing_docker, capsys):
    assert broker.compose_up() is False
    assert "no funcionó:\n  one\n  two\n" in capsys.readouterr().err


def test_ctrl_c_while_docker_starts_the_broker_stops_it_again(docker, tmp_path, monkeypatch):
    docker(f'echo "$*" >> {tmp_path / "calls"}')
    monkeypatch.setattr(broker, "AMQP_PORT", free_port())
    run = broker.failure_of

    def interrupted(words, timeout_s):
        if "up" in words:
            raise KeyboardInterrupt
        return run(words, timeout_s)
    monkeypatch.setattr(broker, "failure_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broker.compose_up()
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "compose down"


def test_a_node_that_does_not_answer_rabbitmqctl_is_an_error_of_the_kit(shared_node):
    with pytest.raises(NodeError, match="no contestó"):
        shared_node.ctl("status", timeout=0.01)


def test_a_taken_port_of_docker_compose_is_named_and_docker_no_longer_advised(
        failing_docker, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(command, "COMPOSE_PORTS", {port: "página de gestión"})
        assert broker.compose_up() is False
        assert f"otro programa usa el puerto {port} (página de" in capsys.readouterr().err
        advice = doctor.how_to_start_a_broker.__wrapped__()
    assert f"otro programa usa el puerto {port} (página de gestión)" in advice
    assert doctor.how_to_start_a_broker.__wrapped__().startswith("hay Docker: arráncalo")


@pytest.mark.parametrize("url", ["http://localhost:15672/#/",
                                 f"amqp://guest:{SECRET}@127.0.0.1:15672/%2F"])
def test_the_port_of_the_management_page_is_recognized(offline_kit, url):
    shown = run_doctor(offline_kit.using(url=url), 1)
    assert "✘ RABBITMQ_URL no vale: escribe" in shown and "@servidor:5672/" in shown
    assert "el puerto 15672 es el de la página de gestión" in shown


def test_docker_without_compose_is_reported(offline_kit, docker_without_compose):
    [line] = [line for line in run_doctor(offline_kit, 1).splitlines() if line.startswith("✘")]
    assert NO_COMPOSE in line and "kit.py broker up" in line


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


# ---------------------------------------------------------------- kit.py broker up


@pytest.fixture
def own_state(tmp_path, monkeypatch):
    """Let `kit.py broker up` keep its node here, and regard no other broker as its own."""
    for module in (service, node):
        monkeypatch.setattr(module, "KEPT_NODE", tmp_path / "broker")
    monkeypatch.setattr(service, "COMPOSE_MARK", tmp_path / "compose-up")
    monkeypatch.setattr(broker, "AMQP_PORT", free_port())


def test_every_broker_of_the_kit_has_the_user_of_env_example_which_is_the_default():
    from dotenv import dotenv_values

    example = dotenv_values(ROOT / ".env.example")
    user, password = example["RABBITMQ_USER"], example["RABBITMQ_PASSWORD"]
    for url in (example["RABBITMQ_URL"], config.DEFAULTS["RABBITMQ_URL"]):
        assert url.startswith(f"amqp://{user}:{password}@")
    for name in ("docker-compose.yml", "docker-compose.cluster.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert f"${{RABBITMQ_USER:-{user}}}" in text
        assert f"${{RABBITMQ_PASSWORD:-{password}}}" in text


def test_broker_up_without_compose_starts_a_node_that_the_scripts_find(
        server, own_state, docker_without_compose, tmp_path, monkeypatch, capsys):
    login = "espa%C3%B1ol:contrase%C3%B1a%23%20%22"
    # Its management port is 10,000 higher. Other tests choose neither.
    port = next(port for port in random.sample(range(6_000, 9_000), 100)
                if node._is_free(port) and node._is_free(port + 10_000))
    kit = Kit(f"amqp://{login}@127.0.0.1:{port}/%2F", tmp_path / "state")
    monkeypatch.setenv("RABBITMQ_URL", kit.url)
    try:
        assert service.up(yes=False) == 0
        shown = capsys.readouterr()
        assert NO_COMPOSE in shown.err
        assert "pon en .env" not in shown.out and "contrase%" not in shown.out
        kit.run_ok("events_publisher_levels.py", "--level", "3", "--nombre", "Ana",
                   "--email", "ana@eco.com")
        monkeypatch.setenv("RABBITMQ_URL", kit.url.replace(login, f"other:{SECRET}"))
        assert service.status(yes=False) == 0
        shown = capsys.readouterr().out
        assert "pon en .env (créalo si no existe):\n  RABBITMQ_URL=amqp://espa" in shown
        assert "quita la variable RABBITMQ_URL" in shown
    finally:
        assert service.down(yes=False) == 0


# ---------------------------------------------------------------- a node that does not start


@pytest.mark.parametrize("port, use", [("port", "AMQP"), ("management", "página de gestión"),
                                       ("distribution", "entre nodos"), ("epmd", "epmd")])
def test_a_node_whose_port_is_taken_names_the_port(server, tmp_path, port, use):
    with Node(tmp_path / "node") as own:
        number = own._ports[port]
        with (socket.create_server(("127.0.0.1", number)),
              pytest.raises(PortTaken, match=rf"usa el puerto {number} \({use}")):
            own.start()
        assert own.pid is None


def test_processes_at_the_same_time_choose_different_ports():
    program = """if True:
        import sys
        from tools.node import PORTS_AT_ONCE, free_port
        print(*(free_port() for _ in range(PORTS_AT_ONCE + 50)), flush=True)
        sys.stdin.read()  # until all have chosen
    """
    with ExitStack() as running:
        processes = [running.enter_context(subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, encoding="utf-8")) for _ in range(5)]
        chosen = [port for process in processes for port in process.stdout.readline().split()]
        for process in processes:
            process.stdin.close()
    assert len(set(chosen)) == len(chosen) == 5 * (node.PORTS_AT_ONCE + 50)


def test_a_new_node_chooses_again_if_a_port_is_taken_meanwhile(server, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        choices = iter([taken])
        monkeypatch.setattr(node, "free_port", lambda wanted=None: next(choices, free_port()))
        with new_node(tmp_path / "node") as own:
            assert own.port != taken and answers_amqp("127.0.0.1", own.port)
    assert not (tmp_path / "node").exists()


def test_a_node_that_cannot_start_quotes_the_first_error_of_its_log(server, tmp_path):
    with (Node(tmp_path / "node", configuration="no.such.setting = 1\n") as own,
          pytest.raises(NodeError, match=r"arrancó: .*no\.such\.setting") as failure):
        own.start()
    assert len(str(failure.value).splitlines()) == 1
