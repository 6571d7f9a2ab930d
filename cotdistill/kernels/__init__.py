"""Make the work fast, and import nothing of the study.

Nothing here changes a result, but for `mixed`: its precision is part of a run's key.

`KERNELS` says of each what it replaces, what it gains and when to delete it. Gains are measured in
float32 on a CPU with AVX-512, by `make bench` where no other source is named.
"""

from typing import NamedTuple


class Kernel(NamedTuple):
    """Say why the library's own way is not used, and when it should be again."""

    name: str  # module.function or module.class
    replaces: str
    gain: str
    delete_when: str


KERNELS = (
    Kernel(
        "attention.packed_attention",
        "batches padded to their longest sequence, as the Trainer collates them",
        "linear layers see real tokens only: no arm pays for another's length",
        "torch attends over sequences laid end to end on a CPU, as flash attention does on a GPU",
    ),
    Kernel(
        "attention.shared_prefix_attention",
        "a copy of the prefix's keys and values in every row (DynamicCache)",
        "the prefix is read once for the whole batch; `elicit.local.time_shared_prefix` times it",
        "generate() of transformers takes one cache for all rows",
    ),
    Kernel(
        "attention.attention_after",
        "a whole pass for every variant of a rationale",
        "a variant runs only from the first token that it replaces",
        "attribution no longer runs variants of one text",
    ),
    Kernel(
        "linear.onednn_linear",
        "torch.nn.functional.linear, on the BLAS that torch was built with (MKL)",
        "1.1 to 1.3 times as fast at 300 to 1,100 rows; 1.2 to 1.9 for logits over a vocabulary",
        "torch's own linear goes through oneDNN in float32, or is as fast",
    ),
    Kernel(
        "linear.PrepackedLinear",
        "a linear layer whose weights are laid out again in every call",
        "1.2 times as fast at 400 rows, twice at 8 to 64",
        "torch prepacks frozen weights without torch.compile",
    ),
    Kernel(
        "linear.LinearFunction",
        "the linear layers of a model in training",
        "forward and input gradient as fast as `onednn_linear`",
        "`onednn_linear` goes",
    ),
    Kernel(
        "loss.ChunkedLinearCrossEntropy",
        "torch's linear_cross_entropy, or all logits at once",
        "1.9 to 2.3 times as fast as torch's at equal results; a slice of logits in memory",
        "torch's linear_cross_entropy is as fast at the students' shapes",
    ),
    Kernel(
        "loss.sparse_embedding",
        "a dense gradient of the embeddings beside that of the tied head",
        "gemma: a matrix of 671 MB less to fill and add per step",
        "autograd adds an embedding's rows into a tied head's gradient",
    ),
    Kernel(
        "cache.GrowingLayer",
        "DynamicLayer, which copies all keys and values at every step",
        "a tenth of the time of decoding a batch",
        "the library's cache writes a token into its place, for rows that are selected too",
    ),
    Kernel(
        "blocks.last_block_at_places",
        "a last block that runs at every position",
        "one twentieth of the work of eight trained blocks; 1 to 3 % of smollm2's thirty",
        "models take logits_to_keep before their last block",
    ),
    Kernel(
        "blocks.start_from_trunk",
        "a pass through frozen blocks for every epoch, arm and seed",
        "frozen blocks run once per sequence and study",
        "no study freezes blocks",
    ),
    Kernel(
        "memory.keep_memory",
        "glibc's way of handing large blocks back to the system",
        "a third of a training step of gemma, whose gradients are large",
        "torch keeps freed CPU memory, as it does on a GPU",
    ),
)
