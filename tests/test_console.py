"""Text from events is cleaned before it is printed on a terminal."""

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
    "\x1b[2J\x1b[H", "\x1b]0;título\x07", "\x9b31m", "\r\n", "a\tb", "\x00", "\x7f", "\x08" * 9,
    "\u2028", "\u2029", "\u202egpj.exe", "\u2066x\u2069", "\u200f", "\u061c", "\ud800"])
def test_control_and_reordering_characters_are_replaced(text):
    cleaned = console.clean(text)
    assert len(cleaned) == len(text) and "\ufffd" in cleaned
    assert all(char.isprintable() for char in cleaned)
    cleaned.encode()


@pytest.mark.parametrize("text", ["José Ñandú", "e\u0301", "🎉", "👩‍👩‍👧", "🏳️‍🌈", "محمد", "王小明",
                                  "¡Hola! → ✔"])
def test_accents_emoji_and_other_alphabets_are_kept(text):
    assert console.clean(text) == text


def test_clean_accepts_any_value():
    assert console.clean(None) == "None" and console.clean(7) == "7"


def test_only_a_terminal_gets_colour(monkeypatch):
    assert console.paint("hecho", "ok", io.StringIO()) == "hecho"
    assert console.paint("hecho", "ok", Terminal()) == "\x1b[1;38;5;28mhecho\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.paint("hecho", "ok", Terminal()) == "hecho"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert console.paint("hecho", "ok", Terminal()) == "hecho"


def test_with_json_data_goes_to_stdout_and_text_to_stderr(capsys, monkeypatch):
    console.print_line("para la clase")
    monkeypatch.setattr(console, "json_mode", True)
    console.print_line("para quien mira")
    console.print_json({"nombre": "José 🎉\x1b[2J"})
    out, err = capsys.readouterr()
    words, record = out.splitlines()
    assert words == "para la clase" and err == "para quien mira\n"
    assert record.isascii() and "\x1b" not in record
    assert json.loads(record) == {"nombre": "José 🎉\x1b[2J"}


def test_a_character_outside_the_encoding_is_a_question_mark(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    console.set_up()
    console.print_line("✔ → José")
    assert raw.getvalue().decode("cp1252").strip() == "? ? José"


def test_a_table_aligns_its_columns_and_cleans_its_cells():
    assert console.table([("error", "n"), ("Os\x1b", 12), ("x", 3)], right={1}) == [
        "error   n", "Os\ufffd    12", "x       3"]
    assert console.table([]) == []


def test_a_bar_is_full_for_the_maximum_and_empty_only_for_zero():
    assert console.bar(10, 10, width=8) == "█" * 8
    assert console.bar(5, 10, width=8) == "█" * 4
    assert console.bar(1, 10**6) == "█"
    assert console.bar(0, 10) == "" and console.bar(0, 0) == ""
