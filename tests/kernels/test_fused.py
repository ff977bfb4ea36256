"""The fused path equals the plain one: loss and every gradient, in both dtypes."""

import copy
import inspect

import pytest
import torch

from isoflop.generate.fused import fusible as fast_enough
from isoflop.kernels import calls
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import MLP
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.position import Rotary
from isoflop.model.blocks.value import ValueEmbedding
from isoflop.model.blocks.wiring import PreNorm
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.cross_entropy import IGNORED, LossOptions, cross_entropy
from isoflop.model.fused import FEW_KEYS, FusedBlock, fuse, fusible
from isoflop.model.gpt import GPT, Block
from isoflop.model.loss import CrossEntropy
from isoflop.parallel.wrap import recompute

pytestmark = pytest.mark.usefixtures("kernels")

# Relative to the norm of the exact tensor. float32: a few hundred roundings. bfloat16: both paths are compared with
# float64; the fused one, which rounds less often, may be twice as far from it as the plain one (a scalar is one draw).
FLOAT32, BFLOAT16 = 1e-5, 2**-8
USUAL = Spec("full", qk_norm=True, qk_gain=False, bias=False)
SHAPES = {
    "one head": {"heads": 1, "d_model": 24},
    "two heads": {"heads": 2, "d_model": 32},
    "keys shared": {
        "heads": 4,
        "d_model": 32,
        "attention": Spec("full", qk_norm=True, qk_gain=False, bias=False, kv_heads=2),
    },
    "own head width": {"heads": 3, "head_dim": 8, "d_model": 20},
    "window": {"attention": Spec("full", qk_norm=True, qk_gain=False, bias=False, window=5)},
    "sharper": {"attention": Spec("full", qk_norm=True, qk_gain=False, bias=False, qk_scale=1.3)},
    "blocks of queries": {"context": 150, "layers": 1},
    "blocks of queries that share keys": {
        "context": 150,
        "layers": 1,
        "heads": 4,
        "attention": Spec("full", qk_norm=True, qk_gain=False, bias=False, kv_heads=2, window=70),
    },
    "long": {"context": FEW_KEYS + 8, "layers": 1},
    "value embeddings": {"value_embedding": 2},
    "value embeddings without a gate": {"value_embedding": 1, "value_gate": False},
    "values of shared keys": {
        "heads": 4,
        "value_embedding": 1,
        "attention": Spec("full", qk_norm=True, qk_gain=False, bias=False, kv_heads=1),
    },
    "shortcut": {"embedding_shortcut": True},
    "smear": {"smear": True},
    "soft cap": {"logit_cap": 15.0},
    "tied head": {"tied_head": True},
    "no final norm": {"final_norm": False},
    "embedding norm": {"embedding_norm": True},
}
PLAIN_SHAPE = {"vocab_size": 40, "context": 20, "layers": 2, "d_model": 32, "heads": 2}


