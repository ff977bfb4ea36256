import errno
import os
import subprocess
import sys

import pytest

from isoflop.errors import UserError
from isoflop.files import write_json, write_text
from isoflop.records import RunFolder, read_lines, read_run


def test_a_torn_last_line_is_ignored_and_a_broken_one_before_it_reported(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(log) == [{"step": 1}, {"step": 2}]
    log.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_lines(log)


def test_lines_after_a_step_are_removed(tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(1, 6):
        folder.append("metrics", {"step": step, "loss": 1.0})
    folder.append("decisions", {"at_step": 4})
    folder.drop_lines_after(3)
    assert [line["step"] for line in read_lines(folder.log("metrics"))] == [1, 2, 3]
    assert read_lines(folder.log("decisions")) == []


def test_a_folder_takes_one_writer_and_names_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        assert folder.is_locked()
        with pytest.raises(UserError, match="in use by process"), folder.locked():
            pass
    assert not folder.is_locked()


def test_a_folder_without_a_run_is_reported(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    before = path.read_text()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    """kill -9 leaves .lock with the process number in it, but the system releases the lock for the next writer."""
    folder = RunFolder(tmp_path / "run")
    code = (
        "import sys, time; from pathlib import Path; from isoflop.records import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid}"), folder.locked():
        pass
    process.kill()
    process.communicate()
    assert (folder.path / ".lock").read_text() == str(process.pid)
    assert not folder.is_locked()
    with folder.locked() as lock:
        assert folder.is_locked()
        lock.check()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("isoflop.records.folder.fcntl.flock", refuse)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"without locks \(No locks available\).*mount it with flock"), folder.locked():
        pass
    assert not folder.is_locked()


def test_symbolic_links_in_place_of_a_runs_files_are_not_followed(tmp_path):
    """An untrusted run folder must not make isoflop truncate or extend another file."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".lock").symlink_to(mine)
    folder.log("metrics").symlink_to(mine)
    with pytest.raises(OSError, match="it is a link"), folder.locked():
        pass
    with pytest.raises(OSError, match="it is a link"):
        folder.append("metrics", {"step": 1})
    assert mine.read_text() == "precious" and not folder.is_locked()
    (folder.path / ".lock").unlink()
    os.mkfifo(folder.path / ".lock")  # opening it would wait for ever
    assert not folder.is_locked()


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / ".metrics.jsonl.0123abcd.tmp").write_text("{")
    (tmp_path / ".notes.tmp").write_text("the user's")
    folder.repair()
    assert [p.name for p in tmp_path.iterdir()] == [".notes.tmp"]
