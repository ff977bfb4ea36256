"""A small model for test_state.py, whole or divided, and what two processes of a group save of it."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from isoflop.parallel import state


def make(shard=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(13, 6), nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 13))
    if shard:
        for unit in model:
            shard(unit)
        shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def train(model, optimizer, first, steps):
    for step in range(first, first + steps):
        tokens = (torch.arange(10) * 3 + step) % 13
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % 13).backward()
        optimizer.step()
        optimizer.zero_grad()


def save_divided(folder):
    """Saved on the way, at the end, and after a restart from the first."""
    model, optimizer = make(fully_shard)

    def save(name):
        tensors = {**state.model_tensors(model), **state.optimizer_tensors(model, [optimizer])}
        state.save_tensors(folder / name, tensors)

    train(model, optimizer, 0, 2)
    save("tensors")
    train(model, optimizer, 2, 2)
    save("later")
    model, optimizer = make(fully_shard)
    state.restore(folder / "tensors", model, [optimizer])
    train(model, optimizer, 2, 2)
    save("resumed")
