"""Counts against published numbers."""

import csv
import time

import pytest

from isoflop.errors import UserError
from isoflop.model.config import ModelConfig
from isoflop.model.count import CONVENTIONS, build_on_meta, flops_per_token, parameters
from isoflop.model.presets import PRESETS, gpt2, llama

# GPT-3's table D.1: parameters in millions, PF-days and training FLOPs for 300B tokens, as printed.
GPT3 = {
    "gpt3-small": (125, 2.60, 2.25e20),
    "gpt3-medium": (356, 7.42, 6.41e20),
    "gpt3-large": (760, 15.8, 1.37e21),
    "gpt3-xl": (1_320, 27.5, 2.38e21),
    "gpt3-2.7b": (2_650, 55.2, 4.77e21),
    "gpt3-6.7b": (6_660, 139, 1.20e22),
    "gpt3-13b": (12_850, 268, 2.31e22),
    "gpt3-175b": (174_600, 3_640, 3.14e23),
}
PF_DAY = 1e15 * 24 * 3600

# Chinchilla's table A4: layers, d_model, heads, width of a head; the ratio to 6 N D as printed there, worked out
# without the vocabulary, and by appendix F as it is printed.
A4 = [
    ((10, 640, 10, 64), 1.03, 1.025, 1.58),
    ((20, 1024, 16, 64), 1.10, 1.101, 1.32),
    ((24, 1280, 10, 128), 1.08, 1.084, 1.23),
    ((26, 1792, 14, 128), 1.04, 1.045, 1.14),
    ((28, 2048, 16, 128), 1.03, 1.033, 1.12),
    ((40, 3584, 28, 128), 0.99, 0.994, 1.03),
]


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("gpt1", 116_534_784),
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-33b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("smollm2-135m", 134_515_008),
        ("stories-260k", 260_032),
    ],
)
def test_published_counts_are_exact(name, total):
    assert parameters(PRESETS[name]()).total == total


@pytest.mark.parametrize("name", GPT3)
def test_gpt3_rows(name):
    millions, pf_days, flops = GPT3[name]
    config = PRESETS[name]()
    total, L, d = parameters(config).total, config.layers, config.d_model
    assert total == L * (12 * d**2 + 13 * d) + 50_257 * d + 2048 * d + 2 * d
    # Printed with 3 or 4 digits: 1,315.7M appears as 1,320.
    assert total / 1e6 == pytest.approx(millions, abs=0.5 if millions < 1000 else 5.5)
    trained = flops_per_token(config, convention="6n_all") * 300e9
    assert trained == pytest.approx(flops, rel=0.005)
    assert trained / PF_DAY == pytest.approx(pf_days, rel=0.005)


def test_gpt3_alternates_dense_and_banded_layers():
    blocks = build_on_meta(PRESETS["gpt3-small"]()).blocks
    assert [block.attention.window for block in blocks] == [0, 256] * 6


def chinchilla_n(layers, d_model, heads, kv_size, d_ff):
    """The parameters of table A9, by the formula that hits all its rows."""
    return layers * (5 * d_model * heads * kv_size + 2 * d_model * d_ff) + 32_000 * d_model


@pytest.mark.parametrize(
    ("name", "printed", "total"),
    [("chinchilla-70b", 70.06e9, 70_057_992_192), ("gopher-280b", 279.7e9, 279_702_421_504)],
)
def test_chinchilla_and_gopher(name, printed, total):
    config = PRESETS[name]()
    counted = parameters(config)
    d = config.d_model
    formula = chinchilla_n(config.layers, d, config.heads, config.head_width, 4 * d)
    assert counted.matmul == formula == pytest.approx(printed, rel=1e-3)
    assert counted.total == total == formula + (2 * config.layers + 1) * d + 2 * config.layers * d  # gains; u and v


def test_all_shapes_of_table_a9(scaling_data):
    rows = list(csv.DictReader((scaling_data / "chinchilla_table_a9.csv").open()))
    assert len(rows) == 50
    for row in rows:
        printed, d, d_ff, kv, heads, layers = (int(value) for value in row.values())
        n = chinchilla_n(layers, d, heads, kv, d_ff) / 1e6
        assert n == pytest.approx(printed, rel=0.0025, abs=0.5 if printed < 1000 else 0), row
        if printed in (44, 425, 13_735):  # heads that are not d / kv wide, too
            built = PRESETS["chinchilla-70b"](
                layers=layers,
                d_model=d,
                heads=heads,
                head_dim=kv,
                feed_forward={"name": "mlp", "d_ff": d_ff, "bias": False},
            )
            assert parameters(built).matmul == chinchilla_n(layers, d, heads, kv, d_ff)


@pytest.mark.parametrize(("shape", "printed", "without_vocabulary", "as_printed"), A4)
def test_chinchilla_table_a4(shape, printed, without_vocabulary, as_printed):
    layers, d_model, heads, kv = shape
    config = PRESETS["chinchilla-70b"](layers=layers, d_model=d_model, heads=heads, head_dim=kv)
    six_nd = flops_per_token(config, convention="6n")
    a4, f = (flops_per_token(config, convention=name) / six_nd for name in ("chinchilla_a4", "chinchilla_f"))
    assert round(a4, 2) == printed
    assert a4 == pytest.approx(without_vocabulary, abs=0.0015)
    assert f == pytest.approx(as_printed, abs=0.0055)


