"""The rules of the challenges: which the program broke, with which event, and why that may be."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from common import exchange
from tools.grade.challenges import COUNT, Challenge
from tools.grade.stage import POINTS, QUEUE, Entry, Stage

MOST_CALLS = 3  # of the service, a second, for one event
MOST_DELIVERIES = 10  # a second, of one event
MOST_SHOWN = 300  # entries of a history, with --json
MOST_HELD_S, SLACK_S = 1.0, 0.5  # slack: of a busy machine

RULES = {
    "ended": "el programa no termina por su cuenta",
    "queue": f"consume de {QUEUE} y deja las colas como estaban",
    "lost": "ningún evento se pierde",
    "stuck": "nada queda en las colas, ni listo ni sin ack",
    "doubled": "ningún efecto ocurre dos veces",
    "service": "el efecto llega después del 200 del servicio",
    "hot": "ningún evento da vueltas sin pausa",
    "neighbours": "un evento que falla no retrasa más de 1 s a los demás",
    "poison": "cada mensaje venenoso acaba en la DLQ, byte por byte",
    "answers": f"publica {COUNT} eventos, dice qué fue de cada uno y termina",
    "confirmed": "lo que llamó confirmado está en la cola",
    "unroutable": "nota lo que no llegó a ninguna cola",
    "ids": "un evento enviado otra vez conserva su id",
}
HINTS = {
    "ended": "Un programa que termina no consume. ¿Qué no esperaba que pasara?",
    "ended: broker": "El broker se fue y va a volver. ¿Qué hace tu programa mientras tanto?",
    "ended: poison": "El último mensaje no era como los demás. ¿Quién debe caer por él?",
    "queue": f"Los eventos se publican también cuando tu programa no está: para eso está {QUEUE},"
             " que es durable y no es solo suya.",
    "lost": "El broker olvida un evento en cuanto recibe su ack. ¿Qué debería estar ya en el disco"
            " cuando sale el ack?",
    "lost: no ack": "Nadie envió un ack de este evento y el broker lo olvidó igual. ¿Cuándo lo da"
                    " por entregado?",
    "lost: alive": "El proceso vivía y envió el ack de este evento sin haber hecho su trabajo. ¿Por"
                   " qué lo dio por hecho?",
    "lost: user": "Dos eventos distintos pueden ser del mismo usuario. ¿En qué se conoce un"
                  " duplicado?",
    "lost: dead": f"Un evento sano acabó en {exchange.DEAD_LETTER_QUEUE}. ¿Su fallo era para"
                  " siempre?",
    "lost: again": "Este evento llegó otra vez y el programa creyó que ya estaba hecho. ¿Cuándo se"
                   " apunta que un evento está hecho?",
    "stuck": "El broker espera un ack, o una cola a quien la lea. ¿Qué camino del programa acaba"
             " sin decirle nada al broker?",
    "doubled": "El mismo evento puede llegar más de una vez. ¿Cómo sabría el programa, también"
               " después de morir, que su efecto ya está hecho?",
    "doubled: remembers": "El programa apunta lo que ha hecho, y un evento se hizo otra vez. ¿Qué"
                          " pasa si muere entre una escritura y la siguiente?",
    "service": "El servicio no había dicho que sí. ¿Qué hace el programa cuando contesta que no?",
    "hot": "El que falla vuelve enseguida, y vuelve a fallar. ¿Dónde podría esperar un evento sin"
           " ocupar ni al programa ni al servicio?",
    "neighbours": "Mientras uno falla, los demás esperan detrás. ¿Quién está esperando, el evento o"
                  " el programa?",
    "poison": "Un mensaje que nunca se podrá procesar no se tira ni se cambia: alguien tendrá que"
              " verlo tal como llegó. ¿Dónde lo buscará?",
    "answers": "De cada evento se sabe algo al final: una respuesta del broker puede valer para"
               " varios, o no llegar nunca.",
    "answers: died": "Murió de un error suyo, con eventos por publicar. ¿Qué no esperaba que"
                     " pasara?",
    "answers: unasked": "El broker contesta a quien se lo pide. ¿Cuándo es verdad que de un evento"
                        " no se sabe nada?",
    "confirmed": "Enviar no es llegar. ¿Quién dice que un evento está a salvo, y cuándo lo dice?",
    "unroutable": "Un exchange sin colas acepta el evento y no lo guarda nadie. ¿A quién se lo"
                  " devolvería el broker, si se lo pidieran?",
    "ids": "Quien consume conoce un duplicado por su id. ¿Cuántas veces nace un evento?",
}


@dataclass
class Broken:
    """A rule that does not hold. events: ids, the first one first; hint: a key of HINTS; end: what
    closes the history of the first."""

    rule: str
    text: str
    events: list[str] = field(default_factory=list)
    hint: str = ""
    end: str = ""


def judge(stage: Stage, challenge: Challenge) -> dict[str, Broken | bool | None]:
    """rule -> True, how it is broken, or None if it cannot be judged: the program had ended."""
    publishes = "answers" in challenge.rules
    found = list(_publisher(stage) if publishes else _consumer(stage))
    broken = {each.rule: each for each in reversed(found) if each.rule in challenge.rules}
    unclear = stage.late or (stage.ended and (not publishes or stage.program.exit_code))
    return {rule: broken.get(rule) or (None if unclear else True) for rule in challenge.rules}


def history(stage: Stage, broken: Broken) -> list[dict]:
    """What happened to its first event, and to all between the first entry and the one after the
    last; what happened to all, if it names no event."""
    event = broken.events[0] if broken.events else None
    entries = sorted(stage.journal, key=lambda entry: entry.at)
    own = [entry for entry in entries if entry.event == event]
    first, last = (own[0].at, own[-1].at) if own else (0, 0)
    later = [entry.at for entry in entries if entry.event is None and entry.at > last]
    shown = [entry for entry in entries if entry.event == event or (
        entry.event is None and first <= entry.at <= min(later, default=last))]
    if broken.end:
        shown.append(Entry(stage.now, event, "end", broken.end))
    return [{"at": round(entry.at, 3), "kind": entry.kind, "what": entry.text}
            for entry in shown[:MOST_SHOWN]]


def _consumer(stage: Stage) -> Iterator[Broken]:
    """Ends the program: what it holds without an ack returns to its queue, and is counted."""
    code = stage.program.exit_code
    stage.program.end()
    stage.wire.cut()
    stage.wait_until_gone()
    if stage.ended:
        yield Broken("ended", f"el proceso {stage.program.number} terminó con código {code}",
                     hint=_why_ended(stage))
    if not stage.topology_is_intact():
        yield Broken("queue", "una cambió o falta")
    elif QUEUE not in stage.sources:
        yield Broken("queue", f"de {QUEUE} no tomó nada")
    left = {queue: [stage.id_of(body) or "?" for body in stage.drain(queue)]
            for queue in stage.working_queues()}
    dead = stage.drain(exchange.DEAD_LETTER_QUEUE)
    points = stage.final_points()
    yield from _doubled(stage, points)
    if not (stage.ended or stage.late):
        yield from _lost(stage, points, {event for ids in left.values() for event in ids},
                         {stage.id_of(body) for body in dead})
        yield from _stuck(left)
        yield from _poison(stage, dead)
    yield from _service(stage)
    yield from _hot(stage)
    yield from _neighbours(stage)


def _why_ended(stage: Stage) -> str:
    last = [entry for entry in stage.journal if entry.kind in ("delivered", "broker")][-1:]
    if last and last[0].event in {event.id for event in stage.poison}:
        return "ended: poison"
    return "ended: broker" if last and last[0].kind == "broker" else "ended"


def _doubled(stage: Stage, points: dict[str, int]) -> Iterator[Broken]:
    users = {user for user, right in stage.expected().items() if points.get(user, 0) > right}
    if users:
        found = _clear_first(stage, [event.id for event in stage.events if event.user in users])
        sent_again = {entry.event for entry in stage.journal
                      if entry.kind == "published" and "otra vez" in entry.text}
        remembers = sent_again and not sent_again & set(found)
        yield Broken("doubled", _count(users, "usuario con puntos de más",
                                       "usuarios con puntos de más"), found,
                     "doubled: remembers" if remembers else "")


def _clear_first(stage: Stage, ids: list[str]) -> list[str]:
    """First those whose history is easy to read: their user has no other event."""
    owner = {event.id: event.user for event in stage.events}
    shared = Counter(owner.values())
    return sorted(dict.fromkeys(ids), key=lambda event: shared[owner[event]] > 1)


def _lost(stage: Stage, points: dict[str, int], left: set[str], dead: set[str | None]
          ) -> Iterator[Broken]:
    lost: list[str] = []
    for user, right in stage.expected().items():
        ids = list(dict.fromkeys(event.id for event in stage.events if event.user == user))
        elsewhere = [event for event in ids if event not in left]
        missing = -((points.get(user, 0) - right) // POINTS) - (len(ids) - len(elsewhere))
        lost += elsewhere[-missing:] if missing > 0 else []
    if lost:
        lost = _clear_first(stage, lost)
        [user] = {event.user for event in stage.events if event.id == lost[0]}
        end = f"al final: la cuenta tiene {points.get(user, 0)} puntos de {stage.expected()[user]}"
        yield Broken("lost", _count(lost, "perdido", "perdidos"), lost,
                     _why_lost(stage, lost[0], points, dead), end)


def _why_lost(stage: Stage, event: str, points: dict[str, int], dead: set[str | None]) -> str:
    own = [entry for entry in stage.journal if entry.event == event]
    kinds = [entry.kind for entry in own]
    if event in dead:
        return "lost: dead"
    if any(points.get(each.user) for each in stage.events if each.id == event):
        return "lost: user"
    if "ack" not in kinds:
        return "lost: no ack"
    acked_at = own[kinds.index("ack")].at
    again = kinds.count("delivered") > 1
    near_s = 0.05 if again else 1  # a second process may skip it, and be killed soon after
    if any(entry.kind in ("killed", "broker") and abs(entry.at - acked_at) < near_s
           for entry in stage.journal):
        return "lost"
    return "lost: again" if again else "lost: alive"


def _stuck(left: dict[str, list[str]]) -> Iterator[Broken]:
    where = [f"{len(ids)} en {queue}" for queue, ids in left.items() if ids]
    if where:
        yield Broken("stuck", ", ".join(where), [event for ids in left.values() for event in ids])


def _poison(stage: Stage, dead: list[bytes]) -> Iterator[Broken]:
    missing = [event.id for event in stage.poison if event.body not in dead]
    if missing:
        changed = sum(stage.id_of(body) is None for body in dead)
        yield Broken("poison", f"faltan {len(missing)} de {len(stage.poison)}"
                     + f"; cambiados: {changed}" * bool(changed), missing)


def _service(stage: Stage) -> Iterator[Broken]:
    hasty = [event.id for event in stage.events if event.user in stage.hasty]
    if hasty:
        yield Broken("service", _count(hasty, "efecto sin su 200", "efectos sin su 200"), hasty)


def _hot(stage: Stage) -> Iterator[Broken]:
    for kind, most, words in (("call", MOST_CALLS, "llamadas"),
                              ("delivered", MOST_DELIVERIES, "entregas")):
        times: dict[str, list[float]] = {}
        for entry in stage.journal:
            if entry.kind == kind and entry.event:
                times.setdefault(entry.event, []).append(entry.at)
        hot = {event: busiest for event, moments in times.items()
               if (busiest := _in_a_second(moments)) > most}
        if hot:
            poison = next(iter(hot)) in {event.id for event in stage.poison}
            yield Broken("hot", f"{max(hot.values())} {words} en un segundo", list(hot),
                         "poison" if poison else "")


def _in_a_second(times: list[float]) -> int:
    """The most of them within one second."""
    return max(sum(start <= each < start + 1 for each in times) for start in times)


def _neighbours(stage: Stage) -> Iterator[Broken]:
    held: dict[str, float] = {}
    for event in stage.neighbours:
        times = {entry.kind: entry.at for entry in reversed(stage.journal)
                 if entry.event == event.id}  # the first of each kind
        if "call" in times and "published" in times:
            held[event.id] = times["call"] - times["published"]
    late = sorted((event for event, seconds in held.items() if seconds > MOST_HELD_S + SLACK_S),
                  key=lambda event: -held[event])
    if late and held[late[0]] - stage.stall <= MOST_HELD_S + SLACK_S:
        stage.late = True  # the machine or the broker stood still, not the program
    elif late:
        at = {entry.kind: entry.at for entry in reversed(stage.journal) if entry.event == late[0]}
        failed = sum(entry.kind == "call" and "503" in entry.text
                     and at["published"] < entry.at < at["call"] for entry in stage.journal)
        yield Broken("neighbours", f"{held[late[0]]:.1f} s el que más; entre tanto, el servicio"
                     f" contestó 503 a otros {failed} veces", late)


def _publisher(stage: Stage) -> Iterator[Broken]:
    stage.program.end()
    stage.program.hear_out()
    stage.wire.cut()
    claims = stage.program.claims
    in_queue = {stage.id_of(body) or "?" for body in stage.drain(QUEUE)}
    no_queue = {entry.event for entry in stage.journal if entry.kind == "unroutable"} - in_queue
    answered = [event for event, outcome in claims.items()
                if outcome == "unconfirmed" and _was_answered(stage, event)]
    if not stage.late and (not stage.ended or len(claims) != COUNT):
        yield Broken("answers", f"respuestas: {len(claims)}"
                     + "; no terminó" * (not stage.ended),
                     hint="answers: died" if stage.ended and stage.program.exit_code else "")
    elif queued := [event for event in answered if event not in no_queue]:
        yield Broken("answers", f"de {len(queued)} dice que no se sabe, y nada se cortó"
                     " entre tanto", queued, "answers: unasked")
    gone = [event for event, outcome in claims.items()
            if outcome == "confirmed" and event not in in_queue]
    unseen = [event for event in gone + answered if event in no_queue]
    if unseen:
        yield Broken("unroutable", f"{len(unseen)} sin cola, y no lo dijo", unseen)
    lost = [event for event in gone if event not in no_queue]
    if lost:
        yield Broken("confirmed", _count(lost, "confirmado y perdido", "confirmados y perdidos"),
                     lost)
    extra = len(in_queue | set(claims)) - COUNT
    if extra > 0:
        yield Broken("ids", f"{extra} ids de más", [*(in_queue - set(claims)), *claims])


def _was_answered(stage: Stage, event: str) -> bool:
    """Whether the broker had it, and nothing was cut before the program said what it knows."""
    own = [entry for entry in stage.journal if entry.event == event]
    if not any(entry.kind in ("copied", "unroutable") for entry in own):
        return False
    first, last = min(entry.at for entry in own), max(entry.at for entry in own)
    return not any(entry.kind in ("cut", "binding") and first < entry.at < last
                   for entry in stage.journal)


def _count(what: Collection, one: str, many: str) -> str:
    return f"{len(what)} {one if len(what) == 1 else many}"
