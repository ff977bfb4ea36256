"""One decoding step of the usual GPT, in few operations.

A step of a small model takes one new position of each row through many small operations: calling them, and fresh memory
for their results, takes longer than the arithmetic. The same computation is written out here for the parts that most
models have, with

- one product for queries, keys and values, and one for gate and up, where their weights lie next to each other
  (layout.py) or are small enough to copy
- results in buffers that are allocated once
- queries and keys normalised and rotated together, by angles that are looked up once per step
- attention as two batched products, where torch's fused kernel would set up a tile per row and head for one query

Models with other parts are decoded by their modules (batch.py): `fusible` says which.

Letters: R rows, S positions in the cache, D d_model, H heads, G key-value heads, M = H / G, K head_dim.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.generate.cache import KVCache
from isoflop.generate.layout import joined
from isoflop.model.blocks.attend import soft_capped
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import ACTIVATIONS, MLP, Gated
from isoflop.model.blocks.norm import LayerNorm, NoNorm, RMSNorm
from isoflop.model.blocks.part import Linear, Start, product, rows_at
from isoflop.model.blocks.position import Position, Rotary
from isoflop.model.blocks.wiring import PreNorm
from isoflop.model.gpt import GPT, Block

COPIED = 2**19  # numbers: weights that are not next to each other are copied up to this size
MANY_QUERIES = 32  # rows times heads from which two batched products are faster than the fused kernel

Angles = tuple[float, ...]  # see angles_of

IN_PLACE: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    ACTIVATIONS["relu"]: torch.relu_,
    ACTIVATIONS["relu2"]: lambda x: x.relu_().square_(),
    ACTIVATIONS["silu"]: lambda x: F.silu(x, inplace=True),
}


def fusible(model: nn.Module) -> bool:
    """Whether `FusedStep` computes this model. Each part has to be exactly of a class that is written out here, since a
    subclass may compute something else, and to have no hooks, which would not be called."""
    if type(model) is not GPT or model.embedding.weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    modules = list(model.modules())
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return False
    dtype = model.embedding.weight.dtype
    if not all(linear_fits(module, dtype) for module in modules if isinstance(module, nn.Linear)):
        return False
    norm_fits = model.norm is None or type(model.norm) in (LayerNorm, RMSNorm, NoNorm)
    return norm_fits and all(block_fits(block) for block in model.blocks)


def linear_fits(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether it is an ordinary one: not divided among processes, and in the dtype of the embedding."""
    return type(linear) is Linear and type(linear.weight) is nn.Parameter and linear.weight.dtype == dtype


def block_fits(block: nn.Module) -> bool:
    if type(block) is not Block or block._wrapped is not None:
        return False
    if block.values is not None or block.shortcut is not None or type(block.wiring) is not PreNorm:
        return False
    attention, feed_forward = block.attention, block.feed_forward
    if type(attention) is not Attention or type(feed_forward) not in (MLP, Gated):
        return False
    if type(attention.position) not in (Position, Rotary) or attention.soft_cap:
        return False
    return all(type(norm) in (LayerNorm, RMSNorm, NoNorm) for norm in block.wiring.norms)


