"""The entry point of every script: arguments, signals, errors as one sentence, exit codes."""

import argparse
import os
import re
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import NoReturn

from common import config, console, patches

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTLY = 3
EXIT_BAD_DATA = 65
EXIT_NO_BROKER = 69
EXIT_BAD_CONFIG = 78
EXIT_INTERRUPTED = 130

SETTINGS = (  # flag, setting, its value and its meaning in --help
    ("--url", "RABBITMQ_URL", "URL", "; varias, separadas por comas, para un clúster"),
    ("--retry-delays", "RETRY_DELAYS", "S,S,…", ": segundos antes de cada reintento"),
    ("--state-dir", "STATE_DIR", "CARPETA", ": dónde se guarda lo procesado"),
    ("--queue-type", "QUEUE_TYPE", "TIPO", ": quorum o classic"),
    ("--ca-file", "RABBITMQ_CA_FILE", "ARCHIVO", ": quién firmó el certificado, con amqps://"),
    ("--management-url", "RABBITMQ_MANAGEMENT_URL", "URL", ": la API de gestión"),
    ("--smtp-url", "SMTP_URL", "URL", ": servidor de correo; sin ella, solo STATE_DIR"))
SLOW_STOP_S = 1  # a stop that takes longer says so
NO_PACKAGES = ("A este Python le faltan los paquetes del kit. Activa el entorno en esta terminal:"
               " source .venv/bin/activate (PowerShell: .venv\\Scripts\\Activate.ps1). Si no hay"
               f" .venv, {'py' if os.name == 'nt' else 'python3'} kit.py broker up lo crea.")
INTERRUPTED = "Interrumpido con Ctrl-C."

patches.argparse_in_spanish(argparse)


def _before_run(kind, error, traceback) -> None:
    """Ctrl-C, or no pika, in the imports: every script imports this module before pika."""
    console.set_up()  # an old Windows console would show the codes of the colour
    stopped = isinstance(error, KeyboardInterrupt)
    if not stopped and (not isinstance(error, ModuleNotFoundError)
                        or error.name not in ("pika", "dotenv")):
        return sys.__excepthook__(kind, error, traceback)
    console.print_error(INTERRUPTED if stopped else NO_PACKAGES)
    os._exit(EXIT_INTERRUPTED if stopped else EXIT_BAD_CONFIG)


sys.excepthook = _before_run


