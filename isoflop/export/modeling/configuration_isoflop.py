"""The configuration of a GPT that isoflop trained, for transformers.

"network" in config.json describes the whole model (network_isoflop.py). The usual names of its sizes are next to it,
for the code of others.
"""

from typing import Any, ClassVar

from transformers import PretrainedConfig

# The usual name in transformers -> the name in "network"
SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context",
    "hidden_size": "d_model",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "head_dim": "head_dim",
    "tie_word_embeddings": "tied_head",
}


class IsoflopConfig(PretrainedConfig):
    """config.json.

    Args:
        network: see network_isoflop.py. Other values are transformers' own.
    """

    model_type = "isoflop"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    def __init__(self, network: dict[str, Any] | None = None, **values: Any) -> None:
        self.network = network or {}
        for theirs, ours in SIZES.items():
            if ours in self.network:
                values.setdefault(theirs, self.network[ours])
        super().__init__(**values)
