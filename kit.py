"""The door of the kit: one command makes what it needs and runs it.

    python3 kit.py demo --yes       both demos of the class, with the real scripts
    python3 kit.py test --yes       the tests, on private brokers; --faults: all that may go wrong, too
    python3 kit.py bench --yes      how fast it is, beside other libraries
    python3 kit.py broker up        a broker for the terminals of the class
    python3 kit.py doctor           what is missing on this machine

Standard library only, and even an old Python 3 can read this file: it has to say that it is old.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit("Este kit necesita Python 3.10 o más nuevo y este es el {}.{}. "
             "Instálalo desde https://www.python.org/downloads/ y vuelve a probar."
             .format(*sys.version_info[:2]))

import argparse
from pathlib import Path

from common import cli
from common.config import ROOT
from tools import environment


def main(argv=None):
    arguments = parse(sys.argv[1:] if argv is None else argv)
    if arguments.command != "doctor" or environment.is_made(environment.VENV, environment.REQUIREMENTS):
        environment.enter(arguments.yes)
    if arguments.command == "doctor":  # it makes nothing, so it may have to do without
        from tools import doctor
        return doctor.main()
    # From here on we run inside .venv: what follows may import pika.
    if arguments.command == "demo":
        from tools import demo
        return demo.main(arguments.yes)
    if arguments.command == "test":
        from tools import run_tests
        return run_tests.main(arguments.yes, arguments.faults, arguments.pytest)
    if arguments.command == "bench":
        from benchmarks import bench
        return bench.main(arguments.parts, arguments.rounds, arguments.quick, arguments.out, arguments.yes)
    from tools import service
    return {"up": service.up, "down": service.down, "status": service.status}[arguments.action](arguments.yes)


def parse(argv):
    """Everything behind `--` is for pytest."""
    end = argv.index("--") if "--" in argv else len(argv)
    own, rest = argv[:end], argv[end + 1:]
    parser = argparse.ArgumentParser(
        prog="kit.py", description="Prepara lo necesario (.venv, un broker) y lo pone en marcha.",
        allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="ORDEN")
    for name, words in (("demo", "las dos demos de la clase, comprobadas paso a paso"),
                        ("test", "las pruebas, en brokers privados; detrás de -- van opciones de pytest"),
                        ("bench", "el kit al lado de otras bibliotecas, medido en un broker privado"),
                        ("broker", "un broker para las terminales de la clase"),
                        ("doctor", "qué falta en este equipo y qué hacer; no cambia nada")):
        command = commands.add_parser(name, help=words, description=words.capitalize() + ".",
                                      allow_abbrev=False)
        command.set_defaults(yes=False)
        if name != "doctor":
            command.add_argument("--yes", action="store_true",
                                 help="instala lo que falte sin preguntar")
        if name == "test":
            command.add_argument("--faults", action="store_true",
                                 help="también las averías de tests/faults: un cuarto de hora más")
        if name == "bench":
            command.add_argument("parts", nargs="*", metavar="PARTE", help="publish, apart, consume, flow, scale, memory,"
                                 " ledger, retries o start_up; de fábrica todas, una media hora")
            command.add_argument("--rounds", type=cli.whole(1, 100), default=5, metavar="N",
                                 help="cuántas veces cada medida; cuenta la mediana (de fábrica, 5)")
            command.add_argument("--quick", action="store_true", help="pocos eventos, para ver que funciona")
            command.add_argument("--out", type=Path, default=ROOT / ".state" / "bench", metavar="CARPETA",
                                 help="dónde se guardan las cifras y el gráfico (de fábrica, .state/bench)")
        if name == "broker":
            command.add_argument("action", choices=("up", "down", "status"), metavar="up|down|status",
                                 help="arrancarlo, pararlo o ver cómo está")
    arguments = parser.parse_args(own)
    if rest and arguments.command != "test":
        parser.error("solo test admite opciones detrás de --")
    arguments.pytest = rest
    return arguments


if __name__ == "__main__":
    cli.run(main)
