"""Runs on windows that begin with documents, or whose documents do not see each other."""

import itertools
import math

import numpy as np
import pytest
import torch

import isoflop
from isoflop.config import from_dict, override
from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.job import evaluate
from isoflop.measure import measure, measure_documents
from isoflop.model.blocks.attend import attend, band
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.fused import fuse
from isoflop.model.gpt import GPT
from isoflop.records import read_run
from isoflop.runtime import make_runtime
from isoflop.trainer import RunConfig, throughput, train
from isoflop.trainer.task import make_task
from small import TINY, CutAt, PowerCut

EOT, START, CONTEXT = 0, 1, 24
MODELS = {
    "default": {},
    "window, alibi": {"attention": Spec("full", window=5), "position": Spec("alibi")},
    "latent": {"attention": Spec("latent"), "norm": Spec("layer")},
    "fewer key heads, soft cap": {"attention": Spec("full", kv_heads=1, soft_cap=20.0), "layers": 1},
    "values and shortcut": {"value_embedding": 1, "embedding_shortcut": True},
    "smear and backout": {"smear": True, "backout": True},
    "learned positions": {"position": Spec("learned")},
}


def model_of(name, context=CONTEXT):
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "context": context, "layers": 2, "d_model": 32, "heads": 2}
    model = GPT(ModelConfig(**shape | MODELS[name]))
    with torch.no_grad():  # branches and heads that start at zero would hide what they mix
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def row(*documents):
    """A row of inputs, each document with START in front of it, and the numbers of their documents."""
    tokens = [[START, *document] for document in documents]
    numbers = [[number] * len(document) for number, document in enumerate(tokens, 1)]
    return tuple(torch.tensor([list(itertools.chain(*each))]) for each in (tokens, numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_document_does_not_see_another_one(name, dtype):
    model, runtime = model_of(name), make_runtime("cpu", str(dtype).removeprefix("torch."), 1)
    second = [7, 8, 9, 10, 11, 12, 13]
    rows = [row([2, 3, 4, 5, 6], second), row([30, 31, 32, 33, 34], second)]
    tokens_BT, documents_BT = (torch.cat(parts) for parts in zip(*rows, strict=True))
    with runtime.autocast():  # with gradients, as in training
        h_BTD = model.hidden(tokens_BT, documents_BT=documents_BT)
        seen_BTD = model.hidden(tokens_BT)
    close = 1e-6 if dtype == torch.float32 else 0.1  # scores are rounded after a shift that all keys have in common
    torch.testing.assert_close(h_BTD[0, 6:], h_BTD[1, 6:], atol=close, rtol=0)
    assert (seen_BTD[0, 6:] - seen_BTD[1, 6:]).abs().max() > 0.3 < (h_BTD[0, :6] - h_BTD[1, :6]).abs().max()

    if MODELS[name].get("position") != Spec("learned"):  # positions go on, which these do not notice
        with runtime.autocast():
            alone_BTD = model.hidden(row(second)[0])
        tolerance = 1e-4 if dtype == torch.float32 else 0.2
        torch.testing.assert_close(h_BTD[:1, 6:], alone_BTD, atol=tolerance, rtol=tolerance)

    # a later token changes nothing before it
    changed = tokens_BT.clone()
    changed[:, -1] = 39
    with runtime.autocast():
        after_BTD = model.hidden(changed, documents_BT=documents_BT)
    torch.testing.assert_close(after_BTD[:, :-1], h_BTD[:, :-1], atol=close, rtol=0)


@pytest.mark.parametrize("window", [0, 5, 140])
@pytest.mark.parametrize("heads", [1, 2])
def test_long_rows_are_masked_whatever_the_kernel(heads, window):
    generator = torch.Generator().manual_seed(0)
    T, shape = 300, (2, heads, 300, 16)
    q_BHTK = torch.randn((2, 2, T, 16), generator=generator)
    k_BGTK, v_BGTK = (torch.randn(shape, generator=generator) for _ in range(2))
    documents_BT = (torch.rand((2, T), generator=generator) < 0.02).cumsum(1)
    visible = (documents_BT[:, :, None] == documents_BT[:, None]) & band(T, T, window, q_BHTK.device)
    scores = (q_BHTK @ k_BGTK.transpose(-1, -2) / 4).masked_fill(~visible.unsqueeze(1), -torch.inf)
    found = attend(q_BHTK, k_BGTK, v_BGTK, None, documents_BS=documents_BT, window=window)
    torch.testing.assert_close(found, scores.softmax(-1) @ v_BGTK, atol=1e-5, rtol=1e-5)
    halves = [one.bfloat16().requires_grad_() for one in (q_BHTK, k_BGTK, v_BGTK)]
    rounded = attend(*halves, None, documents_BS=documents_BT, window=window)
    torch.testing.assert_close(rounded.float(), found, atol=0.05, rtol=0.05)


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("name", ["default", "values and shortcut"])
def test_blocks_with_kernels_hide_other_documents_as_others_do(name):
    plain, fused = model_of(name), model_of(name)
    assert fuse(fused) == 2
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(2, 40, (3, CONTEXT), generator=generator)
    documents_BT = (torch.rand((3, CONTEXT), generator=generator) < 0.2).cumsum(1)
    found = []
    for model in (plain, fused):
        h_BTD = model.hidden(tokens_BT, documents_BT=documents_BT)
        h_BTD.square().sum().backward()
        found.append([h_BTD, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_one_document_has_the_same_values_with_a_mask():
    model = model_of("default")
    tokens_BT = torch.randint(2, 40, (3, CONTEXT))
    masked_BTD = model.hidden(tokens_BT, documents_BT=torch.ones_like(tokens_BT))
    torch.testing.assert_close(masked_BTD, model.hidden(tokens_BT), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def stream():
    """Documents of 1 to 80 tokens, each followed by EOT."""
    generator = np.random.default_rng(0)
    documents = [generator.integers(2, 40, length - 1) for length in generator.integers(1, 80, 40)]
    return np.concatenate([[*document, EOT] for document in documents])


@torch.no_grad()
def nats_of(model, tokens, before=START):
    inputs = torch.tensor([[before, *tokens[:-1]]])
    log_p = model(inputs).log_softmax(-1)[0]
    return -float(log_p[range(len(tokens)), torch.tensor(tokens)].double().sum())


def test_held_out_documents_are_measured_one_by_one(stream):
    model, runtime, sizes = model_of("default"), make_runtime("cpu", "float32", 1), np.arange(40)
    found = measure_documents(model, stream, sizes, EOT, START, runtime, pieces=True)
    cuts = [0, *(np.flatnonzero(stream == EOT) + 1).tolist()]
    expected = sum(
        nats_of(model, stream[start : min(start + CONTEXT, end)])
        for begin, end in itertools.pairwise(cuts)
        for start in range(begin, end, CONTEXT)
    )
    assert found.nats == pytest.approx(expected, rel=1e-5) == sum(piece[0] for piece in found.pieces)

    running = measure(model, stream, sizes, EOT, runtime)
    assert (found.tokens, found.bytes) == (running.tokens, running.bytes) == (len(stream), sizes[stream].sum())
    some = measure_documents(model, stream, sizes, EOT, START, runtime, max_tokens=300)
    assert 200 < some.tokens < 400


def test_running_windows_with_a_mask_hide_other_documents(stream):
    model, runtime, sizes = model_of("default"), make_runtime("cpu", "float32", 1), np.arange(40)
    found = measure(model, stream[:CONTEXT], sizes, EOT, runtime, apart=EOT)
    cuts = [0, *(np.flatnonzero(stream[:CONTEXT] == EOT) + 1).tolist(), CONTEXT]
    expected = sum(nats_of(model, stream[a:b], EOT) for a, b in itertools.pairwise(cuts) if b > a)
    assert found.nats == pytest.approx(expected, rel=1e-5)


EACH = ["batch.windows=documents", "batch.document_mask=true"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on windows of documents with a mask and a context that grows, measured at its end."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_HOME", str(folder / "home"))
        texts = write_documents(folder / "texts.txt")
        more = ["data.document_separator=####", "batch.context_from=16", "batch.context_share=0.5", *EACH]
        isoflop.pretrain([str(texts)], "12steps", folder / "run", assignments=[*TINY, *more], quiet=True)
        yield folder / "run"


@pytest.fixture
def run(made, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(made.parent / "home"))
    return made


def write_documents(path):
    words = [" ".join(f"word{(n * k) % 97}" for k in range(n % 37 + 3)) + "." for n in range(1500)]
    path.write_text("####".join(words))
    return path


def test_a_run_is_measured_as_it_was_trained_and_otherwise_if_asked(run):
    reached = read_run(run).result.heldout
    assert evaluate(run).bits_per_byte == pytest.approx(reached.bits_per_byte)
    both = {windows: evaluate(run, windows=windows) for windows in ("documents", "running")}
    assert both["documents"].bits_per_byte == pytest.approx(reached.bits_per_byte)
    assert both["running"].bits_per_byte != both["documents"].bits_per_byte
    assert len({(found.tokens, found.bytes) for found in both.values()}) == 1
    with pytest.raises(UserError, match=r"--windows begun is not one of"):
        evaluate(run, windows="begun")


def test_a_cut_run_on_such_windows_is_resumed_with_the_same_bits(run, tmp_path):
    config = from_dict(RunConfig, read_run(run).config)
    data = prepare(config.data)
    for name, cut in (("whole", 0), ("cut", 7)):
        if cut:
            with pytest.raises(PowerCut):
                train(config, tmp_path / name, prepared=data, hooks=[CutAt(cut)])
        train(config, tmp_path / name, prepared=data, resume=bool(cut))
    one, other = (isoflop.load(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_batch_of_such_a_run_numbers_its_documents(run):
    config = from_dict(RunConfig, read_run(run).config)
    data = prepare(config.data)
    batches = make_task(config).batches(config, data)
    for step, length in ((0, 16), (11, 64)):
        inputs_BT, documents_BT, targets_BT = batches.batch(step)
        assert inputs_BT.shape == documents_BT.shape == targets_BT.shape == (8 * 64 // length, length)
        begins = inputs_BT == data.tokenizer.start
        assert begins[:, 0].all() and torch.equal(documents_BT, begins.cumsum(1)) and documents_BT.max() > 1
    assert [part.shape for part in batches.largest(3)] == [(3, 64)] * 3


def test_steps_that_grow_are_timed_by_their_shares():
    config = override(RunConfig(), [*TINY, "steps=100", "batch.ramp_from=2", "batch.ramp_share=0.5", *EACH])
    config = override(config, ["batch.context_from=16", "batch.context_share=0.3", "model.vocab_size=64"])
    parts = throughput.sizes_to_time(config)
    assert sum(share for _, share in parts) == pytest.approx(1.0)
    per_step = config.tokens / config.steps
    assert sum(share * one.tokens_per_step for one, share in parts) == pytest.approx(per_step)
    assert not any(one.batch.grows for one, _ in parts) and all(one.batch.document_mask for one, _ in parts)
    [timed] = throughput.time_in_turns([config], 0.02)
    assert timed.tokens_per_second * timed.seconds_per_step == pytest.approx(per_step)


def test_an_attention_that_cannot_hide_documents_is_refused(monkeypatch, run):
    config = from_dict(RunConfig, read_run(run).config)
    data = prepare(config.data)
    monkeypatch.setattr("isoflop.model.blocks.attention.Attention.takes_documents", False)
    with pytest.raises(UserError, match=r"document_mask = true .* use latent, or batch\.document_mask=false"):
        make_task(config).batches(config, data)
    assert math.isfinite(evaluate(run).bits_per_byte)