class Parser(argparse.ArgumentParser):
    """A parser with the flags of the settings; a wrong one is one sentence and exit code 2."""

    def __init__(self, description: str):
        super().__init__(description=description, usage="python %(prog)s [opciones]",
                         allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.switch("--json", "datos en la salida estándar, un JSON por línea")
        group = self.add_argument_group("ajustes (también por variable de entorno o en .env)")
        for flag, setting, shown, words in SETTINGS:
            group.add_argument(flag, dest=setting, metavar=shown, help=setting + words)

    def value(self, flag: str, kind: Callable, shown: str, words: str, default=None) -> None:
        words += f" (por defecto, {default})" if default else ""
        self.add_argument(flag, type=kind, metavar=shown, help=words, default=default)

    def switch(self, flag: str, words: str) -> None:
        self.add_argument(flag, action="store_true", help=words)

    def parse_args(self, args=None, namespace=None):
        """The flags, with the settings as .settings. A typographic dash or quote, from a word
        processor or a chat, gets a sentence of its own."""
        for word in filter(None, sys.argv[1:] if args is None else args):
            first, last = unicodedata.category(word[0]), unicodedata.category(word[-1])
            flag = "--" + re.sub(r"^\W+", "", word).partition("=")[0]
            if first == "Pd" and word[:2] != "--" and flag in self.format_help().split():
                self.error(f"{word} se escribe {flag}, con dos guiones cortos")
            if {first, last} & {"Pi", "Pf"}:
                self.error(f"{word} lleva comillas tipográficas: escríbelas rectas, como \"Juan\"")
        given = super().parse_args(args, namespace)
        given.settings = config.load(vars(given))
        return given

    def error(self, message: str) -> NoReturn:
        wrong_usage(message)


def wrong_usage(message: str) -> NoReturn:
    console.print_error(f"Error de uso: {config.masked(message)}. Mira la ayuda:"
                        f" python {Path(sys.argv[0]).name} --help")
    sys.exit(EXIT_USAGE)


def consumer_options(description: str, argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description)
    parser.value("--prefetch", whole(1, 10_000), "N", "eventos sin ack", 200)
    parser.value("--limit", whole(1, 10**9), "N", "termina tras N eventos")
    parser.value("--idle-timeout", seconds(0.1, 86_400), "S", "termina tras S segundos sin eventos")
    parser.switch("--ephemeral", "cola efímera: pierde lo publicado sin ella; sin reintentos")
    parser.switch("--steps", "muestra los pasos de un evento: recibido, trabajo, commit, ack")
    parser.switch("--report", "muestra lo procesado y termina")
    return parser.parse_args(argv)


def state_dir(options: argparse.Namespace, consumer: str) -> Path | None:
    """None: a report of a file that is not there, as a report creates nothing."""
    folder = options.settings.state_dir
    if not options.report or os.path.isfile(folder) or os.path.lexists(folder / f"{consumer}.db"):
        return folder
    _check_folder(folder)
    console.print_notice(f"Todavía no hay nada en {folder / consumer}.db: arranca este"
                         " consumidor sin --report y publica un evento.")
    return None


def _check_folder(folder: Path) -> None:
    """Its name may be mistyped: what only reads it does not create it."""
    if not os.path.exists(folder) and folder != config.ROOT / config.DEFAULTS["STATE_DIR"]:
        raise config.ConfigError(f"No hay nada que leer: la carpeta {folder} no existe, o falta"
                                 " permiso. Corrige STATE_DIR o --state-dir.")


def publisher_options(description: str, argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description)
    parser.value("--level", whole(1, 3), "{1,2,3}", "nivel de garantía")
    parser.value("--nombre", str, "NOMBRE", "el nombre del usuario nuevo")
    parser.value("--email", str, "EMAIL", "su dirección de correo")
    parser.switch("--resume", "envía, con el nivel 3 y el mismo id, lo anotado sin confirmar")
    parser.value("--count", whole(1, 10**9), "N", "eventos, uno por usuario", 1)
    parser.value("--rate", seconds(0.01, 10**6), "R", "eventos por segundo, como mucho")
    parser.value("--timeout", seconds(1, 86_400), "S",
                 "nivel 3: se rinde tras S segundos sin respuesta", 60)
    given = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("level", "nombre", "email") if vars(given)[name] is None]
    if given.resume:
        if len(missing) < 3 or given.count != 1:
            parser.error("--resume envía lo que quedó, con el nivel 3: no va junto con --level,"
                         " --nombre, --email ni --count")
        given.level = 3
        _check_folder(given.settings.state_dir)
    elif missing:
        parser.error(f"falta{'n' * (len(missing) > 1)} {', '.join(missing)}")
    return given