def test_chinchilla_f_is_the_printed_formula():
    S, V, d, L, h, hk = 2048, 32_000, 8192, 80, 64, 8192
    layer = 6 * S * d * hk + 2 * S**2 * hk + 3 * h * S**2 + 2 * S**2 * hk + 2 * S * hk * d + 4 * S * d * 4 * d
    forward = 2 * S * V * d + L * layer + 2 * S * d * V
    assert flops_per_token(PRESETS["chinchilla-70b"](), convention="chinchilla_f") == 3 * forward / S


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_on_meta_at_once(name):
    build_on_meta(ModelConfig())  # what torch loads at its first use of the meta device is not ours
    started = time.process_time()
    build_on_meta(PRESETS[name]())
    assert time.process_time() - started < 2.0


def test_a_band_counts_the_positions_inside_its_window():
    def scores(attention, convention, context=1024):
        config = ModelConfig(attention=attention, layers=1, heads=2, d_model=128, context=1024)
        return flops_per_token(config, context, convention) - flops_per_token(config, 1, convention)

    band, full = {"name": "banded", "window": 256}, "full"
    seen = sum(min(t, 256) for t in range(1, 1025)) / 1024
    assert scores(band, "executed") == pytest.approx(12 * 128 * (seen - 1))
    assert scores(full, "executed") == pytest.approx(12 * 128 * (1025 / 2 - 1))
    assert scores(band, "palm") == 12 * 128 * (256 - 1)


def test_what_each_field_counts():
    n = parameters(gpt2())
    assert n.embedding == n.head == 50_257 * 768  # one tensor, which both looks up and multiplies
    assert n.position == 1024 * 768
    assert n.matmul == 12 * 12 * 768**2 + n.head
    assert n.total == n.embedding + n.position + n.blocks + 2 * 768
    untied = parameters(gpt2(tied_head=True)), parameters(gpt2(tied_head=False))
    assert untied[1].total - untied[0].total == n.head and untied[1].matmul == untied[0].matmul


def test_conventions_of_gpt2():
    config, blocks, head = gpt2(), 12 * 12 * 768**2, 50_257 * 768
    attention = 12 * 12 * 12 * 64 * 1024  # 12 L H Q T
    assert flops_per_token(config, convention="6n") == 6 * (blocks + head)
    assert flops_per_token(config, convention="6n_all") == 6 * 124_439_808
    assert flops_per_token(config, convention="6n_blocks") == 6 * blocks
    assert flops_per_token(config, convention="palm") == 6 * (blocks + head) + attention
    assert flops_per_token(config, convention="executed") == pytest.approx(
        6 * (blocks + head) + attention / 2, rel=1e-3
    )


def test_palm_gives_the_papers_utilisation():
    """PaLM 540B (2204.02311, tables 1 and 3): 540.35B parameters, 238.3K tokens/s on 6,144 chips of 275 TFLOP/s are a
    utilisation of 46.2 %, 45.7 % without attention (appendix B)."""
    config = llama(
        vocab_size=256_000,
        layers=118,
        d_model=18_432,
        heads=48,
        head_dim=256,
        kv_heads=1,
        d_ff=4 * 18_432,
        wiring="parallel",
        tied_head=True,
    )
    assert parameters(config).matmul == pytest.approx(540.35e9, rel=1e-4)
    seconds = 238.3e3 / (6144 * 275e12)
    assert round(100 * seconds * flops_per_token(config, convention="palm"), 1) == 46.2
    assert round(100 * seconds * flops_per_token(config, convention="6n"), 1) == 45.7


def test_sequence_length_enters_attention_alone():
    config = ModelConfig()
    for convention in CONVENTIONS:
        longer = flops_per_token(config, 512, convention) - flops_per_token(config, 256, convention)
        scores = 12 * config.layers * config.d_model * 256
        appendix_f = scores + 9 * config.layers * config.heads * 256  # the softmax too
        expected = {"palm": scores, "executed": scores / 2, "chinchilla_f": appendix_f, "chinchilla_a4": appendix_f}
        assert longer == expected.get(convention, 0)


def test_grouped_queries_save_weights_and_not_scores():
    full, grouped = ModelConfig(), ModelConfig(attention={"name": "full", "kv_heads": 1, "bias": False})
    saved = 4 * 2 * 128 * 64
    assert parameters(full).matmul - parameters(grouped).matmul == saved
    assert flops_per_token(full, convention="palm") - flops_per_token(grouped, convention="palm") == 6 * saved


def test_an_unknown_convention_is_named():
    with pytest.raises(UserError, match=r"'plam' is not one of 6n, .*; did you mean palm"):
        flops_per_token(ModelConfig(), convention="plam")
