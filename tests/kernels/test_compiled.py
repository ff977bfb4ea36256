"""The kernels are compiled once, kept, and a run continues without them."""

from dataclasses import replace

import pytest

from isoflop.config import from_dict, override, to_dict
from isoflop.kernels import compiled
from isoflop.kernels.compiled import NoKernels
from isoflop.plan.asked import NOTHING, Asked
from isoflop.plan.machine import choose_kernels
from isoflop.trainer import RunConfig, train
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.hooks import Hook
from isoflop.trainer.workload import Text
from small import TINY, CutAt, PowerCut


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A machine on which nothing has been compiled."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ISOFLOP_KERNELS", raising=False)
    for cached in (compiled.trouble, compiled.library):
        monkeypatch.setattr(compiled, cached.__name__, cached.__wrapped__)
    return tmp_path


def compiler(folder, script):
    """A stand-in for a compiler: a shell script that gets the arguments."""
    path = folder / "somecc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_one_variable_turns_them_off(monkeypatch):
    monkeypatch.setenv("ISOFLOP_KERNELS", "0")
    assert not compiled.available() and "ISOFLOP_KERNELS=0" in compiled.why_not()


def test_without_a_compiler_there_are_none_and_the_reason_names_it(fresh, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O9")
    assert "there is no no-such-compiler" in compiled.why_not()
    assert not list(fresh.rglob("*.so"))


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'kernels.c:1: error: too old' >&2; exit 1", "error: too old"),
        ("exit 3", "exit code 3"),
        ('while [ "$1" != -o ]; do shift; done; echo libomp.so.5 > "$2"', "another OpenMP"),
    ],
)
def test_what_a_compiler_cannot_do_is_said_and_leaves_nothing(fresh, monkeypatch, script, why):
    monkeypatch.setenv("CC", compiler(fresh, script))
    assert why in compiled.why_not()
    assert not list((fresh / "home").rglob("*.so"))


def test_a_home_that_cannot_be_written_to_is_no_error(fresh, monkeypatch):
    (fresh / "home").write_text("a file")
    assert "cannot be written to" in compiled.why_not()


def test_a_damaged_library_is_no_error(fresh, monkeypatch):
    path = fresh / "home" / "kernels" / f"{compiled.fingerprint()}.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a library")
    with pytest.raises(NoKernels, match="loaded"):
        compiled.library()


@pytest.mark.parametrize("mode", [0o722, 0o770])
def test_a_library_that_others_could_have_changed_is_not_run(fresh, mode):
    path = fresh / "home" / "kernels" / f"{compiled.fingerprint()}.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"anything")
    path.chmod(mode)
    assert "other users can write to" in compiled.why_not()


def test_another_compiler_or_source_is_compiled_anew(monkeypatch, tmp_path):
    before = compiled.fingerprint()
    monkeypatch.setenv("CC", "clang")
    assert compiled.fingerprint() != before
    monkeypatch.undo()
    other = tmp_path / "kernels.c"
    other.write_text("int other;")
    monkeypatch.setattr(compiled, "SOURCES", (*compiled.SOURCES[1:], other))
    assert compiled.fingerprint() != before


def test_old_configurations_keep_torchs_operations():
    written = to_dict(RunConfig())
    del written["runtime"]["kernels"]
    assert from_dict(RunConfig, written).runtime.kernels == "torch"


def test_a_plan_chooses_them_for_text_on_a_processor_where_they_are(used, monkeypatch):
    config = RunConfig()
    config = replace(config, runtime=replace(config.runtime, device="cpu"))
    text = TextWorkload(Text(1e6, b""))
    assert choose_kernels(config, text, NOTHING).runtime.kernels == "compiled"
    assert choose_kernels(config, text, Asked.of(["runtime.kernels=torch"])) == config
    monkeypatch.setenv("ISOFLOP_KERNELS", "0")
    assert choose_kernels(config, text, NOTHING) == config


class Heard(Hook):
    """The notices of a run, and the losses of its steps."""

    def __init__(self):
        self.notices, self.losses = [], []

    def noticed(self, state, text):
        self.notices.append(text)


def test_a_run_that_used_them_goes_on_without_them(corpus, tmp_path, monkeypatch, used):
    config = override(RunConfig(), [*TINY, "model.vocab_size=320", "steps=8", "runtime.device=cpu"])
    config = replace(config, data=replace(config.data, sources=(str(corpus),)))
    plain = train(config, tmp_path / "plain")
    config = override(config, ["runtime.kernels=compiled"])
    whole, heard = train(config, tmp_path / "whole"), Heard()
    for name in ("cut", "again"):
        with pytest.raises(PowerCut):
            train(config, tmp_path / name, hooks=[CutAt(6)])
    assert train(config, tmp_path / "again", resume=True).loss == whole.loss, "a resumed run has the same bits"

    monkeypatch.setenv("ISOFLOP_KERNELS", "0")
    ended = train(config, tmp_path / "cut", hooks=[heard], resume=True)
    assert len(heard.notices) == 1 and "ISOFLOP_KERNELS=0" in heard.notices[0]
    assert ended.step == 8
    found, wanted, usual = (run.loss for run in (ended, whole, plain))
    assert found == pytest.approx(wanted, rel=1e-3) and wanted == pytest.approx(usual, rel=1e-3)
    assert wanted != usual, "the kernels were not used"
