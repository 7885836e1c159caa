"""The ledger: each effect is applied once, also with two connections to one file."""

import sqlite3
import threading
import time
import uuid

import pytest

from common import crash_loop, events
from common.crash_loop import MAX_STARTS, CrashLoop
from common.database import StateError, Stopped
from common.ledger import Ledger
from common.retry import PermanentError

TABLES = crash_loop.TABLE + "CREATE TABLE IF NOT EXISTS points (event_id TEXT, points INTEGER);"


@pytest.fixture
def ledger(tmp_path):
    yield from open_ledger(tmp_path)


@pytest.fixture
def other_ledger(tmp_path):
    """Open the ledger a second time, as another process does."""
    yield from open_ledger(tmp_path)


def open_ledger(folder):
    one = Ledger(folder / "state", "loyalty", TABLES)
    yield one
    one.db.close()


def add_points(event, db):
    db.execute("INSERT INTO points VALUES (?, 100)", (event.id,))
    return "100 puntos"


def points(ledger) -> int:
    return ledger.db.execute("SELECT total(points) FROM points").fetchone()[0]


def new_event() -> events.Event:
    return events.user_created("Juan", "juan@eco.com")


def test_an_event_has_one_effect_however_often_it_is_delivered(ledger):
    event = new_event()
    assert ledger.once(event, add_points) == "100 puntos"
    assert ledger.once(event, add_points) is None  # in the same batch
    ledger.commit()
    assert ledger.once(event, add_points) is None
    assert ledger.is_done(event.id) and not ledger.is_done(new_event().id)
    assert points(ledger) == 100


def test_the_same_id_in_upper_case_is_the_same_event(ledger):
    event = new_event()
    ledger.once(event, add_points)
    assert ledger.once(event._replace(id=event.id.upper()), add_points) is None


def test_a_failed_effect_is_undone_and_the_rest_of_the_batch_stays(ledger, other_ledger):
    before, broken, after = new_event(), new_event(), new_event()

    def half(event, db):
        add_points(event, db)
        raise OSError("sin red")

    ledger.once(before, add_points)
    with pytest.raises(OSError, match="sin red"):
        ledger.once(broken, half)
    ledger.once(after, add_points)
    ledger.commit()
    assert points(other_ledger) == 200
    assert other_ledger.once(broken, add_points) == "100 puntos"  # a later attempt may succeed


@pytest.mark.parametrize("statement", [
    "COMMIT", "COMMIT TRANSACTION", "END", "ROLLBACK", "BEGIN", "BEGIN IMMEDIATE",
    "SAVEPOINT mine"])
def test_no_statement_of_a_handler_ends_the_transaction(ledger, other_ledger, statement):
    def ending(event, db):
        add_points(event, db)
        db.execute(statement)

    ledger.once(new_event(), add_points)
    ledger.commit()  # SQLite has compiled the ledger's own statements now
    ledger.once(new_event(), add_points)
    with pytest.raises((PermanentError, sqlite3.OperationalError)):
        ledger.once(new_event(), ending)
    assert points(other_ledger) == 100
    ledger.commit()
    assert points(other_ledger) == 200


def test_a_crash_before_the_commit_undoes_effect_and_ledger_row(ledger, other_ledger):
    event = new_event()
    ledger.once(event, add_points)
    assert points(other_ledger) == 0  # no other process sees half a batch
    ledger.db.close()  # like a killed process: without a commit
    assert other_ledger.once(event, add_points) == "100 puntos"
    other_ledger.commit()
    assert points(other_ledger) == 100


def test_concurrent_processes_apply_each_effect_once(tmp_path, ledger):
    made = [new_event() for _ in range(50)]
    done: list[str] = []

    def work():
        own = Ledger(tmp_path / "state", "loyalty", TABLES)
        for index, event in enumerate(made):
            if own.once(event, add_points):
                done.append(event.id)
            if index % 7 == 0:
                own.commit()
        own.commit()
        own.db.close()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(done) == sorted(event.id for event in made)
    assert points(ledger) == 100 * len(made)


