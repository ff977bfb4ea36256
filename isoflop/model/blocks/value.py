"""Value embeddings: a learned vector per token, added to attention's values.

Letters: B batch, T queries, D d_model, G key-value heads, K head_dim, C = G K.
"""

from torch import Tensor

from isoflop.model.blocks.part import Embedding, Init, Linear, Part

GATE_INPUTS = 12  # features that the gate reads: nanochat's and modded-nanogpt's, at every width


class ValueEmbedding(Part):
    """A learned row per token that is added to the values:

        v <- W_V h + g E[token],   g = 2 sigmoid(W_g h[:12]), a number per head; or 1

    So the values of a late layer depend directly on the token. Zhou et al. 2024 (2410.17897) add the first layer's
    values; modded-nanogpt (record of 2024-12-04) uses a table in their place, and later, like nanochat, a gate on a few
    features. The table adds V C parameters and no matrix product: N and FLOPs do not count it.
    """

    def __init__(self, *, vocab_size: int, d_model: int, heads: int, head_dim: int, gate: bool, init: Init) -> None:
        super().__init__()
        self.heads = heads
        self.table = Embedding(vocab_size, heads * head_dim, init=init, role="value")
        self.gate = Linear(min(GATE_INPUTS, d_model), heads, bias=False, init=init, role="gate") if gate else None

    def forward(self, tokens_BT: Tensor, h_BTD: Tensor) -> Tensor:
        """Added to values_BTC, given attention's input h_BTD."""
        values_BTC: Tensor = self.table(tokens_BT)
        if self.gate is None:
            return values_BTC
        gate_BTG = 2 * self.gate(h_BTD[..., : self.gate.in_features]).sigmoid()
        return (values_BTC.unflatten(-1, (self.heads, -1)) * gate_BTG.unsqueeze(-1)).flatten(-2)
