"""Every user error prints one sentence, exits with the documented code, and leaves no files."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import pika
import pytest

from common import config
from tests.conftest import ROOT, STOP_S, Kit, wait_until
from tools.node import free_port

PUBLISHER, SIMULATOR = "events_publisher_levels.py", "simulate_fail_publisher.py"
SETUP, DEAD, EMAIL = "setup_queues.py", "dead_letter_consumer.py", "email_consumer_simple.py"
CONSUMERS = [EMAIL, "loyalty_consumer_simple.py", "analytics_consumer.py"]
SCRIPTS = [PUBLISHER, SIMULATOR, SETUP, DEAD, *CONSUMERS]
USER = ("--nombre", "Juan", "--email", "juan@eco.com")
SECRET = "s3cr3t0"


def one_shot(patience_s: int) -> dict:
    """Arguments with which each script does one thing and exits; with no broker, after so long."""
    return {PUBLISHER: ("--level", "1", *USER), SIMULATOR: ("--timeout", str(patience_s)),
            SETUP: (), DEAD: ("--summary",),
            **dict.fromkeys(CONSUMERS, ("--idle-timeout", str(patience_s)))}


@pytest.fixture
def offline_kit(tmp_path):
    """Return a Kit whose URL points to a closed port."""
    return Kit(f"amqp://guest:{SECRET}@127.0.0.1:{free_port()}/%2F", tmp_path / "state")


def assert_refused(result, code: int, *words: str) -> str:
    """Assert that the script exited with the code and one Spanish sentence. Return it."""
    both = (result.stdout or "") + result.stderr
    assert result.returncode == code, both
    [_] = [line for line in result.stderr.splitlines()
           if not line.startswith("Eventos sin confirmar")]
    # The sentence ends with a full stop, with "--help" or with "%2F".
    assert result.stderr[0].isupper() and result.stderr.rstrip("\n")[-1] in ".sp", result.stderr
    assert SECRET not in both and "Traceback" not in both and "\x1b" not in both
    for word in words:
        assert word in result.stderr
    return result.stderr


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("script, flags, words", [
    (PUBLISHER, "", "faltan --level, --nombre, --email"),
    *((PUBLISHER, f"--nombre J --email j@e.co --level {level}",
       "--level: escribe un número entero de 1 a 3")
      for level in ("0", "4", "-1", "1.5", "uno", "²", "9" * 5000)),
    (PUBLISHER, "--level 1 --nombre J --email", "--email: le falta un valor"),
    *((PUBLISHER, f"--level 1 --nombre J --email j@e.co {flags}", words) for flags, words in (
        ("--count 0", "--count: escribe un número entero"),
        ("--count 0000000000000000001" + "9" * 30, "--count:"),
        ("--rate 0", "--rate: escribe un número"), ("--rate nan", "--rate:"),
        ("--rate inf", "--rate:"), ("--timeout 0", "--timeout:"), ("--timeout 1e9", "--timeout:"),
        ("--json=1", "--json: no admite"), ("--foo", "no se conoce --foo"),
        ("hola", "no se conoce hola"), ("--coun 3", "no se conoce --coun"),
        (f"--ulr amqp://juan:{SECRET}@h", "amqp://juan@h"))),
    (PUBLISHER, "--lev 1 --nombre J --email j@e.co", "no se conoce --lev"),
    *((PUBLISHER, f"{dash}level 1 --nombre J --email j@e.co", f"{dash}level se escribe --level")
      for dash in ("-", "\u2013", "\u2014", "\u2010", "\u2013\u2013")),
    (SETUP, "\u2013show=text", "\u2013show=text se escribe --show"),
    *((PUBLISHER, f"--level 1 --email j@e.co --nombre {nombre}", "escríbelas rectas")
      for nombre in ("“Juan”", "“Juan Pérez”", "«Juan»", "\u2018Juan\u2019")),
    (PUBLISHER, "--level 1 --nombre J --email=“j@e.co”", "escríbelas rectas"),
    (EMAIL, "--prefetch 0", "de 1 a 10000"), (EMAIL, "--prefetch 10001", "de 1 a 10000"),
    (EMAIL, "--limit 0", "--limit:"), (EMAIL, "--idle-timeout 0", "--idle-timeout:"),
    (EMAIL, "--eph", "no se conoce"), (SETUP, "--yes", "--yes y --force van con --reset"),
    (SETUP, "--watch --check", "no va junto con"),
    (SIMULATOR, "--times 3", "--times va con --mode flaky"),
    (SIMULATOR, "--mode flaky --seconds 1", "--mode slow"),
    (DEAD, "--discard --yes --id=", "no pueden estar vacíos"),
    (DEAD, "--replay --error=", "no pueden estar vacíos"),
    (DEAD, "--replay --from=", "no pueden estar vacíos"),
    (DEAD, "--rate 5", "--rate, --from, --max-replays y --force van con --replay"),
    (DEAD, "--summary --yes", "--yes va con --discard"),
    (DEAD, "--export x --dry-run", "--dry-run va con --replay o --discard"),
    (DEAD, "--replay --idle-timeout 1", "en vivo"), (SETUP, "--show xml", "elige entre"),
    (SETUP, "--check --reset", "no va junto con"), (SETUP, "--forc", "no se conoce"),
    (SIMULATOR, "--mode boom", "elige entre"), (SIMULATOR, "--consumer nadie", "elige entre"),
    (SIMULATOR, "--times 0", "--times:"), (SIMULATOR, "--seconds -1", "--seconds"),
    (SIMULATOR, "--mod slow", "no se conoce"), (DEAD, "--summary --replay", "no va junto con"),
    (DEAD, "--limit 0", "--limit:"), (DEAD, "--rate 0", "--rate:"),
    (DEAD, "--consumer nadie", "elige entre"), (DEAD, "--repla", "no se conoce"),
])
def test_a_wrong_flag_exits_with_2(offline_kit, script, flags, words):
    assert_refused(offline_kit.call(script, *flags.split()), 2, "Error de uso: ", words,
                   f"python {script} --help")
    assert not offline_kit.state.exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_in_spanish(offline_kit, script):
    result = offline_kit.call_ok(script, "--help")
    assert result.stdout.startswith("uso: ") and "muestra esta ayuda y termina" in result.stdout
    for english in ("usage", "options:", "show this", "default"):
        assert english not in result.stdout


# ---------------------------------------------------------------- names and addresses


@pytest.mark.parametrize("nombre, email", [
    ("", "juan@eco.com"), (" \t ", "juan@eco.com"), ("x" * 201, "juan@eco.com"),
    ("Juan\nPérez", "juan@eco.com"), ("Juan\r\nBcc: x@y.com", "juan@eco.com"),
    ("\x1b[31mJuan", "juan@eco.com"), ("\x9b31mJuan", "juan@eco.com"),
    ("Juan\u2028", "juan@eco.com"), ("Juan\udcff", "juan@eco.com"),
    ("Juan", ""), ("Juan", "juan"), ("Juan", "juan@eco"), ("Juan", "@eco.com"),
    ("Juan", "juan@@eco.com"), ("Juan", "juan@eco.com\r\nBcc: x@y.com"), ("Juan", "juan\n@eco.com"),
    ("Juan", "juan@eco.com\n"), ("Juan", "a b@eco.com"), ("Juan", "x" * 290 + "@eco.com.uy"),
    ("Juan", "juan@" + "eco." * 72 + "com"), ("Juan", "juan@\udcff.com"),
    ("Juan", "Juan <juan@eco.com>"), ("Juan", "juan@eco..com"), ("Juan", "\x1b[31m@eco.com"),
    ("Juan", "ñandú@eco.com"),
], ids=ascii)
def test_an_invalid_name_or_address_exits_with_65_without_a_broker(offline_kit, nombre, email):
    for level in "123":
        assert_refused(offline_kit.call(PUBLISHER, "--level", level, "--nombre", nombre,
                                        "--email", email), 65,
                       "El nombre" if email == "juan@eco.com" else "La dirección de correo no vale")
    assert not offline_kit.state.exists()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name, value", [
    ("STATE_DIR", "~nadie-con-este-nombre/x"), ("RETRY_DELAYS", "\x1b[31m"),
    ("SMTP_URL", f"smtp://g:{SECRET}\n@h"), ("RABBITMQ_URL", f"amqp://g\x1b[31m:{SECRET}@h:x/")])
def test_an_invalid_setting_of_the_environment_exits_with_78(offline_kit, name, value):
    """Many more values: tests/test_config_and_events.py."""
    assert_refused(offline_kit.call(SETUP, **{name: value}), 78, name)
    assert not offline_kit.state.exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_rejects_an_invalid_setting_given_as_a_flag(offline_kit, script):
    flags = one_shot(1)[script]
    assert_refused(offline_kit.run(script, *flags, "--url", f"http://g:{SECRET}@h"), 78,
                   "RABBITMQ_URL")
    assert_refused(offline_kit.call(script, *flags, "--url", ""), 78, "RABBITMQ_URL")
    assert not offline_kit.state.exists()


@pytest.fixture
def copy(tmp_path):
    """Return run(dotenv): it runs setup_queues.py in a copy of the kit with this .env file."""
    for path in (ROOT / SETUP, ROOT / "common"):
        target = shutil.copytree if path.is_dir() else shutil.copy
        target(path, tmp_path / path.name)

    def run(dotenv: bytes):
        (tmp_path / ".env").write_bytes(dotenv)
        environment = {name: value for name, value in os.environ.items()
                       if name not in config.DEFAULTS}
        return subprocess.run([sys.executable, str(tmp_path / SETUP), "--dry-run"],
                              env=environment | {"PYTHONUTF8": "1"},
                              capture_output=True, text=True, encoding="utf-8")
    return run


@pytest.mark.parametrize("dotenv, words", [
    (b"QUEUE_TYPE=Quorum", "QUEUE_TYPE='Quorum'"),
    (b"\xef\xbb\xbfQUEUE_TYPE=Quorum", "QUEUE_TYPE='Quorum'"),
    (b"QUEUE_TYPE=' '", "QUEUE_TYPE"), (b"STATE_DIR=a\x00b", "STATE_DIR"),
    (b"RETRY_DELAYS=5;30", "RETRY_DELAYS"),
    (f"RABBITMQ_URL=amqp://g:{SECRET}/x@h".encode(), "RABBITMQ_URL"),
    ("QUEUE_TYPE=quorum".encode("utf-16"), ".env"), (b"\xff\xfe\x00", ".env"),
    (f"# bien\nnada {SECRET}".encode(), "La línea 2 de .env"),
    (f"RABBITMQ_URL='amqp://g:{SECRET}@h".encode(), "La línea 1"),
])
def test_an_invalid_dotenv_file_exits_with_78(copy, dotenv, words):
    assert_refused(copy(dotenv), 78, words)


# ---------------------------------------------------------------- no broker, or no access


def test_every_script_exits_with_69_promptly_without_a_broker(offline_kit):
    commands = [*one_shot(1).items(), (PUBLISHER, ("--level", "2", *USER)),
                (PUBLISHER, ("--level", "3", *USER, "--timeout", "1")),
                (DEAD, ("--idle-timeout", "1")), (DEAD, ("--replay",))]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda command: offline_kit.run(command[0], *command[1], timeout=25),
                               commands):
            assert_refused(result, 69, "kit.py broker")


def test_level_3_with_a_rate_gives_up_as_soon_as_at_full_speed(offline_kit):
    """An event that it has not created by then is not created."""
    result = offline_kit.run(PUBLISHER, "--level", "3", *USER, "--count", "50", "--rate", "0.5",
                             "--timeout", "1", "--json", timeout=20)
    assert result.returncode == 69
    assert result.stdout.count('"unconfirmed"') in (1, 2)
    assert "El broker no confirmó nada durante 1 s. Arráncalo con" in result.stderr


START = pika.frame.Method(0, pika.spec.Connection.Start(server_properties={})).marshal()
TUNE = pika.frame.Method(0, pika.spec.Connection.Tune(2047, 131072, 60)).marshal()


@pytest.fixture
def port_answering():
    """Return start(answer): it starts a server that answers and hangs up, and returns its port."""
    with ExitStack() as stack:
        def start(answer: bytes) -> int:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.callback(server.shutdown, socket.SHUT_RDWR)

            def answer_all():
                with suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        connection.recv(8)
                        connection.sendall(answer)
                        connection.close()
            threading.Thread(target=answer_all, daemon=True).start()
            return server.getsockname()[1]
        yield start


def test_another_program_or_a_dying_broker_on_the_port_exits_with_69(tmp_path, port_answering):
    """A broker that dies during the handshake must not look like a wrong password or vhost."""
    answers = (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"\x00" * 4096,
               START, START + TUNE)
    kits = [Kit(f"amqp://guest:{SECRET}@127.0.0.1:{port_answering(answer)}/%2F",
                tmp_path / str(number) / "state") for number, answer in enumerate(answers)]
    for kit in kits:
        kit.state.parent.mkdir()
        assert_refused(kit.call(SETUP), 69)
    with ThreadPoolExecutor(len(kits)) as pool:
        for result in pool.map(lambda kit: kit.run(PUBLISHER, "--level", "3", *USER,
                                                   "--timeout", "1"), kits):
            assert_refused(result, 69)


@pytest.mark.parametrize("script, flags", [
    *one_shot(30).items(), (PUBLISHER, ("--level", "3", *USER)), (DEAD, ())])
def test_a_wrong_password_or_vhost_exits_with_78_at_once(kit, script, flags):
    wrong_user = kit.using(url=kit.url.replace("guest:guest", f"guest:{SECRET}"))
    assert_refused(wrong_user.call(script, *flags), 78, "usuario o la contraseña")
    wrong_vhost = kit.using(url=kit.url + "-no")
    assert_refused(wrong_vhost.call(script, *flags), 78, "vhost")


def test_an_encoded_password_works_and_missing_permissions_exit_with_78(kit, shared_node):
    password, vhost = "a/b?c#d@e:f,g%h ñ", kit.url.rpartition("/")[2]
    shared_node.ctl("add_user", vhost, password)
    shared_node.ctl("set_permissions", "-p", vhost, vhost, ".*", ".*", ".*")
    user_kit = kit.using(url=kit.url.replace("guest:guest", f"{vhost}:{quote(password, safe='')}"))
    user_kit.call_ok(PUBLISHER, "--level", "3", *USER)
    assert kit.depth("email_queue") == 1
    shared_node.ctl("set_permissions", "-p", vhost, vhost, "", "", "")
    for script, flags in ((SETUP, ()), (PUBLISHER, ("--level", "3", *USER)), (EMAIL, ())):
        assert_refused(user_kit.call(script, *flags), 78, "no tiene permiso")
    plain = kit.using(url=kit.url.replace("guest:guest", f"{vhost}:{password}"))
    assert_refused(plain.call(SETUP), 78, "RABBITMQ_URL")


# ---------------------------------------------------------------- the state on disk

ON_DISK = {"email": EMAIL, "loyalty": CONSUMERS[1], "analytics": CONSUMERS[2]}


@pytest.fixture
def mount(tmp_path):
    """Return mount(options): it mounts a small file system with these options."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small disk")
    target = tmp_path / "disk"
    target.mkdir()

    def mounted(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)],
                              capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no mount here: {done.stderr.strip()}")
        return target
    yield mounted
    subprocess.run(["umount", "-l", str(target)], capture_output=True)