class FusedStep:
    """Decodes one token per row with a model that is `fusible`. Its weights must not change meanwhile.

    Args:
        rows: the most rows of a call.
    """

    def __init__(self, model: GPT, rows: int) -> None:
        self.model, self.rows = model, rows
        self.layers = [Layer(block) for block in model.blocks]
        self.buffers: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self.angles: dict[Angles, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int, Tensor | None] = {}

    @torch.inference_mode()
    def __call__(self, tokens_R: Tensor, cache: KVCache) -> Tensor:
        """The logits (R, V) of the token after these, which follow those in the cache. Valid until the next call."""
        model, R = self.model, len(tokens_R)
        start = cache.start(1)
        self.angles, self.masks = {}, {}
        x_RD = model.embed(tokens_R.unsqueeze(1), start).squeeze(1)  # a copy, to which the layers add

        for layer in self.layers:
            y_RC = self.attend(layer, self.normalised(layer.norms[0], x_RD), start, cache)
            layer.out.add_to(x_RD, y_RC)
            hidden_RF = self.widen(layer, self.normalised(layer.norms[1], x_RD))
            layer.down.add_to(x_RD, hidden_RF)

        cache.advance(1)
        h_RD = x_RD if model.norm is None else self.normalised(model.norm, x_RD)
        weight = model.head_weight
        if weight.dtype == torch.bfloat16:
            logits_RV = product(h_RD, weight)
        else:
            logits_RV = torch.mm(h_RD, weight.t(), out=self.room("logits", R, weight.shape[0], like=x_RD))
        return soft_capped(logits_RV, model.logit_cap)

    def room(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """A view of a buffer, which is reused by everything of that name."""
        if (name, shape) not in self.views:
            numbers = math.prod(shape)
            room = self.buffers[name].numel() if name in self.buffers else 0
            if room < numbers:  # the scores grow with the length
                most = max(2 * room, numbers // shape[0] * max(shape[0], self.rows))
                self.buffers[name] = torch.empty(most, dtype=like.dtype, device=like.device)
                self.views = {key: view for key, view in self.views.items() if key[0] != name}
            elif len(self.views) > 64:  # of numbers of rows and lengths that have passed
                self.views = {}
            self.views[name, shape] = self.buffers[name][:numbers].view(shape)
        return self.views[name, shape]

    def normalised(self, norm: nn.Module, x_RD: Tensor) -> Tensor:
        if not isinstance(norm, RMSNorm):
            h_RD: Tensor = norm(x_RD)
            return h_RD
        return rms_norm(x_RD, norm.eps, norm.weight, self.room("normalised", *x_RD.shape, like=x_RD))

    def attend(self, layer: "Layer", h_RD: Tensor, start: Start, cache: KVCache) -> Tensor:
        """The attention's output before its last product, (R, H K)."""
        R, H, G, K = len(h_RD), layer.heads, layer.kv_heads, layer.head_dim

        # queries, keys and values; the first two in one tensor
        qkv_RC = layer.qkv(h_RD, self.room("qkv", R, (H + 2 * G) * K, like=h_RD))
        both_RNK = qkv_RC[:, : (H + G) * K].unflatten(1, (H + G, K))
        v_RGTK = qkv_RC[:, (H + G) * K :].view(R, G, 1, K)
        if layer.qk_eps is not None:
            both_RNK = rms_norm(both_RNK, layer.qk_eps, layer.qk_gain_NK, self.room("qk", R, H + G, K, like=h_RD))
        if layer.rotary is not None:
            both_RNK = self.rotated(layer.rotary, both_RNK, start)
        k_RGTK = both_RNK[:, H:].unsqueeze(2)
        k_RGSK, v_RGSK = cache.append(layer.number, k_RGTK, v_RGTK, layer.window)
        S = k_RGSK.shape[2]
        hidden_R11S = self.hidden(cache, S, h_RD)

        # softmax(q k) v; the queries that share a head of keys are M rows of one product
        if R * H < MANY_QUERIES or h_RD.dtype == torch.bfloat16:
            q_RGMK = both_RNK[:, :H].unflatten(1, (G, H // G))
            y_RGMK = F.scaled_dot_product_attention(q_RGMK, k_RGSK, v_RGSK, attn_mask=hidden_R11S)
            return y_RGMK.reshape(R, H * K)
        q_RHK = torch.mul(both_RNK[:, :H], K**-0.5, out=self.room("q", R, H, K, like=h_RD))
        scores_RGMS = self.room("scores", R, G, H // G, S, like=h_RD)
        y_RHK = self.room("y", R, H, K, like=h_RD)
        scores_AMS = scores_RGMS.view(R * G, H // G, S)
        torch.bmm(q_RHK.view(R * G, H // G, K), k_RGSK.flatten(0, 1).transpose(1, 2), out=scores_AMS)
        if hidden_R11S is not None:
            scores_RGMS.add_(hidden_R11S)
        torch.softmax(scores_AMS, dim=-1, out=scores_AMS)
        torch.bmm(scores_AMS, v_RGSK.flatten(0, 1), out=y_RHK.view(R * G, H // G, K))
        return y_RHK.view(R, H * K)

    def rotated(self, rotary: Rotary, x_RNK: Tensor, start: Start) -> Tensor:
        """Rotary.rotate for heads N of one position each."""
        K = x_RNK.shape[-1]
        first, second = (slice(0, K, 2), slice(1, K, 2)) if rotary.interleaved else (slice(K // 2), slice(K // 2, K))
        key = angles_of(rotary)
        if key not in self.angles:
            cos_RTK, sin_RTK = (rows_at(table, start, 1).to(x_RNK.dtype) for table in (rotary.cos_TK, rotary.sin_TK))
            self.angles[key] = cos_RTK, sin_RTK[..., second]
        cos_RTK, sin_RTF = self.angles[key]

        y_RNK = torch.mul(x_RNK, cos_RTK, out=self.room("rotated", *x_RNK.shape, like=x_RNK))
        y_RNK[..., first].addcmul_(x_RNK[..., second], sin_RTF, value=-1)
        y_RNK[..., second].addcmul_(x_RNK[..., first], sin_RTF)
        return y_RNK

    def hidden(self, cache: KVCache, S: int, like: Tensor) -> Tensor | None:
        """What is added to the scores of the last S positions: minus infinity at padding. None: there is none."""
        if S not in self.masks:
            visible_RS = cache.visible(S)
            mask = None
            if visible_RS is not None:
                mask = like.new_zeros(visible_RS.shape).masked_fill_(~visible_RS, -torch.inf)[:, None, None]
            self.masks[S] = mask
        return self.masks[S]

    def widen(self, layer: "Layer", h_RD: Tensor) -> Tensor:
        """The feed-forward network before its last product, (R, F)."""
        wide_RF = layer.up(h_RD, self.room("wide", len(h_RD), layer.width, like=h_RD))
        if not layer.gated:
            return layer.activation(wide_RF)
        gate_RF, up_RF = wide_RF.chunk(2, dim=1)
        return torch.mul(layer.activation(gate_RF), up_RF, out=self.room("gated", *up_RF.shape, like=h_RD))


def angles_of(rotary: Rotary) -> Angles:
    """What the angles depend on: layers with the same look them up once per step."""
    options = (rotary.base, rotary.factor, rotary.low_freq, rotary.high_freq, rotary.original)
    return (*options, rotary.interleaved, *rotary.cos_TK.shape)


class Layer:
    """The weights of a block as `FusedStep` uses them, and its shapes."""

    def __init__(self, block: Block) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.norms = list(block.wiring.norms)
        self.number, self.window = attention.layer, attention.window
        self.heads, self.kv_heads = attention.heads, attention.kv_heads
        self.head_dim = attention.q.out_features // attention.heads

        self.qkv = Product([attention.q, attention.k, attention.v])
        self.out = Product([attention.out])
        self.qk_eps, self.qk_gain_NK = None, None
        if attention.q_norm is not None:
            self.qk_eps = attention.q_norm.eps
            if attention.q_norm.weight is not None:
                gains = (attention.q_norm.weight, self.heads), (attention.k_norm.weight, self.kv_heads)
                self.qk_gain_NK = torch.cat([gain.detach().expand(heads, -1) for gain, heads in gains])
        self.rotary = attention.position if isinstance(attention.position, Rotary) else None

        self.gated = isinstance(feed_forward, Gated)
        self.up = Product([feed_forward.gate, feed_forward.up] if self.gated else [feed_forward.up])
        self.down = Product([feed_forward.down])
        self.width = feed_forward.up.out_features * (2 if self.gated else 1)
        self.activation = IN_PLACE.get(feed_forward.activation, feed_forward.activation)


class Product:
    """y = x W^T (+ b) with the weights of one or several layers on the same input: as one product where these lie next
    to each other or are small, else as one each."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        one = joined(weights)
        if one is None and sum(weight.numel() for weight in weights) <= COPIED:
            one = torch.cat(weights)
        self.weights = weights if one is None else [one]
        self.biases: Sequence[Tensor | None] = biases or [None] * len(layers)
        if one is not None:
            self.biases = [torch.cat(biases) if biases else None]

    def __call__(self, x_RD: Tensor, room_RC: Tensor) -> Tensor:
        """y, (R, C): in `room_RC`, or in memory of its own."""
        if x_RD.dtype == torch.bfloat16:  # which `product` reads faster than mm
            parts = [product(x_RD, *both) for both in zip(self.weights, self.biases, strict=True)]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        begin = 0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            end = begin + len(weight)
            room = room_RC if len(self.weights) == 1 else room_RC[:, begin:end]
            if bias is None:
                torch.mm(x_RD, weight.t(), out=room)
            else:
                torch.addmm(bias, x_RD, weight.t(), out=room)
            begin = end
        return room_RC

    def add_to(self, sum_RC: Tensor, x_RD: Tensor) -> None:
        """Add y to a tensor. Of a product with one layer."""
        weight, bias = self.weights[0], self.biases[0]
        if x_RD.dtype == torch.bfloat16:
            sum_RC.add_(product(x_RD, weight, bias))
            return
        if bias is not None:
            sum_RC.add_(bias)
        sum_RC.addmm_(x_RD, weight.t())


def rms_norm(x: Tensor, eps: float, gain: Tensor | None, out: Tensor) -> Tensor:
    """RMSNorm.forward, into `out`."""
    exact = torch.promote_types(x.dtype, torch.float32)
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    r = r.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
    y = torch.mul(x, r, out=out)
    return y if gain is None else y.mul_(gain.to(y.dtype))
