"""The ledger: each effect is applied once, also with two connections to one file."""

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
    yield from open_ledger(tmp_path)


@pytest.fixture
def other_ledger(tmp_path):
    """Open the ledger a second time, as another process does."""
    yield from open_ledger(tmp_path)


def open_ledger(folder):
    one = Ledger(folder / "state", "loyalty", SCHEMA)
    yield one
    one.close()


def add_points(state, event_id, points=100):
    """Return an effect that adds points for an event."""
    def effect():
        state.db.execute("INSERT INTO points VALUES (?, ?)", (event_id, points))
        return f"{points} puntos"
    return effect


def points(state) -> int:
    return state.db.execute("SELECT total(points) FROM points").fetchone()[0]


def new_id() -> str:
    return str(uuid.uuid4())


def test_an_event_has_one_effect_however_often_it_is_delivered(state):
    event = new_id()
    assert state.once(event, add_points(state, event)) == "100 puntos"
    assert state.once(event, add_points(state, event)) is None  # in the same batch
    state.commit()
    assert state.once(event, add_points(state, event)) is None
    assert points(state) == 100


def test_the_same_id_in_upper_case_is_the_same_event(state):
    event = new_id()
    state.once(event, add_points(state, event))
    assert state.once(event.upper(), add_points(state, event)) is None


def test_a_failed_effect_is_undone_and_the_rest_of_the_batch_stays(state, other_ledger):
    before, broken, after = new_id(), new_id(), new_id()

    def half():
        add_points(state, broken)()
        raise OSError("sin red")

    state.once(before, add_points(state, before))
    with pytest.raises(OSError, match="sin red"):
        state.once(broken, half)
    state.once(after, add_points(state, after))
    state.commit()
    assert points(other_ledger) == 200
    # A later attempt may succeed.
    assert other_ledger.once(broken, add_points(other_ledger, broken)) == "100 puntos"


def test_a_crash_before_the_commit_undoes_effect_and_ledger_row(state, other_ledger):
    event = new_id()
    state.once(event, add_points(state, event))
    assert points(other_ledger) == 0  # no other process sees half a batch
    state.db.close()  # like a killed process: without a commit
    assert other_ledger.once(event, add_points(other_ledger, event)) == "100 puntos"
    other_ledger.commit()
    assert points(other_ledger) == 100


def test_concurrent_processes_apply_each_effect_once(tmp_path, state):
    ids = [new_id() for _ in range(50)]
    done: list[str] = []

    def work():
        own = Ledger(tmp_path / "state", "loyalty", SCHEMA)
        for index, event in enumerate(ids):
            if own.once(event, add_points(own, event)):
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


def test_starts_are_counted_on_disk_at_once_and_deleted_at_the_end(state, other_ledger):
    event, other = new_id(), new_id()
    # Starts are on disk without a commit().
    assert [state.note_start(event), other_ledger.note_start(event)] == [1, 2]
    assert state.note_start(other) == 1
    state.once(event, add_points(state, event))
    state.forget_starts(event)
    state.commit()
    assert other_ledger.note_start(event) == 1  # the result has reset the count
    assert other_ledger.note_start(other) == 2
    other_ledger.forget_starts(other)
    other_ledger.commit()
    assert state.note_start(other) == 1


def test_a_recorded_start_survives_a_crash(state, other_ledger):
    event = new_id()
    state.note_start(event)
    state.once(event, add_points(state, event))
    state.db.close()
    assert other_ledger.note_start(event) == 2


def test_rows_older_than_ninety_days_are_deleted_in_batches(state, other_ledger):
    days_old = {new_id(): days for days in (0, 89, *[91] * (FORGET_AT_ONCE + 1))}
    now = int(time.time())
    for event, days in days_old.items():
        state.once(event, str)
        state.db.execute("UPDATE done SET done_at = ? WHERE event_id = ?",
                         (now - days * 86_400, key_of(event)))
    state.commit()
    left = []
    while state.forget_old():
        left.append(other_ledger.db.execute("SELECT count(*) FROM done").fetchone()[0])
    assert left == [3, 2]
    assert [other_ledger.once(event, str) for event, days in days_old.items()
            if days < 90] == [None, None]


def test_an_sql_error_in_a_handler_is_an_ordinary_error(state):
    with pytest.raises(sqlite3.OperationalError):
        state.once(new_id(), lambda: state.db.execute("INSERT INTO no_such_table VALUES (1)"))


def test_a_corrupt_file_is_reported_with_a_remedy(tmp_path):
    (tmp_path / "loyalty.db").write_bytes(b"not a database, really" * 500)
    with pytest.raises(StateError, match="loyalty.db: .*apártalo o bórralo") as raised:
        Ledger(tmp_path, "loyalty", SCHEMA)
    assert raised.value.exit_code == 78


def test_a_locked_file_is_reported(tmp_path, state, monkeypatch):
    monkeypatch.setattr(state_file, "LOCK_TIMEOUT_S", 0.1)
    late = Ledger(tmp_path / "state", "loyalty", SCHEMA)
    state.begin()
    with pytest.raises(StateError, match="loyalty.db: otro programa"):
        late.once(new_id(), lambda: "never")
    late.close()


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match="STATE_DIR"):
        Ledger(tmp_path / "file" / "state", "loyalty")
