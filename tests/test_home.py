"""Where isoflop stores files if the home folder is missing, read-only or another user's."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from isoflop import files
from isoflop.data.config import DataConfig
from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.plan.ceiling import machine_peak
from isoflop.records import read_run
from small import TINY, write_texts


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of this test's own, and neither ISOFLOP_HOME nor a home."""
    for name in ("ISOFLOP_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def no_cache(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(files, "user_cache_path", fail)


@pytest.mark.parametrize("error", [RuntimeError("could not determine the home directory"), KeyError("uid not found")])
def test_without_a_home_things_are_kept_among_the_temporary_files(temporary, monkeypatch, error):
    no_cache(monkeypatch, error)
    folder = files.home()
    assert folder == temporary / f"isoflop-{os.getuid()}" == files.home()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "ISOFLOP_HOME" in files.home_note() and str(folder) in files.home_note()
    assert files.spool().is_dir()


def test_a_writable_home_is_used_silently(temporary, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "user_cache_path", lambda *_, **__: tmp_path / "cache" / "isoflop")
    assert files.home() == tmp_path / "cache" / "isoflop" and files.home_note() == ""
    assert not any(temporary.iterdir())


@pytest.mark.parametrize("what", ["a file", "may not be written"])
def test_a_home_that_cannot_be_written_is_not_used(temporary, monkeypatch, tmp_path, what):
    place = tmp_path / "home"
    if what == "a file":
        place.write_text("no folder")
    else:
        place.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place)
    monkeypatch.setattr(files, "user_cache_path", lambda *_, **__: place / ".cache" / "isoflop")
    assert files.home().parent == temporary


@pytest.mark.parametrize("how", ["link", "file", "others may write"])
def test_a_folder_that_others_could_have_made_is_not_trusted(temporary, monkeypatch, tmp_path, how):
    no_cache(monkeypatch, RuntimeError("none"))
    place = temporary / f"isoflop-{os.getuid()}"
    if how == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif how == "file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(UserError, match="ISOFLOP_HOME"):
        files.home()


def test_no_folder_for_temporary_files_either(temporary, monkeypatch):
    no_cache(monkeypatch, RuntimeError("none"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "not there"))
    with pytest.raises(UserError, match="set ISOFLOP_HOME to a folder that can be written to"):
        files.home()


def test_isoflop_home_that_cannot_be_written_is_named(corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set ISOFLOP_HOME to a folder that can be written to"):
        prepare(DataConfig(sources=(str(corpus),), vocab_size=320))
    prepared = prepare(DataConfig(sources=(str(corpus),), vocab_size=320), tmp_path / "out")  # needs none
    assert prepared.folder == tmp_path / "out"


def test_prepared_data_are_used_from_a_read_only_home(corpus, tmp_path, monkeypatch):
    config = DataConfig(sources=(str(corpus),), vocab_size=320)
    first = prepare(config)
    monkeypatch.setattr(files, "try_folder", lambda *_, **__: pytest.fail("nothing has to be written"))
    monkeypatch.setattr(files, "can_write", lambda _: False)
    assert prepare(config).folder == first.folder


def test_a_peak_that_cannot_be_cached_is_still_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "file"))
    assert machine_peak("cpu")["float32"] > 0


def test_prepare_out_leaves_the_home_alone(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    prepare(DataConfig(sources=(str(corpus),), vocab_size=320), tmp_path / "out")
    assert not (tmp_path / "home" / "data").exists()


AS_NOBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
CAN = "+dac_override,+dac_read_search"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a passwd entry")
def test_a_user_without_home_and_passwd_entry_prepares_and_trains(tmp_path):
    write_texts(tmp_path / "texts")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777)
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "TMPDIR": str(tmp_path)}
    command = [*AS_NOBODY, f"--inh-caps={CAN}", f"--ambient-caps={CAN}", sys.executable, "-m", "isoflop", "train"]
    arguments = ["texts", "--budget", "6steps", "--out", "run", "--set", *TINY]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, env=kept, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "note: no home folder can be written to" in done.stdout and "ISOFLOP_HOME" in done.stdout
    assert read_run(tmp_path / "run").status == "finished"
