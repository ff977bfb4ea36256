"""Text at any width, and standard streams that are closed, full or missing."""

import errno
import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from isoflop import screen as screens
from isoflop.budget import parse_budget
from isoflop.optim.timetable import Decision
from isoflop.plan.advice import Choice
from isoflop.records import BadSteps, read_run
from isoflop.screen import Screen, describe_bad_steps, show_plan, show_runs
from isoflop.terminal import fitted, listing, reasons, wrapped
from small import TINY

WIDTHS = st.integers(40, 200)
NUMBERS = st.one_of(
    st.integers(-(10**14), 10**14).map(lambda n: f"{n:,}"),
    st.floats(1e-12, 1e18).map(lambda x: f"{x:.3g}"),
    st.floats(0, 100).map(lambda x: f"{x:.1f}%"),
)
WORDS = st.one_of(NUMBERS, st.text("abcdefgh-/.,:;é文字", min_size=1, max_size=30))
LINES = st.lists(WORDS, min_size=1, max_size=25).map(" ".join)
HERE = [sys.executable, "-m", "isoflop"]


def none_is_cut(text: str, lines: list[str], width: int) -> None:
    """Every word stands whole on one line, in order, and no line is wider than it has to be."""
    assert [word for line in lines for word in line.split()] == text.split()
    for line in lines:
        assert cell_len(line) <= width or len(line.split()) == 1


@given(LINES, WIDTHS, st.integers(0, 8))
def test_wrapping_keeps_every_word_whole(text, width, indent):
    none_is_cut(text, wrapped(text, width, indent), width)
    assert wrapped(text, None) == [text]


@given(
    st.lists(st.tuples(st.text("abcdefgh N", max_size=14), LINES, st.one_of(st.just(""), LINES)), min_size=1), WIDTHS
)
def test_a_plan_at_any_width_keeps_every_value_and_every_reason(rows, width):
    lines = reasons(rows, width)
    shown = [f"{first}{why}" for first, why in lines]
    printed = sorted(word for row in rows for text in row for word in text.split())
    assert sorted(word for line in shown for word in line.split()) == printed
    longest = max(cell_len(word) for row in rows for text in row for word in (text.split() or [""]))
    assert all(cell_len(line.rstrip()) <= max(width, 18 + 22 + longest + 30) for line in shown)
    if longest <= 18:
        assert all(cell_len(line.rstrip()) <= width for line in shown)


@given(st.lists(st.lists(WORDS, min_size=8, max_size=8), min_size=1, max_size=5), WIDTHS)
def test_a_list_of_runs_at_any_width_keeps_every_cell(rows, width):
    head = ("run", "status", "parameters N", "steps", "tokens", "seconds", "bits/byte", "expected")
    text = "\n".join(listing(head, rows, width))
    for row in rows:
        for cell in row:
            assert cell == "-" or re.search(rf"(^|\s){re.escape(cell)}(,|\s|$)", text), cell


@given(st.lists(LINES, min_size=1, max_size=6), st.integers(3, 160))
def test_text_that_does_not_fit_next_to_a_bar_is_marked_as_cut(parts, room):
    text = fitted(parts, room)
    assert cell_len(text) <= room
    whole = text.removesuffix("...").rstrip()
    assert text == "  ".join(parts) or (text.endswith("...") and "  ".join(parts).startswith(whole))
    assert any("  ".join(parts[:count]) == whole for count in range(len(parts) + 1))


@pytest.fixture
def shown(monkeypatch):
    """Gives a screen as wide as asked for, without a terminal, and what it has shown."""

    def make(width):
        out = io.StringIO()
        monkeypatch.setenv("COLUMNS", str(width)) if width else monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setattr(sys, "stdout", out)
        return Screen(), out

    return make


CHOICES = (
    ("device", "cpu, float32, 2 threads", "matrix products in bfloat16 run at 0.01 times float32's speed"),
    ("shape", "3 layers x 96, heads: 1", "the candidate that the budget feeds best; 20,844 tokens/s measured"),
    ("tokens D", "3,637,248", "6.9 N (about 20 N are compute-optimal, fewer if N is mostly head), 94% of the text"),
    ("optimiser", "muon, lr 0.01, head lr 0.04, embedding lr 0.04, matrix lr 0.015", "measured, see LAB.md"),
)


