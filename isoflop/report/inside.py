"""The diagnostics of a run (diagnostics.jsonl): heat maps by layer and step, and measures of the whole model."""

import math
from collections.abc import Sequence

import numpy as np

from isoflop.records import DiagnosticsLine
from isoflop.report import heat
from isoflop.report.facts import Facts, column
from isoflop.report.figures import trace
from isoflop.report.style import section
from isoflop.report.words import short, text

# measure -> its title, its meaning, and whether it is drawn by its logarithm
BY_LAYER: dict[str, tuple[str, str, bool]] = {
    "gradient_norm": ("Gradient norm", "of the loss by the layer's weights", True),
    "activation_norm": ("Activation norm", "root mean square of the layer's output", True),
    "rank_residual": ("Rank residual", "0 if all positions are equal (Dong et al. 2021)", False),
    "attention_entropy": ("Attention entropy", "1 if attention is uniform over the visible positions", False),
    "update_ratio": ("Update-to-weight ratio", "norm of the update divided by the norm of the weights", True),
    "covariate_shift": (
        "Covariate shift",
        "change of the gradient when the layers below are updated (Santurkar et al. 2018)",
        True,
    ),
    "shift_cosine": ("Gradient cosine", "between the gradients before and after the layers below are updated", False),
    "load_entropy": ("Expert load entropy", "1 if all experts receive the same number of tokens", False),
}
MOST_LAYERS = 200
OF_THE_MODEL = {
    "sharpness": "Sharpness: second derivative of the loss along its gradient",
    "leakage": "Leakage: change at earlier positions when the last token changes",
}


def inside(facts: Facts) -> str:
    """The section; empty for a run without diagnostics."""
    lines = [line for line in facts.run.diagnostics if line.tokens is not None]
    if not lines:
        return ""

    names = dict.fromkeys(name for line in lines for name in line.by_layer)
    ordered = [name for name in BY_LAYER if name in names] + [name for name in names if name not in BY_LAYER]
    maps = "".join(one_map(lines, name, index) for index, name in enumerate(ordered))
    figures = "".join(one_trace(lines, name) for name in OF_THE_MODEL)
    lead = "On the same few sequences each time, by layer (input at the bottom) and tokens read; darker is higher."
    return section("Inside the model", lead, f'<div class="pair">{maps}{figures}</div>')


def one_map(lines: Sequence[DiagnosticsLine], name: str, index: int) -> str:
    title, meaning, by_logarithm = BY_LAYER.get(name, (name.replace("_", " "), "", False))
    layers = list(dict.fromkeys(layer for line in lines for layer in line.by_layer.get(name, {})))
    layers = layers[:MOST_LAYERS]
    layers.sort(key=lambda layer: {"input": -1.0, "output": math.inf}.get(layer, number(layer)))
    values_LS = np.array([[line.by_layer.get(name, {}).get(layer, math.nan) for line in lines] for layer in layers])
    finite = values_LS[np.isfinite(values_LS)]
    if not finite.size:
        return ""

    svg = heat.layers_by_step(
        column(lines, "tokens"), layers, values_LS, f"inside-{index}", f"{title} by layer and step", by_logarithm
    )
    scale = f"{short(float(finite.min()))} to {short(float(finite.max()))}{', logarithmic' if by_logarithm else ''}"
    caption = f"{text(meaning)}; {scale}" if meaning else scale
    above = f'<figcaption class="above">{text(title)}</figcaption>'
    return f"<figure>{above}{svg}<figcaption>{caption}</figcaption></figure>"


def one_trace(lines: Sequence[DiagnosticsLine], name: str) -> str:
    values = np.array([line.whole.get(name, math.nan) for line in lines])
    if not np.isfinite(values).any():
        return ""
    svg = trace(column(lines, "tokens"), values, f"inside-{name}", OF_THE_MODEL[name])
    return f'<figure><figcaption class="above">{OF_THE_MODEL[name]}</figcaption>{svg}</figure>'


def number(layer: str) -> float:
    return float(layer) if layer.isdecimal() and len(layer) < 7 else 0.0
