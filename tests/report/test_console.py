from __future__ import annotations

import io
import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hfd_edge.report.console import bars, duration, print_json, table


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def run_plain(calls: list[tuple[float, float, float, str]]) -> list[str]:
    """Lines that a log gets; each call is (seconds since the last one, done, total, text)."""
    clock, stream = Clock(), io.StringIO()
    with bars(stream=stream, clock=clock) as progress:
        for seconds, done, total, text in calls:
            clock.now += seconds
            progress(done, total, text)
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_about_every_ten_seconds() -> None:
    lines = run_plain([(1.0, step, 60, "train") for step in range(61)])
    # At 0, 10, ... 50 s, and one when the work ends.
    assert len(lines) == 7
    assert lines[0] == "train 0 % (0.0 s)"
    assert lines[1] == "train 16 % (10 s, 50 s left)"
    assert lines[-1] == "train 100 % (1 min 00 s)"


def test_a_log_is_not_told_of_short_work() -> None:
    lines = run_plain([(0.01, done, 2, f"evaluate{n}") for n in range(50) for done in (1, 2)])
    assert lines == ["evaluate0 50 % (0.0 s)"]


@pytest.mark.parametrize(
    ("second", "starts_anew"),
    [
        ((60, 100, "train epoch 2"), False),
        ((60, 200, "train epoch 2"), True),
        ((10, 100, "train epoch 2"), True),
        ((60, 100, "validate epoch 2"), True),
    ],
    ids=["same work", "new total", "smaller done", "other leading word"],
)
def test_when_a_new_bar_starts(second: tuple[float, float, str], starts_anew: bool) -> None:
    lines = run_plain([(0, 0, 100, "train epoch 1"), (30, 50, 100, "train epoch 1"), (30, *second)])
    ended = [line for line in lines if line == "train epoch 1 50 % (1 min 00 s)"]
    assert bool(ended) == starts_anew


def test_one_hundred_percent_is_not_said_before_the_end() -> None:
    lines = run_plain([(20, 0, 1000, "tiles"), (20, 999.9, 1000, "tiles")])
    assert "99 %" in lines[1]
    assert not any("100 %" in line for line in lines)


def test_zero_total_is_finished_work() -> None:
    assert run_plain([(0, 0, 0, "nothing"), (20, 0, 0, "nothing")]) == ["nothing 100 % (20 s)"]


def test_a_terminal_keeps_one_line_for_each_bar(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    with bars(stream=terminal, clock=clock) as progress:
        progress(0, 4, "teacher [bold]epoch[/bold] 1/2")
        clock.now += 65
        progress(4, 4, "teacher [bold]epoch[/bold] 2/2")
        progress(1, 4, "student epoch 1/2")
    shown = terminal.getvalue()
    assert "✓" in shown
    assert "teacher [bold]epoch[/bold] 2/2" in shown, "text is not markup"
    assert "1 min 05 s" in shown
    assert "stopped at 25 %" in shown
    assert capsys.readouterr() == ("", "")


def test_bars_draw_on_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as progress:
        progress(0, 2, "work")
        print_json({"result": 1})
        progress(2, 2, "work")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"result": 1}
    assert err.startswith("work 0 %")


def test_stdout_stays_stdout_while_a_terminal_bar_runs(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars(stream=terminal) as progress:
        progress(0, 2, "work")
        print_json({"result": 1})
    assert json.loads(capsys.readouterr().out) == {"result": 1}
    assert "result" not in terminal.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_an_error_passes_through_and_ends_the_bar(kind: type[io.StringIO], terminal: Terminal) -> None:
    clock, stream = Clock(), kind()
    with pytest.raises(KeyboardInterrupt), bars(stream=stream, clock=clock) as progress:
        progress(1, 4, "train")
        clock.now += 30
        raise KeyboardInterrupt
    assert "25 %" in stream.getvalue()
    assert "30 s" in stream.getvalue()


def test_threads_may_report_at_once() -> None:
    stream = io.StringIO()
    with bars(stream=stream) as progress:
        workers = [
            threading.Thread(target=lambda: [progress(step, 200, "tiles") for step in range(200)])
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        progress(200, 200, "tiles")
    assert stream.getvalue().startswith("tiles ")


def test_a_log_that_cannot_hold_the_text_does_not_stop_the_work() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with bars(stream=stream) as progress:
        progress(0, 1, "Straße")
    stream.flush()
    assert raw.getvalue().startswith(b"Stra?e 0 %")


def test_table_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table("Scores [x]", ["class [i]", "IoU"], [["[red]water", 0.123456], ["field", None]])
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Scores [x]\n")
    for text in ("class [i]", "[red]water", "0.1235"):
        assert text in out
    rows = [line.rstrip() for line in out.splitlines()]
    assert rows[-1].endswith("-")
    assert len(rows[-1]) == len(rows[-2]), "numbers are set right"


def test_table_without_headings(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/rather/long/path" * 5
    table("", ["", ""], [["folder", path]])
    out = capsys.readouterr().out
    assert out.split() == ["folder", path]


def test_table_refuses_a_ragged_row() -> None:
    with pytest.raises(ValueError, match="row of table 'T' has 1 values for 2 columns"):
        table("T", ["a", "b"], [["x"]])


def test_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    table("Nothing", ["a", "b"], [])
    assert "Nothing" in capsys.readouterr().out


def test_print_json_converts_what_results_hold(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Inner:
        rows: int

    content = {
        "path": Path("a/b"),
        "miou": np.float32(0.5),
        "tiles": np.int64(3),
        "flag": np.bool_(True),
        "shape": np.array([1, 2]),
        "inner": Inner(4),
        "iou": {"Gewässer": None},
    }
    print_json(content)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    assert out.endswith("}\n")
    assert json.loads(out) == {
        "path": str(Path("a/b")),
        "miou": 0.5,
        "tiles": 3,
        "flag": True,
        "shape": [1, 2],
        "inner": {"rows": 4},
        "iou": {"Gewässer": None},
    }


def test_print_json_refuses_what_json_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"loss": float("nan")})
    with pytest.raises(TypeError, match="object has no JSON form"):
        print_json({"x": object()})
    assert capsys.readouterr().out == "", "nothing is half printed"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (725, "12 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_console_needs_no_drawing_packages() -> None:
    """A device prints progress without matplotlib, jinja2 or OpenCV being loaded for it."""
    import subprocess

    code = (
        "import sys, hfd_edge.report.console; "
        "assert not {'matplotlib', 'jinja2', 'torch', 'cv2'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
