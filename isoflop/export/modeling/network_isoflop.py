"""A GPT that isoflop trained, in plain torch: token ids in, logits out.

    tokens_BT -> embedding (+ learned or sinusoidal positions) -> [norm] -> [smear]
              -> L blocks, in each of which the wiring joins attention and feed-forward to the residual stream
              -> [backout] -> [norm] -> head -> [logit soft cap] -> logits_BTV

`Network(described)` builds the model that "network" in config.json describes: sizes, and for each slot of a block
(norm, position, attention, feed_forward, wiring) the name of an entry with all its options. Without transformers:

    described = json.loads(Path("config.json").read_text())["network"]
    weights = safetensors.torch.load_file("model.safetensors")
    network = Network(described).eval()
    network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    logits_BTV = network(tokens_BT)

Letters: B batch, T tokens (queries), S keys, D width, H heads, G key-value heads, K width of a head, V vocabulary,
N tokens of all sequences, E experts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_isoflop import Attention, InputPosition, Latent, Norm, Options, Pass, ValueEmbedding

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "identity": lambda x: x,
}


class FeedForward(nn.Module):
    """mlp: W_down f(W_up x). gated: W_down (f(W_gate x) * W_up x)."""

    def __init__(self, D: int, width: int, activation: str, gated: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.activation, self.dropout = ACTIVATIONS[activation], dropout
        self.gate = nn.Linear(D, width, bias=bias) if gated else None
        self.up = nn.Linear(D, width, bias=bias)
        self.down = nn.Linear(width, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = self.activation(h) if self.gate is None else self.activation(self.gate(x)) * h
        return F.dropout(self.down(h), self.dropout, self.training)


class Experts(nn.Module):
    """The matrices of E feed-forward networks, stacked."""

    def __init__(self, D: int, width: int, experts: int, activation: str, gated: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate_EFD = nn.Parameter(torch.zeros(experts, width, D)) if gated else None
        self.up_EFD = nn.Parameter(torch.zeros(experts, width, D))
        self.down_EDF = nn.Parameter(torch.zeros(experts, D, width))

    def forward(self, x_ND: Tensor, e: int) -> Tensor:
        h = F.linear(x_ND, self.up_EFD[e])
        h = self.activation(h) if self.gate_EFD is None else self.activation(F.linear(x_ND, self.gate_EFD[e])) * h
        return F.linear(h, self.down_EDF[e])


class MoE(nn.Module):
    """The sum of a token's `top_k` likeliest experts, weighted by the router, and of the shared ones. isoflop's
    auxiliary losses of training are not part of this file."""

    def __init__(self, spec: Options, D: int, dropout: float) -> None:
        super().__init__()
        width, activation, gated = spec["d_ff"], spec["activation"], spec["gated"]
        self.top_k, self.normalise, self.dropout = spec["top_k"], spec["normalise"], dropout
        self.router = nn.Linear(D, spec["experts"], bias=False)
        self.experts = Experts(D, width, spec["experts"], activation, gated)
        shared = spec["shared"]
        self.shared = FeedForward(D, shared * width, activation, gated, bias=False, dropout=0.0) if shared else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        p_NE = F.linear(x_ND.float(), self.router.weight.float()).softmax(-1)
        weights_NK, chosen_NK = p_NE.topk(self.top_k, dim=-1)
        weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True) if self.normalise else weights_NK

        y_ND = torch.zeros_like(x_ND) if self.shared is None else self.shared(x_ND)
        for e in range(p_NE.shape[1]):
            rows, which = (chosen_NK == e).nonzero(as_tuple=True)
            y_e = self.experts(x_ND[rows], e) * weights_NK[rows, which].unsqueeze(-1).to(x_ND.dtype)
            y_ND = y_ND.index_add(0, rows, y_e)
        return F.dropout(y_ND.view(x_BTD.shape), self.dropout, self.training)


class Wiring(nn.Module):
    """pre, post, sandwich, parallel, none, rezero, deepnorm: how branches join the residual stream."""

    def __init__(self, kind: str, branches: int, make_norm: Callable[[], Norm], layers: int) -> None:
        super().__init__()
        self.kind, self.alpha = kind, (2 * layers) ** 0.25
        norms = {"rezero": 0, "parallel": min(branches, 1)}.get(kind, branches)
        self.norms = nn.ModuleList(make_norm() for _ in range(norms))
        self.norms_after = nn.ModuleList(make_norm() for _ in range(branches if kind == "sandwich" else 0))
        self.scale = nn.Parameter(torch.zeros(branches)) if kind == "rezero" else None

    def forward(self, x_BTD: Tensor, branches: list[Callable[[Tensor], Tensor]], now: Pass) -> Tensor:
        if self.kind == "parallel" and branches:
            h_BTD = self.norms[0](x_BTD, now.positions_BT)
            for branch in branches:
                x_BTD = x_BTD + branch(h_BTD)
            return x_BTD
        for n, branch in enumerate(branches):
            x_BTD = self.join(n, x_BTD, branch, now.positions_BT)
        return x_BTD

    def join(self, n: int, x: Tensor, f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
        if self.scale is not None:
            return x + self.scale[n] * f(x)
        norm = self.norms[n]
        if self.kind == "pre":
            return x + f(norm(x, at))
        if self.kind == "none":
            return f(norm(x, at))
        if self.kind == "sandwich":
            after: Tensor = self.norms_after[n](f(norm(x, at)), at)
            return x + after
        joined: Tensor = norm((self.alpha if self.kind == "deepnorm" else 1.0) * x + f(x), at)  # post, deepnorm
        return joined


class Smear(nn.Module):
    """x_t + a sigmoid(w x_t[:24]) x_(t-1): adds the embedding of the token before, which a cache holds like a key."""

    def __init__(self, D: int, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.share = nn.Parameter(torch.zeros(1))
        self.gate = nn.Parameter(torch.zeros(min(24, D)))

    def forward(self, x_BTD: Tensor, now: Pass) -> Tensor:
        held_BSD = x_BTD
        if now.cache is not None:
            held_B1SD, _ = now.cache.update(x_BTD.unsqueeze(1), x_BTD.unsqueeze(1)[..., :1], self.slot)
            held_BSD = held_B1SD.squeeze(1)
        earlier_BTD = F.pad(held_BSD[:, :-1], (0, 0, 1, 0))[:, -x_BTD.shape[1] :]
        earlier_BTD = earlier_BTD * (now.positions_BT > 0).unsqueeze(-1)  # a text may begin behind padding
        gate_BT1 = F.linear(x_BTD[..., : len(self.gate)], self.gate.unsqueeze(0)).sigmoid()
        return x_BTD + self.share * gate_BT1 * earlier_BTD


class Backout(nn.Module):
    """x - b x_mid: x_mid is the output of block L // 2, counted from 1; of one block, its input."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(1))


