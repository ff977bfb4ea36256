"""One trainer in its own process, which takes steps on request (from turns.py).

For each number on stdin it takes that many steps and answers with one JSON line: seconds, processor seconds, page
faults, and the peak memory so far. Each trainer runs its own loop, unchanged, with loader and logging, and is paused
between two steps: ours in a hook, nanoGPT's train.py (run as its README says) where it prints the line of a step.
"""

import json
import os
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

if TYPE_CHECKING:  # torch is imported after the allocator is configured, and only where it is needed
    import torch

    from isoflop.records import DataAccount
    from shapes import Size

SEED = 1337


class Gate:
    """Called between two steps: lets the requested number of steps pass, and answers how long they took.

    Args:
        device: whose memory is measured.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # a trainer's own output must not mix with the answers
        self.wait()

    def wait(self) -> None:
        told = sys.stdin.readline()
        if not told.strip():
            os._exit(0)
        self.left = int(told)
        self.faults, self.cpu = page_faults(), time.process_time()
        self.started = time.perf_counter()

    def step(self) -> None:
        """To be called after each step."""
        self.left -= 1
        if self.left:
            return
        seconds = time.perf_counter() - self.started
        cpu, faults = time.process_time() - self.cpu, page_faults() - self.faults
        answer = {"seconds": seconds, "cpu_seconds": cpu, "faults": faults, "peak_bytes": peak_bytes(self.device)}
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
        self.wait()


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_bytes(device: str) -> int:
    from isoflop.runtime import peak_memory

    return peak_memory(device)


def isoflop(spec: dict[str, Any], gate: Gate) -> None:
    """Our loop, on the same token file as nanoGPT."""
    if spec.get("keep", True):
        from isoflop.allocator import keep_freed_memory

        keep_freed_memory()
    from isoflop.optim.config import OptimConfig, ScheduleConfig
    from isoflop.trainer.config import BatchConfig, EveryConfig, GuardConfig, RunConfig, RuntimeConfig
    from isoflop.trainer.hooks import Hook
    from isoflop.trainer.loop import train
    from isoflop.trainer.state import RunState
    from shapes import ALL_SIZES, nanogpt_model

    size = ALL_SIZES[spec["size"]]

    class Held(Hook):
        def stepped(self, state: RunState) -> None:
            gate.step()

    config = RunConfig(
        model=nanogpt_model(size),
        batch=BatchConfig(sequences=spec.get("sequences", size.batch), micro_sequences=spec.get("micro", 0)),
        optim=OptimConfig(name=spec.get("optimizer", "adamw"), lr=1e-4),
        schedule=ScheduleConfig(name="constant"),
        runtime=RuntimeConfig(
            device=spec.get("device", "cpu"),
            dtype=spec.get("dtype", "float32"),
            threads=int(os.environ.get("OMP_NUM_THREADS", "0")),
            compile=spec.get("compile", False),
            **({"recompute": True} if spec.get("recompute") else {}),
        ),
        every=EveryConfig(evaluate=0, sample=0, checkpoint=0),
        guard=GuardConfig(preflight=spec.get("preflight", True)),
        steps=10**6,
    )
    with tempfile.TemporaryDirectory() as folder:
        hooks = [Held()]
        if spec.get("residual") == "bfloat16":
            hooks.append(narrow_residual_stream())
        train(config, Path(folder) / "run", hooks=hooks, prepared=Tokens(Path(spec["tokens"]), size.vocabulary))


def narrow_residual_stream() -> Any:
    """A hook that keeps the residual stream in bfloat16 for a whole run: it rounds the first block's input, and under
    autocast the outputs of the branches are bfloat16 already. For measurements only; not part of isoflop."""
    import torch

    from isoflop.trainer.hooks import Hook

    def rounded(module: Any, inputs: Any, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.to(torch.bfloat16)

    class Narrow(Hook):
        def started(self, state: Any) -> None:
            state.model.dropout.register_forward_hook(rounded)

    return Narrow()


def parts(spec: dict[str, Any], gate: Gate) -> None:
    """A whole step of our default model on random tokens (trainer/throughput.py), endlessly, with some of the compiled
    kernels' parts: "blocks", "loss". Without any it is also the step of a checkout that has none."""
    from isoflop.allocator import keep_freed_memory

    keep_freed_memory()
    from isoflop.trainer.throughput import make_step
    from paths import use, whole_step

    step = make_step(whole_step(spec["size"], spec["dtype"], int(os.environ["OMP_NUM_THREADS"])))
    use(step, spec["uses"])
    while True:
        step()
        gate.step()


class Tokens:
    """A file of 16-bit ids as the data of a run."""

    class Tokenizer:
        def to_json(self) -> str:
            return "{}"

    fingerprint = "bench"
    sources = ("bench",)
    tokenizer: Any = Tokenizer()

    def __init__(self, path: Path, vocabulary: int) -> None:
        self.ids, self.vocab_size = np.memmap(path, np.uint16, "r"), vocabulary

    def train_tokens(self, source: str) -> int:
        return len(self.ids)

    def weights(self) -> dict[str, float]:
        return {"bench": 1.0}

    def train(self, source: str) -> "Tokens":
        return self

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.ids.take(range(start, start + length), mode="wrap")

    def account(self) -> "DataAccount":
        """An empty account: the tokens are random."""
        from isoflop.records import DataAccount

        return DataAccount.read({})


