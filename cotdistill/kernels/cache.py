"""Hold keys and values with room to grow, and count the bytes of stored block outputs."""

import torch
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keep one layer's keys and values in a buffer with room to grow.

    A new token is written into its place. The library's own layer copies everything at every step
    (a tenth of the time of decoding a batch).
    """

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = (
            self._append_to_buffer("key_buffer", self.keys, key_states),
            self._append_to_buffer("value_buffer", self.values, value_states),
        )
        return self.keys, self.values

    def _append_to_buffer(self, name: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write `new` after `old` and return both as one view of the named buffer.

        `old` [rows, heads, n, width] is a view of the buffer's first n positions. After a selection
        of rows it has memory of its own, and is copied into a new buffer.
        """
        n, q = (old.shape[2] if old.numel() else 0), new.shape[2]
        buffer = getattr(self, name, None)
        if buffer is None or old.data_ptr() != buffer.data_ptr() or n + q > buffer.shape[2]:
            buffer = new.new_empty(*new.shape[:2], n + q + 32, new.shape[3])
            if n:
                buffer[:, :, :n] = old
            setattr(self, name, buffer)
        buffer[:, :, n : n + q] = new
        return buffer[:, :, : n + q]


def growing_cache() -> Cache:
    """Return an empty cache of keys and values for decoding.

    Every layer keeps its full length, also where a model's window slides.
    """
    return Cache(layer_class_to_replicate=GrowingLayer)


# Bytes of frozen blocks' outputs kept in memory; a data set that needs more trains without them
TRUNK_CACHE_BYTES = 2 * 1024**3


def stored_bytes(store: dict) -> int:
    """Count the bytes of what frozen blocks gave, in a store of `trunk_states` and `evaluate`."""
    return sum(t.nbytes for group in store.values() for t in group)
