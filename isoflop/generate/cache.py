"""Keys and values of the positions that a model has seen, so that the next token costs one position and not all."""

from torch import Tensor


class KVCache:
    """Room for `context` positions of every layer, allocated once, when a layer's first keys show their shape.

    Attributes:
        context: positions there is room for.
        length: positions held. It changes in `advance`, once a forward, so that all layers of one forward see the same.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.length = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Keep T new positions of one layer.

        Returns:
            The layer's keys and values at all S = length + T positions: (B, H, S, K) views, good until the next append.

        Raises:
            ValueError: if they do not fit.
        """
        end = self.length + k_BHTK.shape[2]
        if end > self.context:
            raise ValueError(f"{end} positions do not fit in a cache of {self.context}")
        if layer not in self.layers:
            self.layers[layer] = (self.room_for(k_BHTK), self.room_for(v_BHTK))
        keys, values = self.layers[layer]
        keys[:, :, self.length : end] = k_BHTK
        values[:, :, self.length : end] = v_BHTK
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, positions: int) -> None:
        """Count the positions that every layer has just appended."""
        self.length += positions

    def select(self, rows_B: Tensor) -> None:
        """Go on with these rows in this order, repeated or left out: what a beam search keeps."""
        self.layers = {layer: (keys[rows_B], values[rows_B]) for layer, (keys, values) in self.layers.items()}

    def clear(self) -> None:
        """Hold nothing, keep the room."""
        self.length = 0

    def room_for(self, x_BHTK: Tensor) -> Tensor:
        B, H, _, K = x_BHTK.shape
        return x_BHTK.new_empty(B, H, self.context, K)