def model_of(**changes):
    """A model whose branches do not start at zero, so that everything has a gradient."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**PLAIN_SHAPE | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def gradients(model, criterion, tokens, dtype):
    targets = tokens.roll(-1, 1).clone()
    targets[0, :3] = IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = criterion(model, tokens, targets)
    loss.backward()
    return {"loss": loss.detach(), **{name: parameter.grad for name, parameter in model.named_parameters()}}


def off(found, exact):
    """How far two tensors are apart, of the norm of the exact one."""
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_fused_model_has_the_plain_models_loss_and_gradients(shape, dtype):
    plain = model_of(**shape)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    assert fuse(fused) == len(fused.blocks)
    tokens = torch.randint(plain.config.vocab_size, (3, plain.config.context))
    with_kernels = CrossEntropy()
    with_kernels.use_kernels()

    found = gradients(fused, with_kernels, tokens, dtype)
    usual = gradients(plain, CrossEntropy(), tokens, dtype)
    wanted = gradients(exact, CrossEntropy(), tokens, torch.float64)
    for name, tensor in wanted.items():
        assert found[name].dtype == torch.float32
        if dtype == torch.float32:
            assert off(found[name], tensor) < FLOAT32, name
        else:
            assert off(found[name], tensor) < 2 * off(usual[name], tensor) + BFLOAT16, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"smoothing": 0.1}, {"z": 1e-2}, {"cap": 5.0}, {"smoothing": 0.2, "z": 1e-2, "cap": 3.0}],
    ids=str,
)
def test_the_losses_kernel_equals_torchs_operations(options, dtype):
    torch.manual_seed(0)
    h, weight = torch.randn(50, 24), torch.randn(33, 24)
    targets = torch.randint(33, (50,))
    targets[::7] = IGNORED
    results = []
    for kernels, wide in ((True, False), (False, False), (False, True)):
        given = [x.double().requires_grad_() if wide else x.clone().requires_grad_() for x in (h, weight)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16 and not wide):
            loss = cross_entropy(*given, targets, LossOptions(**options, chunk=16, kernels=kernels))
        (loss * 3).backward()
        results.append([loss.detach(), *(x.grad for x in given)])
    for found, usual, exact in zip(*results, strict=True):
        most = FLOAT32 if dtype == torch.float32 else 2 * off(usual, exact) + BFLOAT16
        assert off(found, exact) < most


def test_logits_of_any_size_and_not_numbers_are_handled_as_by_torch():
    weight, targets = torch.eye(4), torch.tensor([0, 1, 2, 3, 0])
    h = torch.tensor(
        [[300.0, 0, 0, 0], [300.0, 0, 0, 0], [-1e4, -1e4, 1e4, 0], [0, 0, 0, -torch.inf], [torch.nan, 0, 0, 0]]
    )
    for rows in (slice(0, 3), slice(3, 4), slice(4, 5)):
        results = []
        for kernels in (True, False):
            given = h[rows].clone().requires_grad_()
            loss = cross_entropy(given, weight, targets[rows], LossOptions(kernels=kernels), reduction="sum")
            loss.backward()
            results.append((loss.detach(), given.grad))
        for found, usual in zip(*results, strict=True):
            torch.testing.assert_close(found, usual, equal_nan=True)


@pytest.mark.parametrize("target", [4, -1, -99])
def test_a_target_that_is_no_id_is_refused(target):
    h = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(IndexError, match=f"{target}"):
        cross_entropy(h, torch.randn(4, 8), torch.tensor([0, target, IGNORED]), LossOptions(kernels=True))


def test_no_counted_token_gives_a_loss_and_gradients_of_zero():
    h = torch.randn(3, 8, requires_grad=True)
    loss = cross_entropy(h, torch.randn(4, 8), torch.full((3,), IGNORED), LossOptions(kernels=True))
    loss.backward()
    assert loss == 0 and not h.grad.any()


def test_results_do_not_depend_on_the_number_of_threads():
    tokens = torch.randint(40, (4, 20))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model, criterion = model_of(), CrossEntropy()
        fuse(model)
        criterion.use_kernels()
        results.append(gradients(model, criterion, tokens, torch.bfloat16)["loss"])
    torch.set_num_threads(1)
    assert results[0].equal(results[1])


def test_the_weights_of_the_products_follow_those_that_are_trained():
    model, tokens = model_of(), torch.randint(40, (2, 20))
    fuse(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for change in (optimizer.step, lambda: model.load_state_dict(model_of(layers=2).state_dict())):
        gradients(model, CrossEntropy(), tokens, torch.bfloat16)
        change()
        model.zero_grad()
        fresh = copy.deepcopy(model)
        for block in fresh.blocks:
            block._wrapped = None
        fuse(fresh)
        found, wanted = (gradients(each, CrossEntropy(), tokens, torch.bfloat16) for each in (model, fresh))
        assert all(found[name].equal(wanted[name]) for name in wanted)


def test_evaluation_and_other_dtypes_take_the_plain_path():
    model = model_of()
    plain = copy.deepcopy(model)
    fuse(model)
    tokens = torch.randint(40, (2, 20))
    with torch.no_grad():
        assert model(tokens).equal(plain(tokens))
    assert model.double()(tokens).equal(plain.double()(tokens))


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.1},
        {"norm": "layer"},
        {"norm": "rms"},
        {"wiring": "sandwich"},
        {"position": Spec("rotary", interleaved=True)},
        {"position": "none"},
        {"attention": Spec("full", bias=False)},
        {"attention": Spec("full", qk_norm=True, bias=False)},
        {"attention": Spec("full", qk_norm=True, qk_gain=False)},
        {"attention": Spec("full", qk_norm=True, qk_gain=False, bias=False, soft_cap=5.0)},
        {"feed_forward": Spec("mlp", activation="gelu", bias=False)},
        {"feed_forward": Spec("mlp", activation="relu2")},
        {"feed_forward": "swiglu"},
        {"feed_forward": "none"},
    ],
    ids=str,
)
def test_a_block_with_another_part_is_left_to_its_modules(changes):
    model = GPT(ModelConfig(**PLAIN_SHAPE | changes))
    assert fuse(model) == 0
    assert not any(isinstance(block._wrapped, FusedBlock) for block in model.blocks)


def test_every_option_of_a_fused_block_is_known_to_the_fused_path():
    """An option that `fusible` and FusedBlock do not know would be ignored in training and used elsewhere. Whoever adds
    one computes it there, with a shape above, or refuses it, with a line above; then it is added here."""
    shapes = {"self", "d_model", "heads", "head_dim", "context", "layer", "position", "init", "branches", "norm", "dim"}
    known = {
        Attention: {"dropout", "window", "kv_heads", "qk_norm", "qk_gain", "qk_scale", "soft_cap", "bias"},
        MLP: {"dropout", "activation", "ratio", "d_ff", "bias"},
        RMSNorm: {"eps", "gain"},
        Rotary: {"base", "interleaved", "factor", "low_freq", "high_freq", "original"},
        PreNorm: set(),
        ValueEmbedding: {"vocab_size", "gate"},
    }
    for kind, options in known.items():
        assert set(inspect.signature(kind.__init__).parameters) - shapes == options, kind.__name__
    inputs = {"self", "x_BTD", "cache", "tokens_BT", "x0_BTD", "documents_BT"}
    assert set(inspect.signature(Block.compute).parameters) == inputs


def test_the_default_model_is_fusible():
    assert all(fusible(block) for block in GPT(ModelConfig()).blocks)


def test_recomputed_blocks_have_the_same_bits():
    tokens = torch.randint(40, (2, 20))
    results = []
    for again in (False, True):
        model = model_of(value_embedding=1)
        fuse(model)
        if again:
            recompute(model, model.units())
        results.append(gradients(model, CrossEntropy(), tokens, torch.bfloat16))
    assert all(results[0][name].equal(results[1][name]) for name in results[0])


def test_hooks_inside_a_block_are_called():
    model, seen = model_of(), []
    fuse(model)
    model(torch.randint(40, (2, 20)))
    model.blocks[0].feed_forward.up.register_forward_hook(lambda *_: seen.append(True))
    model(torch.randint(40, (2, 20)))
    assert len(seen) == 1


def test_a_fused_model_decodes_in_few_operations_too():
    model = model_of()
    plain = fast_enough(model)
    fuse(model)
    assert plain and fast_enough(model)


def test_a_norm_with_a_gain_keeps_torchs_operations():
    norm = RMSNorm(dim=8)
    norm.use_kernels()
    assert not norm.kernels


def test_a_kernel_refuses_numbers_that_are_not_next_to_each_other():
    with pytest.raises(AssertionError, match="next to each other"):
        calls.norm(torch.randn(4, 6).t(), 1e-6, torch.float32)
