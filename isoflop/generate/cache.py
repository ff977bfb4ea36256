"""Keys and values of the positions that a model has seen, so that the next token costs one position and not all."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Held:
    """One layer's room for keys and values, (B, H, room, K) each, of which the first `count` positions are filled."""

    keys: Tensor
    values: Tensor
    count: int = 0

    @property
    def room(self) -> int:
        return self.keys.shape[2]

    def add(self, k_BHTK: Tensor, v_BHTK: Tensor) -> None:
        start, self.count = self.count, self.count + k_BHTK.shape[2]
        self.keys[:, :, start : self.count] = k_BHTK
        self.values[:, :, start : self.count] = v_BHTK

    def last(self, positions: int) -> tuple[Tensor, Tensor]:
        """Views of the last so many positions, or of all that are held."""
        held = slice(max(0, self.count - positions), self.count)
        return self.keys[:, :, held], self.values[:, :, held]

    def keep(self, positions: int) -> None:
        """Move the last so many positions to the front and forget the others."""
        keys, values = (tensor.clone() for tensor in self.last(positions))
        self.count = 0
        self.add(keys, values)


class KVCache:
    """Room for `context` positions of every layer, allocated once, when a layer's first keys show their shape. A layer
    that sees no more than a window has room for two of them: what it sees lies in one piece, and is moved to the front
    once a window.

    Attributes:
        context: positions there is room for.
        length: positions held. It changes in `advance`, once a forward, so that all layers of one forward see the same.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.length = 0
        self.layers: dict[int, Held] = {}

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor, window: int = 0) -> tuple[Tensor, Tensor]:
        """Keep T new positions of one layer.

        Args:
            window: how many positions each sees at most, itself among them; 0: all.

        Returns:
            The layer's keys and values, (B, H, S, K), at the last S of the length + T positions, good until the next
            append: all of them, or with a window at least those that the T new ones see.

        Raises:
            ValueError: if they do not fit.
        """
        T = k_BHTK.shape[2]
        if self.length + T > self.context:
            raise ValueError(f"{self.length + T} positions do not fit in a cache of {self.context}")
        if layer not in self.layers:
            room = min(self.context, 2 * window) if window else self.context
            self.layers[layer] = Held(room_for(k_BHTK, room), room_for(v_BHTK, room))
        held = self.layers[layer]
        if not window:
            held.count = self.length
        elif window - 1 + T > held.room:
            return longer_than_room(held, k_BHTK, v_BHTK, window)
        elif held.count + T > held.room:
            held.keep(window - 1)
        held.add(k_BHTK, v_BHTK)
        return held.last(window - 1 + T if window else held.count)

    def advance(self, positions: int) -> None:
        """Count the positions that every layer has just appended."""
        self.length += positions

    def select(self, rows_B: Tensor) -> None:
        """Go on with these rows in this order, repeated or left out: what a beam search keeps."""
        for layer, held in self.layers.items():
            keys, values = (tensor[rows_B] for tensor in held.last(held.count))
            self.layers[layer] = Held(room_for(keys, held.room), room_for(values, held.room))
            self.layers[layer].add(keys, values)

    def clear(self) -> None:
        """Hold nothing, keep the room."""
        self.length = 0
        for held in self.layers.values():
            held.count = 0


def longer_than_room(held: Held, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """So many new positions that only the last of them need be held: `append` gives them with those before, copied."""
    k_BHSK, v_BHSK = (torch.cat(pair, dim=2) for pair in zip(held.last(window - 1), (k_BHTK, v_BHTK), strict=True))
    held.count = 0
    first = max(0, k_BHSK.shape[2] - held.room)
    held.add(k_BHSK[:, :, first:], v_BHSK[:, :, first:])
    return k_BHSK, v_BHSK


def room_for(x_BHTK: Tensor, positions: int) -> Tensor:
    B, H, _, K = x_BHTK.shape
    return x_BHTK.new_empty(B, H, positions, K)
