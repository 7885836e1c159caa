"""The kit's entry point: each command prepares what it needs and runs.

    python3 kit.py demo --yes       the class in five acts, played by the real scripts
    python3 kit.py test --yes       the tests, on private brokers; --faults adds the fault tests
    python3 kit.py bench --yes      the kit's speed, compared with other libraries
    python3 kit.py broker up        a broker for the terminals of the class
    python3 kit.py grade FILE.py    judge a student's program while things break (retos/)
    python3 kit.py doctor           what this machine lacks

Standard library only. An old Python 3 must be able to parse this file, to print that it is too old.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit("Este kit necesita Python 3.10 o más nuevo y este es el {}.{}. "
             "Instálalo desde https://www.python.org/downloads/ y vuelve a probar."
             .format(*sys.version_info[:2]))

import argparse
from pathlib import Path
from typing import NoReturn

from common import cli
from common.config import ROOT
from tools import environment

BENCH_PARTS = ("publish, apart, consume, outbox, work, flow, letters, latency, scale, memory,"
               " ledger, retries o start_up")


def main(argv=None):
    arguments = parse(sys.argv[1:] if argv is None else argv)
    if arguments.command == "doctor":
        return run_doctor()
    environment.enter(arguments.yes)
    # From here on this process runs inside .venv: the modules imported below may import pika.
    if arguments.command == "demo":
        from tools import demo
        return demo.main(arguments.yes, arguments.full)
    if arguments.command == "test":
        from tools import run_tests
        return run_tests.main(arguments.yes, arguments.faults, arguments.pytest)
    if arguments.command == "bench":
        from benchmarks import bench
        return bench.main(arguments.parts, arguments.rounds, arguments.quick, arguments.out,
                          arguments.yes)
    if arguments.command == "grade":
        from tools import grade
        return grade.main(arguments.file, arguments.program, arguments.challenge, arguments.seed,
                          arguments.yes)
    from tools import service
    actions = {"up": service.up, "down": service.down, "status": service.status}
    return actions[arguments.action](arguments.yes)


def run_doctor():
    """Run inside .venv if it exists; doctor changes nothing, so it does not create it."""
    if environment.is_current(environment.VENV, environment.REQUIREMENTS):
        environment.enter(yes=False)
    from tools import doctor
    return doctor.main()


def parse(argv):
    """Parse the kit's own arguments; everything after `--` is for pytest."""
    end = argv.index("--") if "--" in argv else len(argv)
    own, rest = argv[:end], argv[end + 1:]
    arguments = parser().parse_args(own)
    if rest and arguments.command != "test":
        parser().error("solo test admite opciones detrás de --")
    arguments.pytest = rest
    return arguments


class Parser(argparse.ArgumentParser):
    """Of kit.py and of each of its commands: a wrong one is one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        cli.wrong_usage(message)


def parser():
    kit = Parser(
        prog="kit.py", description="Prepara lo necesario (.venv, un broker) y lo pone en marcha.",
        allow_abbrev=False)
    commands = kit.add_subparsers(dest="command", required=True, metavar="ORDEN")

    def add(name, text, yes="instala lo que falte sin preguntar"):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".",
                                      allow_abbrev=False)
        command.set_defaults(yes=False)
        if yes:
            command.add_argument("--yes", action="store_true", help=yes)
        return command

    demo = add("demo", "la clase en cinco actos, comprobados paso a paso",
               "instala lo que falte sin preguntar; no espera a Enter entre los actos")
    demo.add_argument("--full", action="store_true",
                      help="todas las líneas de los scripts y todas las comprobaciones")
    test = add("test", "las pruebas, en brokers privados; detrás de -- van opciones de pytest")
    test.add_argument("--faults", action="store_true",
                      help="también los fallos de tests/faults: un cuarto de hora más")
    bench = add("bench", "el kit al lado de otras bibliotecas, medido en un broker privado")
    bench.add_argument("parts", nargs="*", metavar="PARTE",
                       help=BENCH_PARTS + "; por defecto todas (con --rounds 3, veinte minutos)")
    bench.add_argument("--rounds", type=cli.whole(1, 100), default=5, metavar="N",
                       help="cuántas veces cada medida; cuenta la mediana (por defecto, 5)")
    bench.add_argument("--quick", action="store_true",
                       help="pocos eventos, para ver que funciona")
    bench.add_argument("--out", type=Path, default=ROOT / ".state" / "bench", metavar="CARPETA",
                       help="dónde se guardan las cifras y el gráfico (por defecto, .state/bench)")
    broker = add("broker", "un broker para las terminales de la clase")
    broker.add_argument("action", choices=("up", "down", "status"), metavar="up|down|status",
                        help="arrancarlo, pararlo o ver cómo está")
    grade = add("grade", "califica un programa de los retos (carpeta retos) mientras todo falla")
    grade.add_argument("file", nargs="?", type=Path, metavar="ARCHIVO.py", help="el programa")
    grade.add_argument("--command", dest="program", metavar="ORDEN",
                       help='en vez de un archivo: un programa en cualquier lenguaje, como'
                            ' "node consumer.js"')
    grade.add_argument("--challenge", type=cli.whole(1, 7), action="append", metavar="N",
                       help="qué reto, de 1 a 7; se puede repetir (por defecto, el del nombre del"
                            " archivo; si no lo dice, 1, 2, 4 y 5)")
    grade.add_argument("--seed", type=cli.whole(0, 10**9), metavar="N",
                       help="repite una calificación con sus mismos eventos y fallos")
    grade.add_argument("--json", action="store_true", help="el veredicto, como un JSON por línea")
    add("doctor", "qué falta en este equipo y qué hacer; no cambia nada", yes=None)
    return kit


if __name__ == "__main__":
    cli.run(main)
