"""The program of every process of a group (started by conftest.py): trains small models in every mode; the first one
prints the results."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from isoflop.config import override
from isoflop.measure import measure
from isoflop.model.build import build_model
from isoflop.model.cross_entropy import IGNORED
from isoflop.optim.build import build
from isoflop.parallel.config import DIVIDED
from isoflop.parallel.launch import joined
from isoflop.parallel.shard import distribute
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer.config import RunConfig
from isoflop.trainer.step import take_step
from isoflop.trainer.task import make_task
from stories import STORIES, hang, tell

SMALL = [
    "model.layers=2",
    "model.d_model=36",  # with 3 heads: nothing divides by 4
    "model.heads=3",
    "model.context=16",
    "model.vocab_size=67",
    "batch.sequences=8",
]
# name -> (what is set, steps)
CASES: dict[str, tuple[list[str], int]] = {
    "muon": ([], 50),
    "adamw": (["optim.name=adamw", "optim.clip=0.1"], 50),
    "accumulated": (["batch.micro_sequences=2"], 3),
    "every_pass": (["batch.micro_sequences=2", "parallel.reduce=every"], 3),
    "bfloat16": (["runtime.dtype=bfloat16", "parallel.gather=bfloat16", "model=gpt2"], 3),
    "tied": (["model.tied_head=true", "model=gpt2"], 3),
    "multi_token": (["loss=multi_token"], 3),
    "experts": (["model.feed_forward=moe"], 3),
    "experts_in_passes": (["model.feed_forward=moe", "batch.micro_sequences=4"], 3),
    "options": (["model.value_embedding=1", "model.embedding_shortcut=true", "model.logit_cap=15"], 3),
    "neurons": (
        ["optim.neurons=rows", "optim.cautious_decay=true", "optim.iteration=polar_express", "optim.momentum_steps=9"],
        3,
    ),
    "neurons_longer": (["optim.neurons=longer", "model.value_embedding=1", "optim.value_lr=0.003"], 3),
    "stream": (["model.smear=true", "model.backout=true", "model.attention.qk_scale=1.2"], 3),
    "pairs": (["task=seq2seq"], 3),
}


def make(config, group, mode):
    seed_everything(0)
    with torch.device("meta" if mode in DIVIDED else "cpu"):
        model = build_model(config.task, config.model)
    task = make_task(config)
    task.prepare(model)
    parallel = replace(config.parallel, mode=mode, replicas=2 if mode == "hsdp" else 0)
    if mode not in DIVIDED:
        parallel = replace(parallel, reduce="last", gather="float32")
    layout = distribute(model, task.loss, group, parallel, "cpu")
    return task, model, layout, build(model, config.optim, torch.float32, layout.matrices)


def batch_of(config, step, group):
    """The whole step's rows, and of these the process's own; in pairs the last rows are nearly all padding."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(67, (8, 17), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    rows = slice(group.rank * 8 // group.size, (group.rank + 1) * 8 // group.size)
    if config.task != "seq2seq":
        return inputs[rows], targets[rows]
    targets[5:, 2:] = IGNORED
    sources = torch.randint(67, (8, 11), generator=generator)
    return sources[rows], (sources > 5)[rows], inputs[rows], targets[rows]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def run(case, mode, group, folder):
    if case in STORIES:
        return tell(case, mode, group, folder)
    changes, steps = CASES[case]
    config = override(RunConfig(), [*changes, *SMALL])
    runtime = make_runtime("cpu", config.runtime.dtype if case == "bfloat16" else "float32")
    task, model, layout, optimizers = make(config, group, mode)
    gradients = {}

    def keep(optimizer, *_):  # what a step is about to use
        if not gradients:
            gradients.update({name: whole(p.grad).clone() for name, p in model.named_parameters()})

    for optimizer in optimizers[:1]:
        optimizer.register_step_pre_hook(keep)
    lines = []
    for step in range(steps):
        loss, norm = take_step(
            model,
            optimizers,
            task,
            batch_of(config, step, group),
            micro=config.batch.micro_sequences or 8,
            runtime=runtime,
            clip=config.optim.clip,
            scale=0.3,
            layout=layout,
        )
        lines.append([float(loss), float(norm)])
    found = {"lines": lines, "alike": group.gather(float(layout.global_norm(torch.tensor(float(group.rank)))))}
    tensors = {f"gradients {name}": gradient for name, gradient in gradients.items()}
    tensors |= {f"weights {name}": whole(p.detach()).clone() for name, p in model.named_parameters()}
    if group.first:
        save_file(tensors, folder / f"{case} {mode} {group.size}.safetensors")
    if config.task == "causal_lm":
        held = torch.randint(67, (24010,), generator=torch.Generator().manual_seed(9)).numpy()
        nats = measure(model, held, torch.ones(67, dtype=torch.int64).numpy(), 0, runtime, group=group).nats
        found["heldout"] = nats
    return found


def main(folder, *asked):
    torch.set_num_threads(1)
    cases = [(case, mode) for case, modes in zip(asked[::2], asked[1::2], strict=True) for mode in modes.split(",")]
    with joined() as group:
        shown = {f"{case} {mode}": run(case, mode, group, Path(folder)) for case, mode in cases if case != "hang"}
        if group.first:
            print(json.dumps(shown), flush=True)
        if "hang" in asked:
            hang(Path(folder) / "hang", group)