@pytest.mark.parametrize("width", [40, 57, 80, 120, 200, None])
def test_the_plan_on_a_screen_has_every_number_and_reason(shown, width):
    screen, out = shown(width)
    expected = SimpleNamespace(bits_per_byte=1.501, low=1.252, high=1.799, level=0.9, source="a prior of 37 runs")
    choices = [Choice(*row) for row in CHOICES]
    show_plan(screen, SimpleNamespace(budget=parse_budget("3m"), choices=choices, expected=expected))
    text = out.getvalue()
    for row in CHOICES:
        for word in " ".join(row).split():
            assert word in text.split()
    assert all(len(line) <= (width or 1000) for line in text.splitlines())
    assert {"1.501", "1.252", "1.799"} <= set(text.split())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_runs_stay_a_readable_list(shown, tmp_path, width):
    screen, out = shown(width)
    rows = [
        {
            "run": f"runs/books-{number}",
            "status": "finished",
            "parameters": 528_384,
            "steps": 1162,
            "tokens": 3_569_664,
            "seconds": 179.7,
            "bits_per_byte": 1.495,
            "expected": 1.501,
        }
        for number in range(3)
    ]
    show_runs(screen, tmp_path, rows)
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert text.count("528,384") == text.count("3,569,664") == text.count("179.700") == 3
    assert len(text.splitlines()) == (4 if width == 200 else len(text.splitlines()))


def test_generated_text_is_shown_unchanged(shown):
    screen, out = shown(40)
    sample = "def f(x):  return [bold]x[/bold] :smile: and more words than fit into forty columns\n    pass"
    screen.say(sample, verbatim=True)
    assert out.getvalue() == sample + "\n"


def test_many_moved_ends_are_one_summary_line(shown):
    screen, out = shown(None)
    state = SimpleNamespace(step=0, timetable=SimpleNamespace(total_steps=1000))
    screen.started(state)
    for number, end in enumerate((990, 985, 991, 988, 970, 960)):
        state.timetable.total_steps = end
        screen.decided(state, Decision(at_step=100 + number, steps=end, reason="at 159 ms a step it is late"))
    screen.ended(state)
    first, last = out.getvalue().splitlines()
    assert first.startswith("step 100: the end moves to step 990") and "6 times in all" in last and "960" in last


def test_an_end_that_moves_far_is_reported_at_once(shown):
    screen, out = shown(None)
    state = SimpleNamespace(step=0, timetable=SimpleNamespace(total_steps=1000))
    screen.started(state)
    for at, end in ((100, 990), (200, 400), (300, 900)):
        state.timetable.total_steps = end
        screen.decided(state, Decision(at_step=at, steps=end, reason="slower"))
    screen.ended(state)
    assert len(out.getvalue().splitlines()) == 3


def test_harmless_spikes_do_not_sound_like_damage():
    text = describe_bad_steps(BadSteps(spikes_kept=2))
    assert text == "2 steps with an unusually high loss or gradient norm, kept"
    assert not re.search("wrong|bad|error", text)
    both = describe_bad_steps(BadSteps(spikes_kept=1, steps_left_out=3, left_out_tokens=768))
    assert both.startswith("bad steps: 3 steps discarded (768 tokens); 1 step with")
    assert describe_bad_steps(BadSteps()) == ""


class Failing(io.StringIO):
    """A stream that fails after some characters, as a full disk, a closed pipe or a terminal that is gone does."""

    def __init__(self, error, room=10):
        super().__init__()
        self.error, self.room = error, room

    def write(self, text):
        self.room -= len(text)
        if self.room < 0:
            raise self.error
        return super().write(text)


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_screen_never_raises_and_reports_once_why_it_is_silent(monkeypatch, capsys, error):
    monkeypatch.setattr(sys, "stdout", Failing(error))
    screen = Screen()
    for number in range(20):
        screen.say(f"line {number}")
        screen.progress("reading", number, 20)
    output = capsys.readouterr().err
    assert output.count("nothing more is shown") == (0 if isinstance(error, BrokenPipeError) else 1)


def test_a_screen_needs_no_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    screen = Screen()
    screen.say("nobody reads this")
    screen.progress("reading", 1, 2)
    assert screen.width is None or screen.width > 0


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_run_survives_its_closed_output(monkeypatch, corpus, tmp_path, error):
    from isoflop import job

    monkeypatch.setattr(sys, "stdout", Failing(error, room=200))
    listener = screens.listener_for(Screen())
    job.pretrain([str(corpus)], "12steps", tmp_path / "run", assignments=TINY, listener=listener)
    assert read_run(tmp_path / "run").status == "finished"


def command(arguments: str, stdout: str, folder, **more) -> subprocess.CompletedProcess:
    line = f"{sys.executable} -m isoflop {arguments} {stdout}"
    environment = {**os.environ, "ISOFLOP_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=environment, timeout=300, **more
    )