class Shortcut(nn.Module):
    """a x + b x0: the embedding x0, mixed into the input of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0]))


class Block(nn.Module):
    """One layer."""

    def __init__(self, described: Options, layer: int, slot: int) -> None:
        super().__init__()
        D, L, dropout = described["d_model"], described["layers"], described["dropout"]
        attention, network = attention_of(described, layer), described["feed_forward"]

        kind = {"full": Attention, "latent": Latent, "none": None}[attention["name"]]
        self.attention = None if kind is None else kind(attention, described, slot)
        every = described["value_embedding"]
        has_values = every and not (L - 1 - layer) % every
        self.values = ValueEmbedding(described, attention["kv_heads"]) if has_values else None

        self.feed_forward: nn.Module | None = None
        if network["name"] == "moe":
            self.feed_forward = MoE(network, D, dropout)
        elif network["name"] != "none":
            gated = network["name"] == "gated"
            self.feed_forward = FeedForward(D, network["d_ff"], network["activation"], gated, network["bias"], dropout)

        branches = (self.attention is not None) + (self.feed_forward is not None)
        self.wiring = Wiring(described["wiring"]["name"], branches, lambda: norm_of(described), L)
        self.shortcut = Shortcut() if described["embedding_shortcut"] else None

    def forward(self, x_BTD: Tensor, x0_BTD: Tensor, tokens_BT: Tensor, now: Pass) -> Tensor:
        attention, values, feed_forward = self.attention, self.values, self.feed_forward

        def attend_to(h_BTD: Tensor) -> Tensor:
            assert attention is not None
            y_BTD: Tensor = attention(h_BTD, now, *(() if values is None else (values(tokens_BT, h_BTD),)))
            return y_BTD

        branches = [] if attention is None else [attend_to]
        branches += [] if feed_forward is None else [feed_forward]
        if self.shortcut is not None:
            a, b = self.shortcut.mix.unbind()
            x_BTD = a * x_BTD + b * x0_BTD
        y_BTD: Tensor = self.wiring(x_BTD, branches, now)
        return y_BTD


def norm_of(described: Options) -> Norm:
    return Norm(described["norm"], described["d_model"], described["context"])


def attention_of(described: Options, layer: int) -> Options:
    """The attention of a layer: "alternating" has a pattern over depth."""
    attention: Options = described["attention"]
    pattern = attention["pattern"] if attention["name"] == "alternating" else [attention]
    chosen: Options = pattern[layer % len(pattern)]
    return chosen


class Network(nn.Module):
    """The model.

    Attributes:
        caching: how many tensors a cache holds: one per layer with attention, and smear's.
    """

    def __init__(self, described: Options) -> None:
        super().__init__()
        V, D, L = described["vocab_size"], described["d_model"], described["layers"]
        self.described, self.context, self.logit_cap = described, described["context"], described["logit_cap"]
        self.embedding = nn.Embedding(V, D)
        self.position = InputPosition(described["position"], D, self.context)
        self.embedding_norm = norm_of(described) if described["embedding_norm"] else None
        cached = [attention_of(described, layer)["name"] != "none" for layer in range(L)]
        self.caching = sum(cached) + described["smear"]
        self.smear = Smear(D, sum(cached)) if described["smear"] else None
        self.backout = Backout() if described["backout"] else None
        self.blocks = nn.ModuleList(Block(described, layer, sum(cached[:layer])) for layer in range(L))
        self.norm = norm_of(described) if described["final_norm"] else None
        self.head = None if described["tied_head"] else nn.Linear(D, V, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """logits_BTV: at each position those of the next token."""
        return self.logits(self.hidden(tokens_BT)[-1])

    def hidden(
        self,
        tokens_BT: Tensor,
        past: int = 0,
        visible_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: Any = None,
    ) -> list[Tensor]:
        """The input of every block, and the input of the head.

        Args:
            past: cached positions, in front of the tokens.
            visible_BS: False at padding, for cached positions and tokens; None: there is none.
            positions_BT: of the tokens; None: counted from the first visible token of each sequence.

        Raises:
            ValueError: if the positions do not fit in the context.
        """
        T = tokens_BT.shape[1]
        if past + T > self.context:
            raise ValueError(f"{past} + {T} positions do not fit in a context of {self.context}")
        if positions_BT is None and visible_BS is not None:
            positions_BT = (visible_BS.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        elif positions_BT is None:
            positions_BT = torch.arange(past, past + T, device=tokens_BT.device)[None]
        now = Pass(positions_BT, past + T, visible_BS, cache)

        x_BTD = self.position(self.embedding(tokens_BT), positions_BT)
        x_BTD = x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD, positions_BT)
        x_BTD = x_BTD if self.smear is None else self.smear(x_BTD, now)
        x_BTD = x0_BTD = F.dropout(x_BTD, self.described["dropout"], self.training)
        states = [x_BTD]
        for block in self.blocks:
            states.append(block(states[-1], x0_BTD, tokens_BT, now))
        if self.backout is not None:
            states[-1] = states[-1] - self.backout.share * states[len(self.blocks) // 2]
        if self.norm is not None:
            states[-1] = self.norm(states[-1], positions_BT)
        return states

    def logits(self, h_BTD: Tensor) -> Tensor:
        """h W_VD^T, soft-capped. A tied head is the embedding's weight."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits_BTV = F.linear(h_BTD, weight)
        return self.logit_cap * (logits_BTV / self.logit_cap).tanh() if self.logit_cap else logits_BTV
