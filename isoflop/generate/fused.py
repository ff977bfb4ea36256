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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.generate.cache import KVCache
from isoflop.generate.layout import for_kernels, lay_out_for_kernels
from isoflop.generate.product import Product
from isoflop.kernels import calls, decoding
from isoflop.kernels.compiled import available
from isoflop.model.blocks.attend import soft_capped
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import ACTIVATIONS, MLP, Gated
from isoflop.model.blocks.norm import LayerNorm, NoNorm, RMSNorm
from isoflop.model.blocks.part import Embedding, Linear, Start, rows_at
from isoflop.model.blocks.position import Position, Rotary
from isoflop.model.blocks.value import ValueEmbedding
from isoflop.model.blocks.wiring import PreNorm
from isoflop.model.fused import FusedBlock
from isoflop.model.gpt import GPT, Block

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
    if model.smear is not None or model.backout is not None:
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
    if type(block) is not Block or not (block._wrapped is None or type(block._wrapped) is FusedBlock):
        return False
    if block.shortcut is not None or type(block.wiring) is not PreNorm:
        return False
    if block.values is not None and (type(block.values), type(block.values.table)) != (ValueEmbedding, Embedding):
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
        self.model = model
        weight = model.head_weight
        self.compiled = weight.dtype == torch.float32 and available()
        products = for_kernels(model)
        if products:
            lay_out_for_kernels(model)
        self.layers = [Layer(block, self.compiled, products) for block in model.blocks]
        self.room = {layer.shape: Room(layer, rows, weight) for layer in self.layers}
        self.logits = weight.new_empty(rows, len(weight))
        self.head = Product([weight.detach()], [None], products)
        self.angles: dict[Angles, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int, Tensor | None] = {}
        self.lengths_R: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, tokens_R: Tensor, cache: KVCache) -> Tensor:
        """The logits (R, V) of the token after these, which follow those in the cache. Valid until the next call."""
        model, R = self.model, len(tokens_R)
        start = cache.start(1)
        self.angles, self.masks, self.lengths_R = {}, {}, None
        x_RD = model.embed(tokens_R.unsqueeze(1), start).squeeze(1)  # a copy, to which the layers add

        for layer in self.layers:
            room = self.room[layer.shape].of(R)
            h_RD = self.normalised(layer.norms[0], x_RD, room.normalised_RD)
            layer.qkv(h_RD, room.qkv_RC)
            if self.compiled and not layer.window:
                y_RC = self.attend_compiled(layer, room, start, cache, tokens_R, h_RD)
            else:
                if layer.values is not None:
                    add_values(layer.values, tokens_R, h_RD, room.v_RGTK)
                y_RC = self.attend(layer, room, start, cache)
            layer.out.add_to(x_RD, y_RC)
            layer.up(self.normalised(layer.norms[1], x_RD, room.normalised_RD), room.wide_RF)
            layer.down.add_to(x_RD, activated(layer, room))

        cache.advance(1)
        if model.norm is not None:
            x_RD = self.normalised(model.norm, x_RD, torch.empty_like(x_RD))
        return soft_capped(self.head(x_RD, self.logits[:R]), model.logit_cap)

    def normalised(self, norm: nn.Module, x_RD: Tensor, out_RD: Tensor) -> Tensor:
        """norm(x), in `out_RD` or in memory of its own."""
        if self.compiled and isinstance(norm, LayerNorm):
            return decoding.layer_norm_(out_RD, x_RD, norm.eps, norm.weight, norm.bias)
        if not isinstance(norm, RMSNorm):
            y_RD: Tensor = norm(x_RD)
            return y_RD
        if self.compiled:
            return decoding.norm_(out_RD, x_RD, norm.eps, norm.weight)
        return rms_norm(x_RD, norm.eps, norm.weight, out_RD)

    def attend_compiled(
        self, layer: "Layer", room: "Room", start: Start, cache: KVCache, tokens_R: Tensor, h_RD: Tensor
    ) -> Tensor:
        """`attend`, with any value embedding, in one kernel that reads no padding."""
        R = len(tokens_R)
        angles = None
        if layer.rotary is not None:
            cos_RTK, sin_RTF = self.angles_at(layer.rotary, start)
            angles = cos_RTK.reshape(-1, cos_RTK.shape[-1]), sin_RTF.reshape(-1, sin_RTF.shape[-1])
        added_RC = gate_RG = None
        if layer.values is not None:
            added_RC, gate_RG = values_to_add(layer.values, tokens_R, h_RD)
        if self.lengths_R is None:
            self.lengths_R = torch.from_numpy(cache.lengths_of_rows()[:R] + 1)
        held = cache.reserve(layer.number, room.k_RGTK, room.v_RGTK)
        return decoding.attend_(
            room.y_RC,
            room.qkv_RC,
            held.keys,
            held.values,
            held.count - 1,
            self.lengths_R,
            heads=layer.heads,
            scale=layer.scale or layer.head_dim**-0.5,
            eps=layer.qk_eps,
            gain_NK=layer.qk_gain_NK,
            angles=angles,
            interleaved=layer.interleaved,
            added_RC=added_RC,
            gate_RG=gate_RG,
        )

    def attend(self, layer: "Layer", room: "Room", start: Start, cache: KVCache) -> Tensor:
        """softmax(q k) v, (R, H K), of the queries, keys and values in `room.qkv_RC`."""
        # queries and keys together
        if layer.qk_eps is not None:
            rms_norm(room.heads_RNK, layer.qk_eps, layer.qk_gain_NK, room.unit_RNK)
        if layer.rotary is not None:
            cos_RTK, sin_RTF = self.angles_at(layer.rotary, start)
            torch.mul(room.straight_RNK, cos_RTK, out=room.rotated_RNK)
            room.rotated_halves[0].addcmul_(room.straight_halves[1], sin_RTF, value=-1)
            room.rotated_halves[1].addcmul_(room.straight_halves[0], sin_RTF)
        k_RGSK, v_RGSK = cache.append(layer.number, room.k_RGTK, room.v_RGTK, layer.window)
        S = k_RGSK.shape[2]
        hidden_R11S = self.hidden(cache, S, k_RGSK)

        # the queries that share a head of keys are M rows of one product
        if not room.many:
            y_RGMK = F.scaled_dot_product_attention(
                room.q_RGMK, k_RGSK, v_RGSK, attn_mask=hidden_R11S, scale=layer.scale
            )
            return y_RGMK.reshape(room.y_RC.shape)
        torch.mul(room.q_RGMK, layer.scale or layer.head_dim**-0.5, out=room.scaled_RGMK)
        scores_AMS = torch.bmm(room.scaled_AMK, k_RGSK.flatten(0, 1).transpose(1, 2))
        if hidden_R11S is not None:
            scores_AMS.view(*room.q_RGMK.shape[:3], S).add_(hidden_R11S)
        torch.bmm(scores_AMS.softmax(dim=-1), v_RGSK.flatten(0, 1), out=room.y_AMK)
        return room.y_RC

    def angles_at(self, rotary: Rotary, start: Start) -> tuple[Tensor, Tensor]:
        """Cosines (R, 1, K) and sines (R, 1, K / 2) of one position per row, or (1, K) and (1, K / 2) of all rows'."""
        key = angles_of(rotary)
        if key not in self.angles:
            dtype = self.logits.dtype
            cos_RTK, sin_RTK = (rows_at(table, start, 1).to(dtype) for table in (rotary.cos_TK, rotary.sin_TK))
            self.angles[key] = cos_RTK, halves(sin_RTK, rotary.interleaved)[1].contiguous()
        return self.angles[key]

    def hidden(self, cache: KVCache, S: int, like: Tensor) -> Tensor | None:
        """What is added to the scores of the last S positions: minus infinity at padding. None: there is none."""
        if S not in self.masks:
            visible_RS = cache.visible(S)
            mask = None
            if visible_RS is not None:
                mask = like.new_zeros(visible_RS.shape).masked_fill_(~visible_RS, -torch.inf)[:, None, None]
            self.masks[S] = mask
        return self.masks[S]