@pytest.mark.parametrize(
    ("arguments", "stdout", "code", "says"),
    [
        ("prepare texts --out p --set data.vocab_size=320", "> /dev/full", 0, "No space left on device"),
        ("prepare texts --out p --set data.vocab_size=320", "2>&- >&- <&-", 0, ""),
        ("config", "> /dev/full", 2, "No space left on device"),
        ("--version", "> /dev/full", 2, "No space left on device"),
        ("train --nonsense", "2> /dev/full", 2, ""),
        ("--help", "| head -1 > /dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        ("prepare - --out p", "<&-", 2, ""),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # each is a start of the command
            for case in (
                ("prepare texts --out p --set data.vocab_size=320", ">&-", 0, ""),
                ("config", ">&-", 0, ""),
                ("runs .", "> /dev/full", 2, "No space left on device"),
                ("--help", "> /dev/full", 2, "No space left on device"),
                ("config", "| head -1 > /dev/null; exit ${PIPESTATUS[0]}", 0, ""),
            )
        ),
    ],
)
def test_exit_codes_without_a_standard_output(corpus, tmp_path, arguments, stdout, code, says):
    done = command(arguments, stdout, tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert says in done.stderr and len(done.stderr.splitlines()) <= (1 if "nonsense" not in arguments else 99)
    if " --out p" in arguments and not code:
        assert (tmp_path / "p" / "manifest.json").is_file()


def test_a_file_that_is_opened_later_does_not_become_standard_output(tmp_path):
    code = (
        "from isoflop.terminal import guard_standard_streams; guard_standard_streams(); import os, sys;"
        "file = open('kept', 'w'); print('lost'); sys.stdout.flush(); os.write(1, b'lost'); os.write(2, b'lost');"
        "file.write('whole'); file.close()"
    )
    subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-'], cwd=tmp_path, check=True)
    assert (tmp_path / "kept").read_text() == "whole"


def test_a_pipe_that_does_not_block_loses_nothing():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "from isoflop.terminal import guard_standard_streams; guard_standard_streams(); print('0123456789' * 50_000)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    time.sleep(0.5)
    with os.fdopen(reading, "rb") as file:
        assert len(file.read()) == 500_001
    assert process.wait() == 0 and process.stderr.read() == b""
    process.stderr.close()


class Window:
    """A process in a terminal of its own, which can be closed."""

    def __init__(self, arguments, folder, columns=80, ignoring_hangup=False):
        self.master, slave = pty.openpty()
        subprocess.run(["stty", "cols", str(columns)], stdin=slave, check=True)

        def hang_up_later():
            os.setsid()
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignoring_hangup else signal.SIG_DFL)

        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        environment |= {"ISOFLOP_HOME": str(folder / "home"), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*HERE, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environment,
            preexec_fn=hang_up_later,
        )
        os.close(slave)
        self.text = b""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.open = True
        self.reader.start()

    def read(self):
        while self.open:
            try:
                self.text += os.read(self.master, 65536)
            except OSError:
                return

    def wait_for(self, path, seconds=120.0):
        for _ in range(int(seconds * 20)):
            if path.exists() and path.stat().st_size > 0:
                return
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        raise AssertionError(self.text)

    def close(self):
        self.open = False
        os.close(self.master)


@pytest.mark.parametrize(("ignoring", "code"), [(True, 0), (False, 129)])
def test_a_terminal_that_goes_away(corpus, tmp_path, ignoring, code):
    arguments = ["train", "texts", "--budget", "400steps", "--out", "run", "--set", *TINY]
    window = Window(arguments, tmp_path, ignoring_hangup=ignoring)
    window.wait_for(tmp_path / "run" / "metrics.jsonl")
    window.close()
    assert window.process.wait(timeout=300) == code
    run = read_run(tmp_path / "run")
    assert run.status == ("finished" if ignoring else "stopped")
    assert not [event for event in run.events if event.event == "failed"]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_plan_and_a_run_in_a_terminal(corpus, tmp_path, columns):
    arguments = ["train", "texts", "--budget", "30steps", "--out", "run", "--set", *TINY, "optim.matrix_lr=0.01375"]
    window = Window(arguments, tmp_path, columns=columns)
    assert window.process.wait(timeout=300) == 0, window.text
    time.sleep(0.2)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", window.text.decode()).replace("\r", "\n")
    assert "0.0138" in text.split() or "0.01375" in text.split(), text
    lines = [line for line in text.partition("a sample:")[0].splitlines() if line.strip()]
    assert all(cell_len(line.rstrip()) <= columns for line in lines), [x for x in lines if cell_len(x) > columns]
    window.close()
