"""Value embeddings: what a token is, added to attention's values by a look-up.

Letters: B batch, T queries, D d_model, G key-value heads, K head_dim, C = G K.
"""

from torch import Tensor

from isoflop.model.blocks.part import Embedding, Init, Linear, Part

GATE_INPUTS = 12  # features that the gate reads: nanochat's and modded-nanogpt's, at every width


class ValueEmbedding(Part):
    """A learned row per token, to be added to what W_V makes of it:

        v <- W_V h + g E[token],   g = 2 sigmoid(W_g h[:12]), a number per head; or 1

    A later layer's values then know the token itself, which Zhou et al. 2024 (2410.17897) do with the first layer's
    values; a table in their place is modded-nanogpt's (record of 2024-12-04), and the gate on a few features that of
    modded-nanogpt and nanochat since. The table adds V C parameters and no product: N and FLOPs leave it out.
    """

    def __init__(self, *, vocab_size: int, d_model: int, heads: int, head_dim: int, gate: bool, init: Init) -> None:
        super().__init__()
        self.heads = heads
        self.table = Embedding(vocab_size, heads * head_dim, init=init, role="value")
        self.gate = Linear(min(GATE_INPUTS, d_model), heads, bias=False, init=init, role="gate") if gate else None

    def forward(self, tokens_BT: Tensor, h_BTD: Tensor) -> Tensor:
        """What is added to values_BTC, given what attention reads."""
        values_BTC: Tensor = self.table(tokens_BT)
        if self.gate is None:
            return values_BTC
        gate_BTG = 2 * self.gate(h_BTD[..., : self.gate.in_features]).sigmoid()
        return (values_BTC.unflatten(-1, (self.heads, -1)) * gate_BTG.unsqueeze(-1)).flatten(-2)
