"""The memory of one of several processes, by mode, and the advice if it does not fit."""

import pytest

from isoflop.config import override
from isoflop.parallel.cost import Parallelism
from isoflop.trainer import RunConfig
from isoflop.trainer.memory.portion import Footprint, fitting_settings

# 1,000 parameters in 4 units of 200 and 200 in none; AdamW
WHOLE = Footprint(parameters=1000, unit=200, kept=400, state=8000, stack=0, sequence=500, cast=0)
MUON = Footprint(parameters=1000, unit=200, kept=400, state=6000, stack=1200, sequence=500, cast=2)


def test_ddp_holds_the_whole_model_and_fsdp_a_shard_and_the_gathered_unit():
    assert WHOLE.per_process(Parallelism("ddp", 4), 3, 1) == 16 * 1000 + 3 * 500
    gathered = 4 * (400 + 2 * 200) + 4 * 200  # and the gradients of one unit
    assert WHOLE.per_process(Parallelism("fsdp", 4), 3, 1) == 16 * 250 + gathered + 3 * 500
    assert (
        WHOLE.per_process(Parallelism("fsdp", 4), 3, 2) == 16 * 250 + gathered + 4 * 800 + 3 * 500
    )  # all gradients are whole
    assert WHOLE.per_process(Parallelism("fsdp", 4), 3, 2, every=True) == WHOLE.per_process(
        Parallelism("fsdp", 4), 3, 1
    )
    assert WHOLE.per_process(Parallelism("hsdp", 8, 2), 3, 1) == WHOLE.per_process(Parallelism("fsdp", 4), 3, 1)


def test_muon_works_on_its_share_of_a_stack_and_casts_are_counted():
    ddp = 14 * 1000 + 2 * 1000 + 3 * 1200 / 4 + 1200
    assert MUON.per_process(Parallelism("ddp", 4), 0, 1) == ddp
    assert MUON.per_process(Parallelism("fsdp", 4), 0, 1) == 14 * 250 + 4000 + 2 * 1000 + 5 * 1200 / 4


@pytest.mark.parametrize(
    ("mode", "room", "setting"),
    [
        ("ddp", 16_000 + 4 * 500, "use --set batch.micro_sequences=4"),
        ("ddp", 16_000 + 7 * 500, "use --set batch.micro_sequences=4"),  # 7 do not divide the 8
        ("ddp", 12_001, "use --set parallel.mode=fsdp"),
        ("ddp", 4000 + 3200 + 4000 + 500, "use --set parallel.mode=fsdp batch.micro_sequences=1"),
        ("hsdp", 8000, ""),
        ("hsdp", 12_000, "use --set parallel.mode=fsdp parallel.replicas=0"),
        ("fsdp", 4000 + 3200 + 4000 + 500, "use --set batch.micro_sequences=1"),
        ("fsdp", 11_000, "use --set parallel.reduce=every batch.micro_sequences=4"),
        ("fsdp", 8000, ""),
    ],
)
def test_the_advice_is_the_smallest_change_that_fits(mode, room, setting):
    replicas = 2 if mode == "hsdp" else 0
    config = override(RunConfig(), ["batch.sequences=32", f"parallel.mode={mode}", f"parallel.replicas={replicas}"])
    assert next(fitting_settings(config, WHOLE, Parallelism(mode, 4, replicas), room), "") == setting
