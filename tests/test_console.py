"""Nothing that an event carries reaches the terminal raw."""

import io
import json
import sys

import pytest

from common import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setattr(console, "json_mode", False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", [
    "\x1b[2J\x1b[H", "\x1b]0;título\x07", "\x9b31m", "\r\n", "a\tb", "\x00", "\x7f", "\x08" * 9, "\u2028", "\u2029",
    "\u202egpj.exe", "\u2066x\u2069", "\u200f", "\u061c", "\ud800"])
def test_what_would_move_the_cursor_or_reorder_the_line_is_replaced(text):
    cleaned = console.clean(text)
    assert len(cleaned) == len(text) and "\ufffd" in cleaned
    assert all(char.isprintable() for char in cleaned)
    cleaned.encode()


@pytest.mark.parametrize("text", ["José Ñandú", "e\u0301", "🎉", "👩‍👩‍👧", "🏳️‍🌈", "محمد", "王小明", "¡Hola! → ✔"])
def test_accents_emoji_and_other_scripts_stay_as_they_are(text):
    assert console.clean(text) == text


def test_cleaning_takes_anything():
    assert console.clean(None) == "None" and console.clean(7) == "7"


def test_colour_goes_to_a_terminal_only(monkeypatch):
    assert console.paint("hecho", "ok", io.StringIO()) == "hecho"
    assert console.paint("hecho", "ok", Terminal()) == "\x1b[1;38;5;28mhecho\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.paint("hecho", "ok", Terminal()) == "hecho"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert console.paint("hecho", "ok", Terminal()) == "hecho"


def test_with_json_words_go_to_stderr_and_data_to_stdout(capsys, monkeypatch):
    console.say("para la clase")
    monkeypatch.setattr(console, "json_mode", True)
    console.say("para quien mira")
    console.data({"nombre": "José 🎉\x1b[2J"})
    out, err = capsys.readouterr()
    words, record = out.splitlines()
    assert words == "para la clase" and err == "para quien mira\n"
    assert record.isascii() and "\x1b" not in record
    assert json.loads(record) == {"nombre": "José 🎉\x1b[2J"}


def test_a_console_that_cannot_print_a_character_prints_a_question_mark(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    console.set_up()
    console.say("✔ → José")
    assert raw.getvalue().decode("cp1252").strip() == "? ? José"


def test_a_table_aligns_its_columns_and_cleans_its_cells():
    assert console.table([("error", "n"), ("Os\x1b", 12), ("x", 3)], right={1}) == [
        "error   n", "Os\ufffd    12", "x       3"]
    assert console.table([]) == []


def test_a_bar_is_full_for_the_most_and_never_empty_for_something():
    assert console.bar(10, 10, width=8) == "█" * 8
    assert console.bar(5, 10, width=8) == "█" * 4
    assert console.bar(1, 10**6) == "█"
    assert console.bar(0, 10) == "" and console.bar(0, 0) == ""