def angles_of(rotary: Rotary) -> Angles:
    """What the angles depend on: layers with the same look them up once per step."""
    options = (rotary.base, rotary.factor, rotary.low_freq, rotary.high_freq, rotary.original)
    return (*options, rotary.interleaved, *rotary.cos_TK.shape)


def halves(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The first and the second member of each pair that is rotated."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    first, second = x.chunk(2, dim=-1)
    return first, second


class Layer:
    """The weights of a block as `FusedStep` uses them, and its shapes.

    Args:
        compiled: whether the kernels are used.
        products: whether they are for products, too.
    """

    def __init__(self, block: Any, compiled: bool, products: bool) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.norms = list(block.wiring.norms)
        self.number, self.window, self.scale = attention.layer, attention.window, attention.scale
        self.heads, self.kv_heads = attention.heads, attention.kv_heads
        self.head_dim = attention.q.out_features // attention.heads

        self.qkv = Product.of(attention.q, attention.k, attention.v, compiled=products)
        self.values: ValueEmbedding | None = block.values
        self.out = Product.of(attention.out, compiled=products)
        self.qk_eps, self.qk_gain_NK = None, None
        if attention.q_norm is not None:
            self.qk_eps = attention.q_norm.eps
            if attention.q_norm.weight is not None:
                gains = (attention.q_norm.weight, self.heads), (attention.k_norm.weight, self.kv_heads)
                self.qk_gain_NK = torch.cat([gain.detach().expand(heads, -1) for gain, heads in gains])
        self.rotary: Rotary | None = attention.position if isinstance(attention.position, Rotary) else None

        self.gated = isinstance(feed_forward, Gated)
        wide = (feed_forward.gate, feed_forward.up) if self.gated else (feed_forward.up,)
        self.up, self.down = Product.of(*wide, compiled=products), Product.of(feed_forward.down, compiled=products)
        self.d_model, self.width = feed_forward.up.in_features, feed_forward.up.out_features
        self.activation = IN_PLACE.get(feed_forward.activation, feed_forward.activation)
        if compiled and not self.gated and feed_forward.activation is ACTIVATIONS["relu2"]:
            self.activation = calls.relu2_
        if compiled and not self.gated and feed_forward.activation is ACTIVATIONS["gelu_tanh"]:
            self.activation = decoding.gelu_tanh_

        # layers with the same shape use the same buffers
        self.interleaved = self.rotary is not None and self.rotary.interleaved
        norm_and_angles = (self.qk_eps is None, self.rotary is None, self.interleaved)
        about_heads = (self.heads, self.kv_heads, self.head_dim, *norm_and_angles)
        self.shape = (*about_heads, self.width, self.gated)


class Room:
    """The buffers of layers of one shape, and views of them for R rows.

    Attributes:
        heads_RNK, v_RGTK: of `qkv_RC`: queries and keys, and values.
        unit_RNK, rotated_RNK: queries and keys after their norm, and after the rotation.
        straight_RNK: what is rotated.
        q_RGMK, k_RGTK: queries and keys as they are multiplied, and stored.
        many: there are so many queries that two batched products are faster than torch's fused kernel.
    """

    def __init__(self, layer: Layer, rows: int, like: Tensor) -> None:
        self.layer, self.R = layer, 0
        heads = layer.heads + layer.kv_heads
        widths = {
            "normalised": (layer.d_model,),
            "qkv": ((heads + layer.kv_heads) * layer.head_dim,),
            "unit": (heads, layer.head_dim),
            "rotated": (heads, layer.head_dim),
            "scaled": (layer.heads * layer.head_dim,),
            "y": (layer.heads * layer.head_dim,),
            "wide": (layer.width * (2 if layer.gated else 1),),
            "gated": (layer.width,),
        }
        self.buffers = {name: like.new_empty(rows, *width) for name, width in widths.items()}

    def of(self, R: int) -> "Room":
        """This, with views of R rows."""
        if R == self.R:
            return self
        layer, self.R = self.layer, R
        H, G, K = layer.heads, layer.kv_heads, layer.head_dim
        rows = {name: buffer[:R] for name, buffer in self.buffers.items()}
        self.normalised_RD, self.qkv_RC = rows["normalised"], rows["qkv"]

        self.heads_RNK = self.qkv_RC[:, : (H + G) * K].unflatten(1, (H + G, K))
        self.v_RGTK = self.qkv_RC[:, (H + G) * K :].unflatten(1, (G, 1, K))
        self.unit_RNK, self.rotated_RNK = rows["unit"], rows["rotated"]
        self.straight_RNK = self.heads_RNK if layer.qk_eps is None else self.unit_RNK
        if layer.rotary is not None:
            self.straight_halves = halves(self.straight_RNK, layer.rotary.interleaved)
            self.rotated_halves = halves(self.rotated_RNK, layer.rotary.interleaved)
        final_RNK = self.straight_RNK if layer.rotary is None else self.rotated_RNK
        self.q_RGMK = final_RNK[:, :H].unflatten(1, (G, H // G))
        self.k_RGTK = final_RNK[:, H:].unsqueeze(2)

        self.many = R * H >= MANY_QUERIES
        self.scaled_RGMK = rows["scaled"].view(R, G, H // G, K)
        self.scaled_AMK = rows["scaled"].view(R * G, H // G, K)
        self.y_RC, self.y_AMK = rows["y"], rows["y"].view(R * G, H // G, K)
        self.wide_RF, self.gated_RF = rows["wide"], rows["gated"]
        self.gate_and_up = self.wide_RF.chunk(2, dim=1) if layer.gated else ()
        return self


def values_to_add(values: ValueEmbedding, tokens_R: Tensor, h_RD: Tensor) -> tuple[Tensor, Tensor | None]:
    """What ValueEmbedding.forward adds to the values of one position per row, (R, G K), and its factor, (R, G), if
    it has a gate."""
    added_RC = values.table(tokens_R)
    if values.gate is None:
        return added_RC, None
    return added_RC, values.gate(h_RD[:, : values.gate.in_features]).sigmoid_().mul_(2)


def add_values(values: ValueEmbedding, tokens_R: Tensor, h_RD: Tensor, v_RGTK: Tensor) -> None:
    """Add a value embedding to the values of one position per row."""
    added_RC, gate_RG = values_to_add(values, tokens_R, h_RD)
    added_RGTK = added_RC.view(v_RGTK.shape)
    if gate_RG is None:
        v_RGTK.add_(added_RGTK)
    else:
        v_RGTK.addcmul_(added_RGTK, gate_RG[:, :, None, None])


def activated(layer: Layer, room: Room) -> Tensor:
    """The feed-forward network before its last product, (R, F), of the products in `room.wide_RF`."""
    if not layer.gated:
        return layer.activation(room.wide_RF)
    gate_RF, up_RF = room.gate_and_up
    return torch.mul(layer.activation(gate_RF), up_RF, out=room.gated_RF)


def rms_norm(x: Tensor, eps: float, gain: Tensor | None, out: Tensor) -> Tensor:
    """RMSNorm.forward, into `out`."""
    exact = torch.promote_types(x.dtype, torch.float32)
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    r = r.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
    y = torch.mul(x, r, out=out)
    return y if gain is None else y.mul_(gain.to(y.dtype))
