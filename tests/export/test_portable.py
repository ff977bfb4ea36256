"""`--set model=portable`: blocks that every format holds, whatever the default becomes, and what that costs."""

import json
import re
from pathlib import Path

import pytest
import torch

from isoflop import export
from isoflop.config import override, to_dict
from isoflop.export.bundle import Bundle, weights_of
from isoflop.export.formats import FORMATS
from isoflop.model.config import SIZES, ModelConfig
from isoflop.model.gpt import GPT
from isoflop.model.presets import PRESETS, portable
from isoflop.plan import portability
from isoflop.plan.asked import Asked
from isoflop.plan.destinations import destinations
from isoflop.plan.portability import cost_of_portable, differences
from isoflop.terminal import reasons
from isoflop.trainer import RunConfig

SHAPE = {"vocab_size": 320, "context": 16, "layers": 2, "d_model": 32, "heads": 2}
ROOT = Path(__file__).parents[2]


def test_portable_stays_what_it_is():
    """Runs that were trained for a format must be repeatable: a change of the default does not change this."""
    blocks = {name: value for name, value in to_dict(portable()).items() if name not in SIZES}
    assert blocks == {
        "norm": {"name": "rms", "gain": False},
        "position": "rotary",
        "attention": {"name": "full", "bias": False, "qk_gain": False, "qk_norm": True},
        "feed_forward": {"name": "mlp", "activation": "relu2", "bias": False},
        "wiring": "pre",
        "init": "modern",
        "embedding_norm": False,
        "embedding_shortcut": False,
        "value_embedding": 0,
        "value_gate": True,
        "final_norm": True,
        "tied_head": False,
        "logit_cap": 0.0,
        "shortcut_residual": [1.0, 1.0],
        "shortcut_embedding": [0.0, 0.0],
        "smear": False,
        "backout": False,
        "dropout": 0.0,
    }


@pytest.mark.parametrize("target", FORMATS)
def test_every_format_that_holds_a_trained_tokenizer_holds_portable(target, tokenizer, tmp_path):
    if FORMATS[target].tokenizer(tokenizer.to_json()):
        assert target == "llama2c"  # the only one whose tokenizers are of another kind
        return
    if target == "gguf":
        pytest.importorskip("gguf", reason="needs the gguf package: pip install 'isoflop[gguf]'")
    model = GPT(portable(**SHAPE))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    bundle = Bundle(model.config, {n: p.detach() for n, p in weights_of(model).items()}, tokenizer.to_json())
    architecture, difference = export.write(bundle, target, tmp_path, "x")
    assert architecture == "apertus" and difference < 1e-5
    found = export.outlook(model.config, tokenizer.to_json())[target]
    assert found.possible and not found.own_code


def test_an_assignment_keeps_the_sizes():
    sized = ["model.layers=7", "model.d_model=96", "model.heads=3", "model.vocab_size=900", "model.context=64"]
    config = override(RunConfig(), [*sized, "model.value_embedding=2", "model.norm=layer", "model=portable"]).model
    assert config == portable(layers=7, d_model=96, heads=3, vocab_size=900, context=64)
    assert override(RunConfig(), ["model=portable", "model.value_embedding=2"]).model.value_embedding == 2
    assert override(RunConfig(), ["model=gpt2"]).model == PRESETS["gpt2"]()  # a shape as a whole


def test_the_plan_still_chooses_the_sizes():
    for asked in (Asked.of(["model=portable"]), Asked.of(['model="portable"'])):
        assert not any(asked.names(f"model.{name}") for name in SIZES)
        assert not any(asked.within(f"model.{name}") for name in SIZES)
        assert asked.names("model.norm") and asked.within("model.norm") == ("model",)
    assert Asked.of(["model=gpt2"]).names("model.layers")


def tables() -> dict[str, dict[str, float]]:
    """The differences of each table of docs/recipe.md, by the row's name; the default's own is 0."""
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    found = {}
    for name, body in re.findall(r"<!-- bench: (recipe-\S+) -->\n(.*?)<!-- end of bench", page, re.DOTALL):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[:1] == "|"]
        found[name] = {"": 0.0} | {row[0]: float(row[2]) for row in rows[2:]}
    return found


def test_every_cost_on_record_is_in_the_recipes_tables():
    measured = tables()
    for row in portability.table()["rows"]:
        assert row["model"] == differences(
            override(ModelConfig(), [f"{k}={json.dumps(v)}" for k, v in row["model"].items()])
        )
        for entry in row["measured"]:
            table = measured[entry["table"]]
            assert entry["bits_per_byte"] == pytest.approx(table[entry["without"]] - table[entry["with"]], abs=1e-9)
            assert entry["size"].replace(" ", "") in entry["table"]


def test_the_cost_is_that_of_exactly_these_blocks():
    model = portable(value_embedding=2)
    cost = cost_of_portable(model)
    assert cost is not None and (cost.low, cost.high) == (0.0168, 0.0352)
    assert cost.in_words().startswith("for 0.017 to 0.035 bits per byte more (measured at 3 x 96 and 2 x 48")
    better = cost_of_portable(portable(wiring="sandwich"))
    assert better is not None and better.in_words().startswith("for 0.012 bits per byte less")
    assert cost_of_portable(portable(value_embedding=3)) is None
    assert cost_of_portable(portable(value_embedding=2, logit_cap=15.0)) is None
    assert cost_of_portable(portable()) is None and cost_of_portable(portable(value_gate=False)) is None


def line_of(*assignments: str, tokenizer: str = ""):
    return destinations(override(RunConfig(), assignments), tokenizer)


def test_the_line_says_where_the_model_can_go_and_what_portable_costs(tokenizer):
    text = tokenizer.to_json()
    native = line_of("model=portable", tokenizer=text)
    assert native.words == "Hugging Face (apertus), GGUF (apertus)" and not native.own_code
    own = line_of("model.value_embedding=2", tokenizer=text)
    assert (
        own.words == "Hugging Face with its own code" and own.own_code == ("hf",) and own.formats == {"hf": "isoflop"}
    )
    assert "not for GGUF, llama.cpp, vLLM: --set model=portable makes it fit these, for 0.017 to 0.035" in own.reason
    assert (own.low, own.high) == (0.0168, 0.0352)
    assert line_of("model.value_embedding=2", "model=portable", tokenizer=text).words == native.words
    unknown = line_of("model.norm=batch")
    assert unknown.reason.endswith("what that costs in loss was not measured") and unknown.low is None
    for first, why in reasons([("  export", own.words, own.reason)], 80):
        assert len(first) + len(why) <= 80


def test_sizes_that_portable_cannot_have_get_the_settings_instead():
    odd = line_of("model.value_embedding=2", "model.position=alibi", "model.head_dim=7")
    assert "model=portable" not in odd.reason and "GGUF with --set" in odd.reason