def dead_letter_options(description: str, argv: list[str] | None,
                        consumers: tuple[str, ...]) -> argparse.Namespace:
    """live, of what it returns: whether none of the script's actions was asked for."""
    parser = Parser(description)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--summary", action="store_true", help="cuántos por error y consumidor")
    action.add_argument("--export", metavar="ARCHIVO", help="los copia, un JSON por línea")
    action.add_argument("--replay", action="store_true", help="reenvía cada uno a su cola")
    action.add_argument("--discard", action="store_true", help="los borra; pregunta antes")
    parser.add_argument("--consumer", choices=consumers, help="solo los de este consumidor")
    parser.value("--limit", whole(1, 10**9), "N", "N mensajes, como mucho")
    parser.value("--idle-timeout", seconds(0.1, 86_400), "S", "en vivo: acaba tras S s sin nuevos")
    parser.value("--id", str, "ID", "solo este evento; vale el final del id, como en pantalla")
    parser.value("--error", str, "TEXTO", "solo si el error contiene este texto")
    parser.value("--since", moment, "TIEMPO", "solo desde: 10m, 2h, 1d o una hora RFC 3339")
    parser.value("--rate", seconds(0.01, 10**6), "R", "--replay: mensajes por segundo, como mucho")
    parser.add_argument("--from", dest="file", metavar="ARCHIVO",
                        help="--replay: solo los de este archivo de --export, con sus correcciones")
    parser.value("--max-replays", whole(1, 10**6), "N",
                 "--replay: omite los que ya se reenviaron N veces (por defecto, 3)")
    parser.switch("--force", "--replay: también esos")
    parser.switch("--full", "en vivo: cada uno entero, con su historial; también con --id")
    parser.switch("--dry-run", "dice qué haría, sin hacerlo")
    parser.switch("--yes", "--discard: sin preguntar")
    given = parser.parse_args(argv)
    changes = given.replay or given.discard
    given.live = not (given.summary or given.export is not None or changes)
    if "" in (given.id, given.error, given.file):
        parser.error("--id, --error y --from no pueden estar vacíos: elegirían todos los mensajes")
    for flags, fit, words in (
            ("rate file max_replays force", given.replay,
             "--rate, --from, --max-replays y --force van con --replay"),
            ("consumer id error since limit", not given.file, "--from elige los de su archivo:"
             " no va con --consumer, --id, --error, --since ni --limit"),
            ("yes", given.discard, "--yes va con --discard"),
            ("dry_run", changes, "--dry-run va con --replay o --discard"),
            ("idle_timeout full", given.live, "--idle-timeout y --full son de la vista en vivo")):
        if not fit and any(vars(given)[flag] for flag in flags.split()):
            parser.error(words)
    given.max_replays = given.max_replays or 3
    return given


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number within bounds."""
    return partial(_number, r"[0-9]{1,19}", int, "un número entero", least, most)


def seconds(least: float, most: float) -> Callable[[str], float]:
    """An argparse type: seconds (or another decimal number) within bounds."""
    return partial(_number, r"[0-9]*\.?[0-9]+", float, "un número", least, most)


def _number(form: str, kind: Callable, words: str, least: float, most: float, text: str):
    if not re.fullmatch(form, text) or not least <= kind(text) <= most:
        raise argparse.ArgumentTypeError(f"escribe {words} de {least} a {most}")
    return kind(text)


def moment(text: str) -> str:
    """An argparse type: how long ago (`10m`) or RFC 3339, as events.now() writes a moment."""
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
            seconds_ago = int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[ago[2]]
            at = datetime.now(timezone.utc) - timedelta(seconds=seconds_ago)
        else:
            at = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            "escribe 10m, 2h, 1d o una hora como 2026-01-31T09:00:00Z") from None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def paced(items: Iterable, rate: float | None, sleep: Callable[[float], None]) -> Iterator:
    """The items, at most `rate` a second; without a rate, as fast as they are taken."""
    due_at = time.monotonic()
    for item in items:
        if rate and (early := due_at - time.monotonic()) > 0:
            sleep(early)
        due_at = max(due_at, time.monotonic() - 0.1) + 1 / (rate or 1)  # no burst after a stall
        yield item


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit; an error of the kit's own is one sentence, no traceback."""
    try:
        console.set_up("--json" in sys.argv)
        try:
            code = main() or EXIT_OK
        finally:
            console.print_json()  # of no records: flushes stdout, also after argparse's --help
    except (BrokenPipeError, console.OutputError) as error:
        # What is still in the buffer would raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = getattr(error, "exit_code", EXIT_OK)
        if code:
            console.print_error(str(error))
    except config.KitError as error:
        (console.print_error if error.exit_code else console.print_notice)(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        console.print_error(INTERRUPTED)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def stop_on_signals(runner, within_s: float | None = None) -> None:
    """Ctrl-C and SIGTERM set runner.stop_wanted; what is under way is finished. A second one ends
    the process at once: the broker delivers again what has no ack. within_s: the process of a
    runner that has nothing to finish ends after that time, whatever it waits for."""
    def on_signal(*_):
        if runner.stop_wanted:
            os._exit(EXIT_INTERRUPTED)
        runner.stop_wanted = True
        timer = threading.Timer(within_s, os._exit, [EXIT_OK]) if within_s else threading.Timer(
            SLOW_STOP_S, console.print_notice, ["Terminando lo que está en curso."
                                                " Otro Ctrl-C lo corta; nada se pierde."])
        timer.daemon = True
        timer.start()

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # SIGBREAK exists on Windows only
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), on_signal)


def confirm(question: str) -> bool:
    """Ask on the terminal; without one the answer is no."""
    if not sys.stdin or not sys.stdin.isatty():
        return False
    console.print_line(f"{question} [s/N]", end=" ")
    return sys.stdin.readline().strip().lower() in ("s", "si", "sí", "y", "yes")