class Printed:
    """Replaces stdout: a line that begins with "iter" is the end of a step."""

    def __init__(self, gate: Gate, shown: TextIO) -> None:
        self.gate, self.shown = gate, shown

    def write(self, text: str) -> int:
        if text.startswith("iter "):
            self.gate.step()
        return len(text)

    def flush(self) -> None:
        self.shown.flush()


def nanogpt(spec: dict[str, Any], gate: Gate) -> None:
    """nanoGPT's train.py, unchanged, in a folder with links to its files and with its data where it expects them."""
    from shapes import ALL_SIZES

    size, source = ALL_SIZES[spec["size"]], Path(spec["folder"])
    micro = spec.get("micro") or size.batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in source.iterdir():
            if path.name not in ("data", ".git"):
                (folder / path.name).symlink_to(path.resolve())
        data = folder / "data" / "bench"
        data.mkdir(parents=True)
        for split in ("train.bin", "val.bin"):
            (data / split).symlink_to(Path(spec["tokens"]).resolve())
        words = [
            f"--device={spec.get('device', 'cpu')}",
            f"--compile={spec.get('compile', False)}",
            "--dataset=bench",
            "--eval_iters=1",
            "--eval_interval=1000000",
            "--log_interval=1",
            f"--block_size={size.context}",
            f"--batch_size={micro}",
            f"--n_layer={size.layers}",
            f"--n_head={size.heads}",
            f"--n_embd={size.d_model}",
            "--max_iters=1000000",
            "--lr_decay_iters=1000000",
            "--dropout=0.0",
            f"--gradient_accumulation_steps={size.batch // micro}",
            f"--out_dir={folder / 'out'}",
        ]
        if "dtype" in spec:
            words.append(f"--dtype={spec['dtype']}")
        if size.vocabulary != 50_304:  # train.py's default vocabulary, without a meta.pkl
            (data / "meta.pkl").write_bytes(b"(dVvocab_size\nI%d\ns." % size.vocabulary)
            words.insert(0, "config/train_shakespeare_char.py")
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.argv = ["train.py", *words]
        sys.stdout = Printed(gate, sys.stderr)  # type: ignore[assignment]
        runpy.run_path("train.py", run_name="__main__")


def transformers(spec: dict[str, Any], gate: Gate) -> None:
    """Hugging Face's GPT2LMHeadModel in `plain_loop`, since its own trainer is no loop as simple as the others."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(size: "Size") -> torch.nn.Module:
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size.vocabulary,
                n_positions=size.context,
                n_embd=size.d_model,
                n_layer=size.layers,
                n_head=size.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    def loss(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    plain_loop(spec, gate, make, loss)


def litgpt(spec: dict[str, Any], gate: Gate) -> None:
    """litgpt's GPT and its loss in `plain_loop`, without the Fabric that its pretrain.py wraps around them. It has no
    learned positions: a quarter of each head is rotated, as in Pythia; otherwise the shape is nanoGPT's."""
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    def make(size: "Size") -> torch.nn.Module:
        model = GPT(
            Config(
                block_size=size.context,
                padded_vocab_size=size.vocabulary,
                vocab_size=size.vocabulary,
                n_layer=size.layers,
                n_head=size.heads,
                n_embd=size.d_model,
                parallel_residual=False,
                bias=False,
            )
        )
        model.transformer.wte.weight = model.lm_head.weight  # like its tie_embeddings
        return model

    def loss(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = chunked_cross_entropy(model(inputs), targets, chunk_size=0)  # as in its pretrain.py
        return found

    plain_loop(spec, gate, make, loss)


def plain_loop(
    spec: dict[str, Any],
    gate: Gate,
    make: Callable[["Size"], "torch.nn.Module"],
    loss_of: Callable[["torch.nn.Module", "torch.Tensor", "torch.Tensor"], "torch.Tensor"],
) -> None:
    """Forward, backward, clipping, fused AdamW, on random tokens, endlessly."""
    import torch

    from isoflop.runtime import make_runtime, seed_everything
    from shapes import ALL_SIZES

    size = ALL_SIZES[spec["size"]]
    runtime = make_runtime(spec.get("device", "cpu"), spec.get("dtype", "float32"))
    seed_everything(SEED)
    with runtime.device:
        model = make(size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(size.vocabulary, (size.batch, size.context + 1), device=runtime.device)
    while True:
        with runtime.autocast():
            loss = loss_of(model, tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())
        gate.step()


TRAINERS: dict[str, Callable[[dict[str, Any], Gate], None]] = {
    "parts": parts,
    "isoflop": isoflop,
    "nanogpt": nanogpt,
    "transformers": transformers,
    "litgpt": litgpt,
}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    TRAINERS[asked["trainer"]](asked, Gate(asked.get("device", "cpu")))
