"""The seven challenges: what is done to the program in each of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from common import exchange
from tools.grade.stage import MOST_S, Event, ProgramEnded, Stage

COUNT = 120  # events that the publisher of challenge 6 is asked for
FAILS_S = 2.5  # how long the service fails for an event, from its first call on
FIRST_SIGN_S = 15  # from the start of the program
KILLS = 8  # each may or may not hit a moment of a few milliseconds
BURST = 8  # events that wait when the program starts again
QUIET_S = 6  # nothing new for so long: nothing more will come
IN_VAIN_S = 15  # no effect and no dead letter for so long, whatever else the program does
LOOPS = 4000  # entries of the journal: it goes round in circles
LOOK_S = 0.4
PATIENCE_S = 5
SETTLED_S = 1.2  # the broker's counts are up to a second old
PUBLISHER_S = 20


class NeverConsumed(Exception):
    """The program took no event: there is nothing to judge."""


@dataclass(frozen=True)
class Challenge:
    title: str
    acts: Callable[[Stage], None]
    rules: tuple[str, ...]


# ---------------------------------------------------------------- what a challenge is made of


def begin(stage: Stage) -> None:
    """Start the program and see what it does with the first events. Raises NeverConsumed."""
    def shows() -> bool:
        return bool(stage.points or stage.sources)

    stage.start()
    started_at = stage.now
    stage.publish(*(stage.new_event() for _ in range(2)))
    try:
        while not stage.wait(shows, 2, "espera a que el programa consuma"):
            if stage.now > started_at + FIRST_SIGN_S:
                raise NeverConsumed
            stage.publish(stage.new_event())  # its own queue, if it has one, did not exist yet
        stage.wait(lambda: _done(stage), 5, "espera los primeros efectos")
    except ProgramEnded:
        if not shows():
            raise NeverConsumed from None
        raise


def settle(stage: Stage) -> None:
    """Wait until everything is done, or nothing more will come of what the program does."""
    changed = dict.fromkeys(("work left", "sign of life", "progress", "looked"), stage.now)
    seen: dict[str, object] = {}

    def note(what: str, state: object) -> None:
        if seen.get(what) != state:
            seen[what], changed[what] = state, stage.now

    def works() -> bool:
        """Whether the last process has taken anything yet."""
        since = max(entry.at for entry in stage.journal if entry.kind == "started")
        return any(entry.kind == "delivered" and entry.at > since for entry in stage.journal)

    def is_over() -> bool:
        note("sign of life", len(stage.journal))
        if stage.now - changed["looked"] > LOOK_S:
            changed["looked"] = stage.now
            dead = stage.depth(exchange.DEAD_LETTER_QUEUE)
            note("progress", (sum(stage.points.values()), dead))
            if not _done(stage) or dead < len(stage.poison) or stage.backlog():
                changed["work left"] = stage.now
        return (stage.now - changed["work left"] > SETTLED_S
                or stage.now - changed["sign of life"] > (QUIET_S if works() else FIRST_SIGN_S)
                or stage.now - changed["progress"] > IN_VAIN_S
                or len(stage.journal) > LOOPS)

    stage.late = not stage.wait(is_over, 60, "espera a que no quede nada por hacer")


def kill_and_restart(stage: Stage, kind: str) -> None:
    """Kill at a delivery or right behind an ack, with events that wait for the program."""
    stage.look()
    stage.kill()
    stage.publish(*(stage.new_event() for _ in range(BURST)))
    skip = stage.rng.randrange(3, BURST) if kind == "deliver" else stage.rng.randrange(3)
    trap = stage.wire.catch(kind, skip, stage.kill)
    stage.program.end()
    stage.start()
    stage.wait(trap.caught.is_set, _patience(stage), "el proceso trabaja, hasta que lo matan")
    stage.wire.release()
    if not trap.caught.is_set():
        stage.kill()
    stage.say(f"proceso {stage.program.number} matado "
              + ("a media entrega" if kind == "deliver" else "justo tras un ack"))


def kill_at_commit(stage: Stage) -> None:
    """Kill right behind a commit: what the program meant to write in another one is missing."""
    stage.look()
    stage.kill()
    stage.publish(*(stage.new_event() for _ in range(BURST)))
    stage.program.end()
    stage.start()
    stage.kill_at_commit(stage.rng.randrange(1, BURST), _patience(stage))
    stage.say(f"proceso {stage.program.number} matado justo tras un commit")


def kill_before_ack(stage: Stage, *more: Event) -> None:
    """Let it commit, and kill it before the broker gets its ack."""
    trap = stage.wire.catch("ack", stage.rng.randrange(2))
    stage.publish(*(stage.new_event() for _ in range(4)), *more)
    caught = stage.wait(trap.caught.is_set, _patience(stage), "retiene el próximo ack")
    users = {event.user for event in stage.events if event.body in trap.bodies}
    if caught:
        stage.wait(lambda: users <= set(stage.points), 2, "el ack está retenido")
    stage.kill()
    stage.program.end()
    stage.wire.cut()
    stage.say(f"proceso {stage.program.number} matado entre su commit y su ack")
    stage.restart()


def fail_for_some(stage: Stage, seconds: float, poison: tuple[Event, ...] = ()) -> None:
    """The service fails for four events, while others are published."""
    failing = [stage.new_event() for _ in range(4)]
    for event in failing:
        stage.service.failing[event.id] = seconds
    stage.say(f"el servicio falla {seconds:g} s para 4 eventos; siguen llegando otros")
    stage.neighbours = [stage.new_event() for _ in range(30)]
    late = list(stage.neighbours)
    for event in (*failing, *poison):
        late.insert(stage.rng.randrange(4), event)
    stage.publish(*late, pace_s=0.06)


def kill_while_it_calls(stage: Stage) -> None:
    """The service does not answer; the program is killed while it waits."""
    event = stage.new_event()
    stage.service.hold(event.id)
    stage.publish(event)
    stage.wait(stage.service.holding.is_set, 5, "el servicio no contesta")
    stage.kill()
    stage.program.end()
    stage.service.let_go()
    stage.say(f"proceso {stage.program.number} matado mientras esperaba al servicio")
    stage.restart()


def restart_broker(stage: Stage, kill: bool) -> None:
    """With events on their way; afterwards, some more."""
    stage.publish(*(stage.new_event() for _ in range(10)))
    stage.say("el broker muere (SIGKILL) y vuelve" if kill else "el broker se para y vuelve")

    def work() -> None:
        stage.stop_broker(kill)
        stage.start_broker()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        stage.wait(done.done, 60, "el broker arranca")
    done.result()
    stage.wait(lambda: stage.consumers() > 0, 12, "espera a que el programa vuelva")
    stage.publish(*(stage.new_event() for _ in range(5)))


def poisonous(stage: Stage) -> tuple[Event, ...]:
    """Messages that no program can turn into an effect."""
    spare = stage.new_event()
    no_data = spare.body.partition(b',"data"')[0] + b"}"
    bodies = (b"{esto no es JSON", b"\xff\xfe\x00 \x80", b"[]", b"", no_data)
    return tuple(Event(f"veneno {number}", "", body, 0)
                 for number, body in enumerate(bodies, start=1))


def _patience(stage: Stage) -> float:
    """How long to wait for an ack: not long for a program that sends none, or no more."""
    kills = [entry.at for entry in stage.journal if entry.kind == "killed"]
    since = kills[-2] if len(kills) > 1 else 0
    return _start_s(stage) + (PATIENCE_S if any(entry.kind == "ack" and entry.at >= since
                              for entry in stage.journal) else 1)


def _start_s(stage: Stage) -> float:
    """The longest that a process took from its start to its first delivery."""
    longest, began = 0.0, None
    for entry in list(stage.journal):
        if entry.kind == "started":
            began = entry.at
        elif entry.kind == "delivered" and began is not None:
            longest, began = max(longest, entry.at - began), None
    return longest


def _done(stage: Stage) -> bool:
    return all(stage.points.get(user, 0) >= points for user, points in stage.expected().items())


# ---------------------------------------------------------------- the seven


def acks_too_early(stage: Stage) -> None:
    begin(stage)
    for kind in ("ack", "deliver", "ack", "ack", "deliver", "ack", "ack", "ack"):
        kill_and_restart(stage, kind)
    stage.restart()
    settle(stage)


def done_twice(stage: Stage) -> None:
    begin(stage)
    for _ in range(3):
        first = stage.new_event()
        kill_before_ack(stage, first, stage.new_event(first.user))
    for _ in range(KILLS):
        kill_at_commit(stage)
    stage.restart()
    copies = stage.rng.sample(stage.events, 6)
    stage.say("publica otra vez 6 eventos, con el mismo id")
    stage.publish(*copies, *copies[:2])
    settle(stage)


def a_service_fails(stage: Stage) -> None:
    begin(stage)
    fail_for_some(stage, FAILS_S)
    settle(stage)


def poison(stage: Stage) -> None:
    begin(stage)
    messages = [stage.new_event() for _ in range(20)]
    for message in poisonous(stage):
        messages.insert(stage.rng.randrange(len(messages)), message)
    stage.say("publica 20 eventos y, entre ellos, 5 mensajes venenosos")
    stage.publish(*messages, pace_s=0.05)
    settle(stage)


def broker_restarts(stage: Stage) -> None:
    begin(stage)
    for kill in (False, True):
        restart_broker(stage, kill)
    settle(stage)


def everything(stage: Stage) -> None:
    begin(stage)
    fail_for_some(stage, 2 * FAILS_S, poisonous(stage))
    kill_while_it_calls(stage)
    kill_before_ack(stage)
    kill_and_restart(stage, "ack")
    for _ in range(KILLS):
        kill_at_commit(stage)
    stage.restart()
    restart_broker(stage, kill=True)
    stage.say("publica otra vez 6 eventos, con el mismo id")
    stage.publish(*stage.rng.sample(stage.events, 6))
    settle(stage)


def publisher(stage: Stage) -> None:
    """Events with no queue, events that do not arrive, confirms that do not arrive."""
    def catch(kind: str, skip: int, words: str) -> bool:
        """Whether the traffic is held there. The program may have exited: what it sent is held."""
        trap = stage.wire.catch(kind, skip)
        if not stage.program.number:
            stage.start()
        with suppress(ProgramEnded):
            stage.wait(trap.caught.is_set, FIRST_SIGN_S if not stage.program.claims else PATIENCE_S,
                       "cuenta lo que el programa publica")
        if trap.caught.wait(LOOK_S):
            stage.wait_for_firehose()
            stage.say(words)
        return trap.caught.is_set()

    between = stage.rng.randrange
    if not catch("publish", between(10, 20), "el exchange se queda sin colas"):
        raise NeverConsumed
    stage.bind_queues(False)
    catch("publish", between(8, 14), "el exchange tiene colas otra vez")
    stage.bind_queues(True)
    for kind, skip, words in (("publish", between(3, 8), "lo enviado no llega"),
                              ("confirm", between(3), "la confirmación no llega")):
        if catch(kind, skip, f"la conexión se corta: {words}"):
            stage.note("cut", f"la conexión se corta: {words}")
            stage.wire.cut()
    stage.wire.release()
    said = -1
    with suppress(ProgramEnded):  # as it should, in the end
        while said < len(stage.program.claims) <= COUNT and stage.now < MOST_S:
            said = len(stage.program.claims)  # slow, but it goes on
            stage.wait(bool, PUBLISHER_S, "espera a que el programa termine")
        stage.late = said < len(stage.program.claims) < COUNT


# The order in which they are shown: what may be the reason of another comes first.
RULES = ("queue", "ended", "hot", "service", "neighbours", "lost", "doubled", "poison", "stuck")


def _rules(*others: str) -> tuple[str, ...]:
    """Those of every consumer, and these."""
    return tuple(rule for rule in RULES if rule in ("queue", "ended", "lost", "stuck", *others))


CHALLENGES = {
    1: Challenge("el ack llega demasiado pronto", acks_too_early, _rules()),
    2: Challenge("hace las cosas dos veces", done_twice, _rules("doubled")),
    3: Challenge("un servicio falla un rato", a_service_fails,
                 _rules("hot", "service", "neighbours", "doubled")),
    4: Challenge("un mensaje venenoso", poison, _rules("hot", "doubled", "poison")),
    5: Challenge("el broker se reinicia dos veces", broker_restarts, _rules("doubled")),
    6: Challenge("un publicador", publisher, ("answers", "confirmed", "unroutable", "ids")),
    7: Challenge("todo a la vez", everything, RULES),
}
