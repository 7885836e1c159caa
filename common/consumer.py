"""What a consumer's script is made of, and its command line."""

from collections.abc import Callable
from dataclasses import dataclass

from common import cli, console
from common.config import Settings
from common.events import Event
from common.ledger import Ledger


@dataclass(frozen=True)
class Consumer:
    """A handler and what it is about.

    handle(event, state) does the work in the transaction of state.db, or with files below
    state.folder, and returns the line to print; it raises PermanentError when no further try can
    help, anything else for another try. schema: the SQL of its tables. report(state): what is on
    disk, for --report --json; draw(report): the same as lines for people; summary(state): one line
    about the whole, shown while it grows. elsewhere: the work is done at a service that may be slow, so
    the file is not locked meanwhile, and a crash before the row is written means doing it again.
    """

    name: str
    handle: Callable[[Event, Ledger], str]
    report: Callable[[Ledger], dict]
    draw: Callable[[dict], list[str]]
    schema: str = ""
    summary: Callable[[Ledger], str] | None = None
    elsewhere: bool = False


@dataclass(frozen=True)
class Options:
    """How one run behaves; None means without a limit."""

    prefetch: int = 200
    limit: int | None = None
    idle_timeout_s: float | None = None
    ephemeral: bool = False


def main(consumer: Consumer | Callable[[Settings], Consumer], description: str, argv: list[str] | None = None) -> int:
    """Run a consumer's script; the exit code. A function may make the consumer, if it depends on the settings."""
    arguments = _parser(description).parse_args(argv)
    settings = cli.settings(arguments)
    consumer = consumer if isinstance(consumer, Consumer) else consumer(settings)
    if arguments.report:
        return _report(consumer, Ledger(settings.state_dir, consumer.name, consumer.schema))
    from common.consuming import consume  # imports pika: late, so that --help answers at once

    options = Options(arguments.prefetch, arguments.limit, arguments.idle_timeout, arguments.ephemeral)
    return consume(consumer, settings, options)


def _report(consumer: Consumer, state: Ledger) -> int:
    with state.disk_problems():
        report = consumer.report(state)
    if console.json_mode:
        console.data(report)
    else:
        for line in consumer.draw(report):
            console.say(line)
    state.close()
    return cli.EXIT_OK


def _parser(description: str):
    parser = cli.parser(description)
    parser.add_argument("--prefetch", type=cli.whole(1, 10_000), default=Options.prefetch, metavar="N",
                        help=f"eventos que el broker adelanta sin esperar el ack (de fábrica, {Options.prefetch})")
    parser.add_argument("--limit", type=cli.whole(1, 10**9), metavar="N", help="termina tras N eventos")
    parser.add_argument("--idle-timeout", type=cli.seconds(0.1, 86_400), metavar="S",
                        help="termina tras S segundos sin eventos")
    parser.add_argument("--ephemeral", action="store_true",
                        help="cola efímera: lo publicado antes de arrancar, o mientras no está, se pierde")
    parser.add_argument("--report", action="store_true", help="muestra lo hecho hasta ahora y termina")
    return parser
