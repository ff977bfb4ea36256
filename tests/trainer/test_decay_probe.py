"""The average of the weights: what it is, that measuring it leaves no trace, and when there is none."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from isoflop import checkpoint
from isoflop.config import override
from isoflop.errors import UserError
from isoflop.records import read_run
from isoflop.trainer import RunConfig, hooks, train
from isoflop.trainer.decay_probe import LAG, POWER, DecayProbe
from isoflop.trainer.hooks import HeldOut, make_probe
from small import TINY, CutAt, PowerCut, write_texts


def weights_at(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(step))


def followed(steps: int) -> tuple[nn.Module, DecayProbe]:
    """The probe of a model whose weights are the number of steps."""
    model = nn.Linear(3, 2)
    probe = DecayProbe(model)
    for step in range(1, steps + 1):
        weights_at(model, step)
        probe.follow(step, stable=True)
    return model, probe


def test_the_average_lags_behind_by_the_stated_share_of_the_steps():
    for steps in (200, 1000):
        _, probe = followed(steps)
        for mean in probe.tensors().values():
            assert (1 - mean / steps) == pytest.approx(LAG, rel=0.1)


def test_later_weights_count_more_by_the_stated_power():
    """The share of the newest weight is that of x^POWER at the end of the window."""
    model, probe = followed(400)
    before = next(iter(probe.tensors().values())).clone()
    weights_at(model, 10_000)
    probe.add()
    moved = next(iter(probe.tensors().values())) - before
    assert moved / (10_000 - before) == pytest.approx((POWER + 1) / 400, rel=0.05)


def test_the_weights_are_put_back_bit_for_bit_also_after_an_exception():
    model, probe = followed(30)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with probe.in_place():
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="cut"), probe.in_place():
        raise ValueError("cut")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name])
        assert torch.equal(inside[name], probe.tensors()[f"probe.{name}"])


def test_after_the_stable_phase_the_average_takes_no_memory():
    _, probe = followed(30)
    probe.follow(31, stable=False)
    assert not probe.tensors() and not probe.ready


@pytest.fixture(scope="module")
def run_with_averages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    texts = write_texts(folder / "texts", files=30)
    more = ["steps=60", "guard.preflight=false", "every.checkpoint=20", "evaluate_tokens=512", "every.sample=0"]
    config = override(RunConfig(), [*TINY, f'data.sources=["{texts}"]', "data.heldout_fraction=0.05", *more])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_HOME", str(folder / "home"))
        patch.setattr(hooks, "PROBE_SHARE", 1.0)
        yield folder, config


def test_it_is_measured_in_the_stable_phase_only_and_saved_with_its_checkpoints(run_with_averages):
    folder, config = run_with_averages
    train(override(config, ["every.keep=9"]), folder / "run", hooks=[HeldOut(probe=True)])
    run = read_run(folder / "run")
    measured = [line.step for line in run.heldout if line.averaged_loss]
    assert measured == [20, 30, 40]  # the decay begins at 42; at 10 there were too few additions
    assert all(0.5 < line.averaged_loss / line.heldout_loss < 1.5 for line in run.heldout if line.averaged_loss)
    for step, count in ((20, 20), (40, 40), (60, 0)):
        saved = checkpoint.at_step(folder / "run" / "checkpoints", step)
        assert checkpoint.read_state(saved)["progress"]["probe"] == count
        model, _, _ = checkpoint.load_model(saved)
        assert DecayProbe(model).restore(saved) == (count > 0)
    with pytest.raises(UserError, match="probe"):
        DecayProbe(nn.Linear(3, 2)).restore(checkpoint.at_step(folder / "run" / "checkpoints", 40))


def test_a_run_whose_checkpoints_have_no_average_resumes_without_one(run_with_averages):
    folder, config = run_with_averages
    with pytest.raises(PowerCut):
        train(config, folder / "older", hooks=[HeldOut(), CutAt(25)])
    result = train(config, folder / "older", hooks=[HeldOut(probe=True)], resume=True)
    assert result.step == 60
    assert not any(line.averaged_loss for line in read_run(folder / "older").heldout)


def test_no_average_where_it_says_nothing_or_takes_too_long(monkeypatch):
    def possible(*settings: str, alone: bool = True, device: str = "cpu") -> bool:
        config = override(RunConfig(), ["steps=1000", "evaluate_tokens=8192", *settings])
        state = SimpleNamespace(
            config=config,
            layout=SimpleNamespace(group=SimpleNamespace(alone=alone)),
            runtime=SimpleNamespace(device=torch.device(device)),
            timetable=config.timetable(),
            model=nn.Linear(2, 2),
            batches=SimpleNamespace(tokens=lambda steps: 4096 * steps),
            step=0,
        )
        return make_probe(state) is not None

    monkeypatch.setattr(hooks, "PROBE_SHARE", 0.01)
    assert possible("every.evaluate=84")
    assert not possible("every.evaluate=0")
    assert not possible("every.evaluate=5", "evaluate_tokens=65536")  # more than a hundredth of the time
    assert not possible("every.evaluate=84", "schedule.name=cosine")
    assert not possible("every.evaluate=84", "schedule.name=constant")
    assert not possible("every.evaluate=84", "average.name=tail")
    assert not possible("every.evaluate=84", alone=False)
    assert not possible("every.evaluate=84", device="cuda")
    monkeypatch.setattr(hooks, "free_memory", lambda device: 100)
    assert not possible("every.evaluate=84")
