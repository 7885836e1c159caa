"""Text from events is cleaned before it is printed on a terminal."""

import errno
import io
import json
import sys
from argparse import Namespace

import pytest

from common import console
from common.config import KitError
from common.views import tally


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


SENTENCE = "El broker no está en \x1b[1mlocalhost:5672\x1b[0m: arráncalo y vuelve a probar."


def printed(stream, monkeypatch, text: str) -> str:
    """What print_line() writes on a stream of 40 columns."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", stream)
    console.print_line(text)
    return stream.getvalue()


def test_on_a_terminal_a_long_line_breaks_between_words_and_keeps_its_indent(monkeypatch):
    shown = printed(Terminal(), monkeypatch, f"corta\n    {SENTENCE}")
    first, *rest = shown.splitlines()
    assert first == "corta" and len(rest) == 3
    assert all(line.startswith("    ") and len(line) <= 40 for line in rest)
    assert " ".join(line.strip() for line in rest) == SENTENCE


@pytest.mark.parametrize("text", ["x" * 200, f"\x1b[1m{'ab ' * 13}\x1b[0m"])
def test_a_word_without_an_end_and_a_line_that_fits_but_for_its_colour_stay_whole(monkeypatch,
                                                                                  text):
    assert printed(Terminal(), monkeypatch, text) == f"{text}\n"


def test_in_a_pipe_and_with_json_no_line_is_broken(monkeypatch):
    assert printed(io.StringIO(), monkeypatch, SENTENCE) == f"{SENTENCE}\n"
    monkeypatch.setattr(console, "json_mode", True)
    errors = Terminal()
    monkeypatch.setattr(sys, "stderr", errors)
    console.print_error(SENTENCE.replace("\x1b[1m", "").replace("\x1b[0m", ""))
    assert errors.getvalue().count("\n") == 1


def test_a_line_covers_the_progress_before_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(tally, "PROGRESS_S", -1)
    tally.Tally(Namespace(count=10**9, level=3)).add("x", "confirmed")
    assert sys.stderr.getvalue() == "1 de 1000000000 …\r"


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


@pytest.mark.parametrize("system, number", [("posix", errno.EPIPE), ("nt", errno.EINVAL)])
def test_a_closed_pipe_is_an_error_of_the_kit_and_not_of_the_event_at_hand(
        monkeypatch, system, number):
    class Closed(io.StringIO):
        def write(self, _):
            raise OSError(number, "")
    monkeypatch.setattr(console.os, "name", system)
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(console.PipeClosed) as raised:
        console.print_line("x")
    assert isinstance(raised.value, KitError)


def test_a_table_aligns_its_columns_and_cleans_its_cells():
    assert console.table([("error", "n"), ("Os\x1b", 12), ("x", 3)], right={1}) == [
        "error   n", "Os\ufffd    12", "x       3"]
    assert console.table([]) == []


def test_a_bar_is_full_for_the_maximum_and_empty_only_for_zero():
    assert console.bar(10, 10, width=8) == "█" * 8
    assert console.bar(5, 10, width=8) == "█" * 4
    assert console.bar(1, 10**6) == "█"
    assert console.bar(0, 10) == "" and console.bar(0, 0) == ""