def fill(folder: Path) -> None:
    """Fill the disk of this folder."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def assert_kept(kit, name: str, result) -> None:
    """Assert that the consumer printed the reason and the event is still in its queue."""
    assert_refused(result, 78, "no se pierde.", str(kit.state))
    kit.wait_for_depth(f"{name}_queue", 1)
    assert kit.depth("dead_letter_queue") == 0


@pytest.mark.parametrize("name", ON_DISK)
def test_an_unusable_state_dir_exits_with_78_and_the_event_stays(kit, name):
    kit.declare()
    kit.publish_event(queue=f"{name}_queue")
    kit.state.write_text("a file")
    assert_kept(kit, name, kit.call(ON_DISK[name], "--limit", "1"))
    assert_kept(kit, name, kit.call(ON_DISK[name], "--report"))
    kit.state.unlink()
    (kit.state / f"{name}.db").mkdir(parents=True)
    assert_kept(kit, name, kit.call(ON_DISK[name], "--limit", "1"))
    (kit.state / f"{name}.db").rmdir()
    for garbage in (b"garbage" * 1000, b"SQLite format 3\x00" + b"\xff" * 8192):
        (kit.state / f"{name}.db").write_bytes(garbage)
        assert_kept(kit, name, kit.call(ON_DISK[name], "--limit", "1"))
        assert (kit.state / f"{name}.db").read_bytes() == garbage
    (kit.state / f"{name}.db").unlink()
    kit.call_ok(ON_DISK[name], "--limit", "1")


def test_a_read_only_disk_exits_with_78_and_the_event_stays(kit, mount):
    kit.declare()
    kit.publish_event(queue="loyalty_queue")
    kit = kit.using(state=mount("ro"))
    assert_kept(kit, "loyalty", kit.call(ON_DISK["loyalty"], "--limit", "1"))


@pytest.mark.parametrize("name", ["email", "loyalty"])
def test_a_full_disk_exits_with_78_and_the_event_is_done_once_there_is_space(kit, mount, name):
    kit = kit.using(state=mount("size=512k"))
    running = kit.start_consumer(name)
    kit.publish_event(queue=f"{name}_queue")
    running.wait_for("intento 1")
    fill(kit.state)
    published = 1
    while published <= 30 and running.process.poll() is None:  # SQLite may still have a free page
        kit.publish_event(queue=f"{name}_queue")
        published += 1
    assert running.end() == 78
    assert "Traceback" not in running.text() and len(running.err) == 1
    assert_refused(kit.call(ON_DISK[name], "--limit", "1"), 78, str(kit.state))
    (kit.state / "ballast").unlink()
    running = kit.start(ON_DISK[name])
    all_done = {"emails": published} if name == "email" else {"accounts": published,
                                                              "points": 100 * published}
    wait_until(lambda: kit.report(ON_DISK[name]) == all_done, "all of them", running.text)
    assert published > 1 and running.interrupt() == 0
    assert kit.depth(f"{name}_queue") == kit.depth("dead_letter_queue") == 0


# ---------------------------------------------------------------- Ctrl-C and closed pipes


@pytest.mark.parametrize("script, flags, words", [
    *((PUBLISHER, ("--level", level, *USER, "--count", "9999", "--rate", "20", "--json"),
       '"outcome"') for level in "123"),
    (SIMULATOR, ("--count", "1000000", "--json"), '"outcome"')])
def test_ctrl_c_in_a_one_shot_script_exits_with_130(kit, script, flags, words):
    running = kit.start(script, *flags)
    running.wait_for(words)
    assert running.interrupt(timeout=STOP_S) == 130
    assert "Interrumpido con Ctrl-C." in running.err
    assert "Traceback" not in running.text()


def test_ctrl_c_in_a_replay_exits_with_130_and_loses_no_dead_letter(kit):
    kit.declare()
    for _ in range(20):
        kit.publish_event(queue="dead_letter_queue", headers={"x-source-queue": "email_queue"})
    running = kit.start(DEAD, "--replay", "--rate", "1")
    running.wait_for("reenviado a su cola", count=3)
    assert running.interrupt(timeout=STOP_S) == 130
    wait_until(lambda: kit.depth("dead_letter_queue") + kit.depth("email_queue") == 20,
               "20 messages in all")
    assert 3 <= kit.depth("email_queue") < 20


@pytest.mark.parametrize("script, flags", [
    (PUBLISHER, ("--level", "1", *USER, "--count", "20000", "--json")),
    (PUBLISHER, ("--level", "3", *USER, "--count", "20000", "--json")), (EMAIL, ("--limit", "300")),
    (DEAD, ("--limit", "300")), (SETUP, ("--show", "mermaid")), (PUBLISHER, ("--help",)),
    (EMAIL, ("--help",))])
def test_a_closed_pipe_causes_no_traceback(kit, script, flags):
    if "--limit" in flags:
        kit.call_ok(SIMULATOR, "--mode", "permanent" if script == DEAD else "transient",
                    "--count", "300", "--json")
    if script == DEAD:
        kit.call_ok(EMAIL, "--limit", "300")
    process = piped(kit, script, *flags)
    if "--help" not in flags:
        process.stdout.readline()
    process.stdout.close()
    printed = [line for line in process.stderr.read().splitlines()
               if not line.startswith("Eventos sin confirmar")]
    assert (process.wait(30), printed) == (0, [])


@pytest.mark.parametrize("closed, code", [(1, 0), (2, 69)])
def test_a_script_without_stdout_or_stderr_ends_as_with_them(offline_kit, closed, code):
    command = "setup_queues.py --show mermaid" if closed == 1 else "setup_queues.py"
    script = f'exec "$0" $1 {closed}>&-'
    result = subprocess.run(["sh", "-c", script, sys.executable, command], cwd=ROOT, text=True,
                            capture_output=True, env=offline_kit.environment())
    assert (result.returncode, result.stdout, result.stderr) == (code, "", "")


def test_ctrl_c_while_a_script_imports_its_packages_exits_with_130(offline_kit, tmp_path):
    (tmp_path / "pika.py").write_text("raise KeyboardInterrupt")
    result = subprocess.run([sys.executable, str(ROOT / "setup_queues.py")], text=True,
                            capture_output=True,
                            env=offline_kit.environment(PYTHONPATH=str(tmp_path)))
    assert (result.returncode, result.stderr) == (130, "Interrumpido con Ctrl-C.\n")


def test_a_consumer_exits_when_its_pipe_is_closed(kit):
    process = piped(kit, EMAIL)
    wait_until(lambda: kit.consumers("email_queue") == 1, "the consumer")
    process.stdout.close()
    with kit.channel() as channel:
        channel.queue_delete("email_queue")
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this machine")
@pytest.mark.parametrize("script, flags", [
    *one_shot(30).items(), (PUBLISHER, ("--help",)),
    *((PUBLISHER, ("--level", level, *USER, "--count", "500", "--json")) for level in "123"),
    (EMAIL, ("--report",)), (EMAIL, ("--report", "--json")), (DEAD, ("--limit", "1")),
    (SETUP, ("--watch",))])
def test_an_output_on_a_full_disk_is_one_sentence(kit, script, flags):
    kit.declare()
    kit.state.mkdir()
    (kit.state / "email.db").touch()  # else a report says that there is nothing yet
    for queue in ("email_queue", "dead_letter_queue"):
        kit.publish_event(queue=queue)
    with FULL.open("w") as full:
        result = kit.run(script, *flags, timeout=20, PYTHONUNBUFFERED="", stdout=full)
    assert_refused(result, 78, "No se puede escribir en la salida (no queda espacio)")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this machine")
def test_a_question_on_a_full_disk_deletes_nothing(kit):
    kit.declare()
    kit.publish_event(queue="dead_letter_queue")
    with FULL.open("w") as full:
        result = kit.run_at_terminal("s\n", DEAD, "--discard", stdout=full, stderr=subprocess.PIPE)
    assert_refused(result, 78, "No se puede escribir en la salida")
    kit.wait_for_depth("dead_letter_queue", 1)


def test_a_consumer_whose_output_is_full_ends_when_its_connection_is_lost(kit, mount):
    """The I/O thread prints that; it must not be stuck, or the consumer waits for ever."""
    printed = mount("size=64k") / "salida.txt"
    with printed.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / EMAIL)], env=kit.environment(),
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: "escucha" in printed.read_text(), "the consumer")
            fill(printed.parent)
            file.write(" " * (4096 - printed.stat().st_size))  # what is left of its own page
            file.flush()
            kit.node.ctl("close_all_connections", "-p", kit.url.rpartition("/")[2], "a test")
            assert process.wait(60) == 78
            [sentence] = process.stderr.read().splitlines()
            assert sentence.startswith("No se puede escribir en la salida (no queda espacio)")
        finally:
            process.kill()
            process.communicate()


def piped(kit, script: str, *flags: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / script), *flags],
                            env=kit.environment(PYTHONUNBUFFERED=""), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_packages_print_how_to_activate_the_environment(offline_kit, script):
    arguments = []
    if script == PUBLISHER:
        arguments = ["--level", "1", "--nombre", "J", "--email", "j@eco.com"]
    program = (f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r});"
               f" sys.argv = {[script, *arguments]!r};"
               f" runpy.run_path({str(ROOT / script)!r}, run_name='__main__')")
    result = subprocess.run([sys.executable, "-I", "-S", "-c", program],
                            env=offline_kit.environment(), capture_output=True, text=True,
                            encoding="utf-8", timeout=60)
    assert result.returncode == 78, result.stderr
    assert "faltan los paquetes" in result.stderr and "Traceback" not in result.stderr
