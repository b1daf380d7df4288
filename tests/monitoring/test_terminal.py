"""What may be shown where, and text that cannot speak to the terminal."""

import io
import logging
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from leftover.monitoring.terminal import (
    LogHandler,
    console,
    harmless,
    is_live,
    one_line,
    progress_bar,
    set_up_logging,
    tell_start,
    visible,
)


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def put_in_place(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, modules: dict[str, Any] | None = None) -> None:
    # Not of `sys` itself, whose streams pytest sets anew before every test.
    monkeypatch.setattr(
        "leftover.monitoring.terminal.sys",
        SimpleNamespace(stdout=stream, stderr=stream, modules=modules or sys.modules),
    )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    """A terminal in place of stdout and stderr, in an environment that says nothing else."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "RANK", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = FakeTerminal()
    put_in_place(monkeypatch, stream)
    return stream


def fill_a_bar() -> None:
    with progress_bar(3, "scoring", "row") as bar:
        for _ in range(3):
            bar.update()


def test_a_bar_shows_what_it_does_and_the_time_left_at_a_terminal(terminal: FakeTerminal) -> None:
    fill_a_bar()
    assert "scoring" in terminal.getvalue() and "<" in terminal.getvalue()  # 00:01<00:02


def test_a_bar_that_is_not_asked_for_is_not_shown(terminal: FakeTerminal) -> None:
    with progress_bar(3, "scoring", "row", shown=False) as bar:
        bar.update()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    "variable, value", [("CI", "1"), ("CI", "true"), ("TERM", "dumb"), ("RANK", "1")], ids=lambda value: value
)
def test_nothing_moves_in_ci_on_a_dumb_terminal_or_in_a_second_process(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    assert is_live()
    monkeypatch.setenv(variable, value)
    assert not is_live()
    fill_a_bar()
    console().print("[x]", style="bold red")
    assert "\x1b" not in terminal.getvalue() and "\r" not in terminal.getvalue()


def test_nothing_moves_in_a_pipe_whatever_force_color_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    pipe = io.StringIO()
    put_in_place(monkeypatch, pipe)
    assert not is_live()
    fill_a_bar()
    console().print("plain", style="bold red")
    assert pipe.getvalue() == "plain\n"


def test_ci_set_to_false_is_not_ci(terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    assert is_live()


def test_no_color_takes_colours_away_at_a_terminal(terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    console().print("word", style="red")
    assert "\x1b[31m" in terminal.getvalue()
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    console().print("word", style="red")
    assert "\x1b[31m" not in terminal.getvalue() and "word" in terminal.getvalue()


def test_a_console_takes_brackets_for_text_in_tables_too(terminal: FakeTerminal) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("[bold]name")
    table.add_row("[red]policy[/red]")
    console().print(table)
    assert "[bold]name" in terminal.getvalue() and "[red]policy[/red]" in terminal.getvalue()


def test_characters_that_a_terminal_obeys_are_written_out() -> None:
    assert harmless("a\x1b[2Jb\rc\x07\x9bd") == r"a\x1b[2Jb\rc\x07\x9bd"
    assert harmless("one\ntwo\tthree, Grüße 雪") == "one\ntwo\tthree, Grüße 雪"
    assert harmless("\u202eevil\u2066") == r"\u202eevil\u2066"  # would turn the order of letters round


@pytest.mark.parametrize(
    "text, width, keep, expected",
    [
        ("a b", 3, "start", "a b"),
        ("a\n\n  b\tc", 5, "start", "a b c"),
        ("abcdef", 4, "start", "abc…"),
        ("abcdef", 4, "end", "…def"),
        ("雪雪雪", 4, "start", "雪…"),  # each is two columns wide: 1 + 2 + 2 would be 5
        ("x" * 100_000, 5, "start", "xxxx…"),
        ("x" * 100_000, 5, "end", "…xxxx"),
    ],
)
def test_a_text_is_cut_to_columns_of_the_terminal(text: str, width: int, keep: str, expected: str) -> None:
    assert one_line(text, width, keep=keep) == expected


def test_log_lines_go_to_what_stderr_is_now_and_obey_nothing(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = LogHandler()
    later = FakeTerminal()
    put_in_place(monkeypatch, later)

    def say(level: int, text: str) -> None:
        handler.handle(logging.makeLogRecord({"levelno": level, "msg": text}))

    say(logging.INFO, "row \x1b[2J")
    assert later.getvalue() == "row \\x1b[2J\n" and terminal.getvalue() == ""
    monkeypatch.setenv("RANK", "1")
    say(logging.INFO, "twice")
    say(logging.WARNING, "twice")
    say(logging.ERROR, "trouble")
    assert "twice" not in later.getvalue() and "trouble" in later.getvalue()


def test_an_error_message_cannot_clear_the_screen(capsys: Any, tmp_path: Any) -> None:
    from leftover.cli import main

    with pytest.raises(SystemExit):
        main(["run", "no\x1b[2Jfile.yaml"])
    assert "\x1b" not in capsys.readouterr().err


def test_what_no_reader_could_see_is_written_out_for_pages_and_files():
    assert visible("a\x00b\x07\u202ec\ufeff") == r"a\x00b\x07\u202ec\ufeff"
    assert visible("tab\tline\n\N{SNOWMAN} e\N{ZERO WIDTH JOINER}é") == "tab\tline\n\N{SNOWMAN} e\N{ZERO WIDTH JOINER}é"


def test_a_saved_adapter_of_an_embedding_is_no_warning() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        set_up_logging()
        warnings.warn("Setting `save_embedding_layers` to `True` as embedding layers found", stacklevel=1)
    assert not said


def test_tracebacks_that_libraries_log_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch, stream := io.StringIO())
    for name in ("urllib3.connection", "leftover.x"):
        try:
            raise ValueError("deep inside")
        except ValueError:
            record = logging.getLogger(name).makeRecord(name, 30, "f", 1, "it goes on", (), sys.exc_info())
        LogHandler().emit(record)
    said = stream.getvalue()
    assert said.startswith("it goes on\nit goes on\n") and said.count("Traceback") == 1


def test_a_line_comes_before_what_takes_seconds_to_load_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    for modules, said in (({}, 1), (sys.modules, 0)):
        stream = io.StringIO()
        put_in_place(monkeypatch, stream, modules or {"os": io})
        tell_start.cache_clear()
        tell_start()
        tell_start()
        assert len(stream.getvalue().splitlines()) == said
    tell_start.cache_clear()


def logged(*records: tuple[str, dict[str, Any]]) -> None:
    handler = LogHandler()
    for text, more in records:
        record = logging.LogRecord("leftover", logging.INFO, "", 0, text, (), None)
        vars(record).update(more)
        handler.emit(record)


def test_at_a_terminal_long_lines_break_between_words_behind_the_indent(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/folder/with/a/name/that/is/longer/than/any/line-is"
    logged(("1/2 Read", {"indent": ("", "    ")}), (f"a word and another word and {path}", {}))
    lines = terminal.getvalue().splitlines()
    assert lines == ["1/2 Read", "    a word and another word and", f"      {path}"]


def test_without_a_terminal_every_message_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    put_in_place(monkeypatch, stream)
    monkeypatch.setenv("COLUMNS", "40")
    logged(("word " * 30, {}))
    assert len(stream.getvalue().splitlines()) == 1