def test_a_commit_is_on_disk_before_it_returns(ledger):
    assert ledger.db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert ledger.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_starts_without_an_end_are_counted_on_disk_until_they_are_a_crash_loop(
        ledger, other_ledger):
    event, other = new_event(), new_event()
    crash_loop.note_start(ledger, other.id)
    for _ in range(MAX_STARTS):  # each one on disk at once, without a commit
        crash_loop.note_start(ledger, event.id)
    with pytest.raises(CrashLoop):
        crash_loop.note_start(other_ledger, event.id)
    crash_loop.note_start(other_ledger, other.id)  # another event has a count of its own
    crash_loop.forget(ledger, event.id)
    ledger.commit()
    crash_loop.note_start(other_ledger, event.id)  # an end has reset the count


def test_rows_older_than_ninety_days_are_deleted(ledger, other_ledger):
    days_old = {new_event(): days for days in (0, 89, 91, 200)}
    now = int(time.time())
    for event, days in days_old.items():
        ledger.once(event, add_points)
        ledger.db.execute("UPDATE done SET done_at = ? WHERE event_id = ?",
                          (now - days * 86_400, uuid.UUID(event.id).bytes))
    ledger.commit()
    ledger.forget_old()
    assert [other_ledger.is_done(event.id) for event in days_old] == [True, True, False, False]


def test_an_sql_error_in_a_handler_is_an_ordinary_error(ledger):
    with pytest.raises(sqlite3.OperationalError):
        ledger.once(new_event(), lambda event, db: db.execute("INSERT INTO no_table VALUES (1)"))


def test_a_handler_that_left_a_returning_unread_is_told_to_read_it(ledger):
    kept = []
    with pytest.raises(StateError, match="usa fetchall"):
        ledger.once(new_event(), lambda event, db: kept.append(db.execute(
            "INSERT INTO points VALUES (?, 100) RETURNING points", (event.id,))))


def test_a_handler_that_returns_nothing_is_no_duplicate(ledger):
    event = new_event()
    lines = [ledger.once(event, lambda event, db: None) for _ in range(2)]
    assert lines == ["procesado", None]


@pytest.mark.parametrize("next_step", ["begin", "commit"])
def test_a_transaction_that_sqlite_undid_is_never_taken_for_a_committed_one(ledger, next_step):
    """After some errors of the disk SQLite itself rolls back."""
    ledger.once(new_event(), add_points)
    ledger.db.set_authorizer(None)
    ledger.db.execute("ROLLBACK")
    with pytest.raises(StateError, match="deshizo la transacción"):
        getattr(ledger, next_step)()


def test_a_new_file_that_another_program_has_locked_is_waited_for_until_a_stop(tmp_path, capsys):
    other = sqlite3.connect(tmp_path / "loyalty.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    told = "Otro proceso está usando loyalty.db"
    seen: list[str] = []

    def stop_after_the_line() -> bool:
        seen.append(capsys.readouterr().out)
        return told in seen[-1]

    with pytest.raises(Stopped):
        Ledger(tmp_path, "loyalty", TABLES, stop_after_the_line)
    assert "".join(seen).count(told) == 1
    other.execute("COMMIT")
    assert not Ledger(tmp_path, "loyalty", TABLES).is_done(new_event().id)


def test_a_corrupt_file_is_reported_with_a_remedy(tmp_path):
    (tmp_path / "loyalty.db").write_bytes(b"not a database, really" * 500)
    with pytest.raises(StateError, match="loyalty.db: .*apártalo, sin borrarlo") as raised:
        Ledger(tmp_path, "loyalty", TABLES)
    assert raised.value.exit_code == 78


@pytest.mark.parametrize("sql, words", [
    ("INSERT INTO users VALUES (NULL, 1)", "NOT NULL constraint failed: users.full_name"),
    ("INSERT INTO users VALUES ('Ana', 1), ('Eva', 1)", "UNIQUE constraint failed: users.locked"),
    ("SELECT json_extract('{', '$.a')", "malformed JSON")])
def test_an_error_of_a_handlers_own_sql_is_not_taken_for_a_broken_disk(tmp_path, sql, words):
    own = "CREATE TABLE IF NOT EXISTS users (full_name NOT NULL, locked UNIQUE);"
    ledger = Ledger(tmp_path, "loyalty", TABLES + own)
    with pytest.raises(sqlite3.Error, match=words):
        ledger.once(new_event(), lambda event, db: db.execute(sql).fetchall())
    ledger.db.close()


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match="STATE_DIR"):
        Ledger(tmp_path / "file" / "state", "loyalty")
