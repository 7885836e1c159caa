"""The door of every script: arguments in Spanish, errors in one sentence, exit codes of the contract."""

import argparse
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from common import config, console

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTLY = 3
EXIT_BAD_DATA = 65
EXIT_NO_BROKER = 69
EXIT_BAD_CONFIG = 78
EXIT_INTERRUPTED = 130

PATIENCE_S = 1  # a stop that takes longer says so

NO_PACKAGES = ("A este Python le faltan los paquetes del kit. Activa el entorno en esta terminal: source"
               " .venv/bin/activate (PowerShell: .venv\\Scripts\\Activate.ps1). Si no hay .venv,"
               " python3 kit.py broker up lo crea.")

# argparse has no Spanish of its own, only a hook for gettext.
_SPANISH = {
    "usage: ": "uso: ",
    "options": "opciones",
    "positional arguments": "argumentos",
    "show this help message and exit": "muestra esta ayuda y termina",
    "the following arguments are required: %s": "falta %s",
    "one of the arguments %s is required": "falta uno de %s",
    "unrecognized arguments: %s": "no se conoce %s (un valor con espacios va entre comillas)",
    "not allowed with argument %s": "no va junto con %s",
    "expected one argument": "le falta un valor",
    "expected at most one argument": "admite un valor como mucho",
    "expected at least one argument": "le falta al menos un valor",
    "ignored explicit argument %r": "no admite el valor %r",
    "argument %(argument_name)s: %(message)s": "%(argument_name)s: %(message)s",
    "invalid choice: %(value)r (choose from %(choices)s)": "%(value)r no vale; elige entre %(choices)s",
    "invalid %(type)s value: %(value)r": "%(value)r no es un valor válido",
}
argparse._ = lambda text: _SPANISH.get(text, text)  # type: ignore[attr-defined]


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that already knows the flags of the settings."""
    spanish = argparse.ArgumentParser(description=description, usage="python %(prog)s [opciones]", allow_abbrev=False,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    spanish.error = wrong_usage  # type: ignore[method-assign]  # argparse prints its usage before it
    spanish.add_argument("--json", action="store_true",
                         help="datos en la salida estándar, un objeto JSON por línea; el resto, en la de errores")
    group = spanish.add_argument_group("ajustes (también por variable de entorno o en .env)")
    group.add_argument("--url", metavar="URL", help="RABBITMQ_URL; varias, separadas por comas, para un clúster")
    group.add_argument("--retry-delays", metavar="S,S,…", help="RETRY_DELAYS: esperas entre intentos, en segundos")
    group.add_argument("--state-dir", metavar="CARPETA", help="STATE_DIR: dónde se guarda lo hecho")
    group.add_argument("--queue-type", metavar="TIPO", help="QUEUE_TYPE: quorum o classic")
    group.add_argument("--ca-file", metavar="ARCHIVO", help="RABBITMQ_CA_FILE: quién firmó el certificado, con amqps://")
    group.add_argument("--smtp-url", metavar="URL", help="SMTP_URL: por dónde salen los correos; sin ella, solo a STATE_DIR")
    return spanish


def wrong_usage(message: str) -> NoReturn:
    console.complain(f"Error de uso: {config.masked(message)}. Mira la ayuda: python {Path(sys.argv[0]).name} --help")
    sys.exit(EXIT_USAGE)


def settings(arguments: argparse.Namespace) -> config.Settings:
    return config.load({
        "RABBITMQ_URL": arguments.url,
        "RETRY_DELAYS": arguments.retry_delays,
        "STATE_DIR": arguments.state_dir,
        "QUEUE_TYPE": arguments.queue_type,
        "RABBITMQ_CA_FILE": arguments.ca_file,
        "SMTP_URL": arguments.smtp_url,
    })


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number within bounds."""
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 19 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"escribe un número entero de {least} a {most}")
        return int(text)
    return parse


def seconds(least: float, most: float) -> Callable[[str], float]:
    """An argparse type: seconds (or another decimal number) within bounds."""
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"escribe un número de {least:g} a {most:g}")
        return value
    return parse


def paced(items: Iterable, rate: float | None, sleep: Callable[[float], None]) -> Iterator:
    """The items, at most `rate` a second; without a rate, as fast as they are taken."""
    started_at = time.monotonic()
    for index, item in enumerate(items):
        early = index / rate - (time.monotonic() - started_at) if rate else 0
        if early > 0:
            sleep(early)
        yield item


def run(main: Callable[[], int]) -> None:
    """Run a script's main and exit; whatever went wrong is one sentence, never a traceback."""
    try:
        console.set_up("--json" in sys.argv)
        code = _code(main)
        sys.stdout.flush()
    except config.KitError as error:
        console.complain(str(error))
        code = error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in ("pika", "dotenv"):
            raise
        console.complain(NO_PACKAGES)
        code = EXIT_BAD_CONFIG
    except KeyboardInterrupt:
        console.complain("Interrumpido con Ctrl-C.")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `… | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    sys.exit(code)


def _code(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as end:  # argparse, after --help
        return end.code


def stop_on_signals(runner, within_s: float | None = None) -> None:
    """Ctrl-C and SIGTERM set runner.stop_wanted, and what is under way ends in good order.

    A second one ends the process at once; the broker will deliver again what was not acked.
    within_s is for who has nothing to finish: after so long it ends, even if the broker is frozen.
    """
    def wanted(*_):
        if runner.stop_wanted:
            os._exit(EXIT_INTERRUPTED)
        runner.stop_wanted = True
        if within_s:
            _later(within_s, os._exit, EXIT_OK)
        else:
            _later(PATIENCE_S, console.say, "Terminando lo que está en curso. Otro Ctrl-C lo corta; nada se pierde.")

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last one exists on Windows only
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), wanted)


def _later(seconds: float, function: Callable, argument: object) -> None:
    timer = threading.Timer(seconds, function, [argument])
    timer.daemon = True
    timer.start()


def confirm(question: str) -> bool:
    """Ask on the terminal; without one the answer is no."""
    if not sys.stdin or not sys.stdin.isatty():
        return False
    print(f"{question} [s/N] ", end="", flush=True, file=console.out())
    return sys.stdin.readline().strip().lower() in ("s", "si", "sí", "y", "yes")
