"""Done once: the ledger, with two processes' worth of connections on one file."""

import sqlite3
import threading
import time
import uuid

import pytest

from common import state as state_file
from common.ledger import FORGET_AT_ONCE, Ledger
from common.state import StateError, key_of

SCHEMA = "CREATE TABLE IF NOT EXISTS points (event_id TEXT, points INTEGER);"


@pytest.fixture
def state(tmp_path):
    yield from opened(tmp_path)


@pytest.fixture
def neighbour(tmp_path):
    """Another process of the same consumer."""
    yield from opened(tmp_path)


def opened(folder):
    one = Ledger(folder / "state", "loyalty", SCHEMA)
    yield one
    one.close()


def give(state, event_id, points=100):
    """An effect: the points of an event."""
    def effect():
        state.db.execute("INSERT INTO points VALUES (?, ?)", (event_id, points))
        return f"{points} puntos"
    return effect


def points(state) -> int:
    return state.db.execute("SELECT total(points) FROM points").fetchone()[0]


def new_id() -> str:
    return str(uuid.uuid4())


def test_an_event_has_its_effect_once_however_often_it_comes(state):
    event = new_id()
    assert state.once(event, give(state, event)) == "100 puntos"
    assert state.once(event, give(state, event)) is None  # in the same batch
    state.commit()
    assert state.once(event, give(state, event)) is None
    assert points(state) == 100


def test_the_same_id_written_otherwise_is_the_same_event(state):
    event = new_id()
    state.once(event, give(state, event))
    assert state.once(event.upper(), give(state, event)) is None


def test_a_failed_effect_leaves_no_trace_and_its_neighbours_in_the_batch_stay(state, neighbour):
    before, broken, after = new_id(), new_id(), new_id()

    def half():
        give(state, broken)()
        raise OSError("sin red")

    state.once(before, give(state, before))
    with pytest.raises(OSError):
        state.once(broken, half)
    state.once(after, give(state, after))
    state.commit()
    assert points(neighbour) == 200
    assert neighbour.once(broken, give(neighbour, broken)) == "100 puntos"  # it may be tried again


def test_a_crash_before_the_commit_undoes_effect_and_entry_alike(state, neighbour):
    event = new_id()
    state.once(event, give(state, event))
    assert points(neighbour) == 0  # nobody sees half a batch
    state.db.close()  # what a killed process leaves: no commit
    assert neighbour.once(event, give(neighbour, event)) == "100 puntos"
    neighbour.commit()
    assert points(neighbour) == 100


def test_many_processes_with_the_same_events_give_each_its_effect_once(tmp_path, state):
    ids = [new_id() for _ in range(50)]
    done: list[str] = []

    def work():
        own = Ledger(tmp_path / "state", "loyalty", SCHEMA)
        for index, event in enumerate(ids):
            if own.once(event, give(own, event)):
                done.append(event)
            if index % 7 == 0:
                own.commit()
        own.commit()
        own.close()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(done) == sorted(ids)
    assert points(state) == 100 * len(ids)


def test_a_commit_is_on_disk_before_it_returns(state):
    assert state.db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert state.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_starts_are_counted_on_disk_at_once_and_forgotten_at_an_end(state, neighbour):
    event, other = new_id(), new_id()
    assert [state.note_start(event), neighbour.note_start(event)] == [1, 2]  # nobody called commit()
    assert state.note_start(other) == 1
    state.once(event, give(state, event))
    state.forget_starts(event)
    state.commit()
    assert neighbour.note_start(event) == 1  # it had an end: the count begins anew
    assert neighbour.note_start(other) == 2
    neighbour.forget_starts(other)
    neighbour.commit()
    assert state.note_start(other) == 1


def test_a_start_survives_the_crash_of_what_followed_it(state, neighbour):
    event = new_id()
    state.note_start(event)
    state.once(event, give(state, event))
    state.db.close()
    assert neighbour.note_start(event) == 2


def test_rows_older_than_ninety_days_leave_a_page_at_a_time_and_younger_ones_stay(state, neighbour):
    days_old = {new_id(): days for days in (0, 89, *[91] * (FORGET_AT_ONCE + 1))}
    now = int(time.time())
    for event, days in days_old.items():
        state.once(event, str)
        state.db.execute("UPDATE done SET done_at = ? WHERE event_id = ?", (now - days * 86_400, key_of(event)))
    state.commit()
    left = []
    while state.forget_old():
        left.append(neighbour.db.execute("SELECT count(*) FROM done").fetchone()[0])
    assert left == [3, 2]
    assert [neighbour.once(event, str) for event, days in days_old.items() if days < 90] == [None, None]


def test_a_mistake_in_the_handlers_own_sql_is_an_ordinary_error(state):
    with pytest.raises(sqlite3.OperationalError):
        state.once(new_id(), lambda: state.db.execute("INSERT INTO no_such_table VALUES (1)"))


def test_a_corrupt_file_is_named_with_what_to_do(tmp_path):
    (tmp_path / "loyalty.db").write_bytes(b"not a database, really" * 500)
    with pytest.raises(StateError, match="loyalty.db: .*apártalo o bórralo") as told:
        Ledger(tmp_path, "loyalty", SCHEMA)
    assert told.value.exit_code == 78


def test_a_locked_file_is_named_with_what_to_do(tmp_path, state, monkeypatch):
    monkeypatch.setattr(state_file, "LOCK_TIMEOUT_S", 0.1)
    late = Ledger(tmp_path / "state", "loyalty", SCHEMA)
    state.begin()
    with pytest.raises(StateError, match="loyalty.db: otro programa"):
        late.once(new_id(), lambda: "never")
    late.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match="STATE_DIR"):
        Ledger(tmp_path / "file" / "state", "loyalty")
