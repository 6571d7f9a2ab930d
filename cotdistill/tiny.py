"""Make two-layer students with random weights and a tokenizer of 600 tokens.

They serve the tests and the smoke study.
"""

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TINY = ("tiny-llama", "tiny-gpt2", "tiny-phi", "tiny-gemma")


def _tiny_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 600 tokens on the embedded world's words.

    Gemma's kind marks spaces with ▁ and adds <bos>.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    words = (Path(__file__).parent / "microworld" / "microworld.yaml").read_text(encoding="utf-8")
    corpus = ["Question: Options:\n- Answer: Reason: " * 50] + words.lower().splitlines()
    gemma = name == "tiny-gemma"
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=gemma, unk_token="<unk>" if gemma else None))
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁\n]+|\n|▁"), "isolated")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = list(
            "▁\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-()?!'\""
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if gemma:
        return _add_gemma_bytes(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def _add_gemma_bytes(tokenizer) -> PreTrainedTokenizerFast:
    """Add Gemma's 256 byte tokens, to which unknown characters fall back, and its <bos>.

    They are ordinary tokens: added to the vocabulary itself.
    """
    from tokenizers import Tokenizer, processors

    saved = json.loads(tokenizer.to_str())
    known = saved["model"]["vocab"]
    known |= {f"<0x{i:02X}>": len(known) + i for i in range(256)}
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def _tiny(name: str):
    """Build a student of two layers, 32 wide, with random weights from seed 0.

    It has the architecture of the real student at test speed. Returns model, tokenizer and note.
    """
    from transformers import AutoConfig

    tokenizer = _tiny_tokenizer(name)
    vocab = len(tokenizer)
    wide = dict(
        vocab_size=vocab,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    config = {
        "tiny-llama": lambda: AutoConfig.for_model(
            "llama", num_key_value_heads=2, tie_word_embeddings=True, **wide
        ),
        "tiny-phi": lambda: AutoConfig.for_model("phi", **wide),
        "tiny-gemma": lambda: AutoConfig.for_model(
            "gemma", num_key_value_heads=1, head_dim=8, pad_token_id=tokenizer.pad_token_id, **wide
        ),
        "tiny-gpt2": lambda: AutoConfig.for_model(
            "gpt2",
            vocab_size=vocab,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.1,
        ),
    }[name]()
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", dtype=torch.float32
    )
    torch.random.set_rng_state(state)
    return model, tokenizer, "two-layer random model, for tests only"


def _tiny_version(tokenizer) -> str:
    """Return 8 hex digits over the tokenizer's vocabulary: part of the student's fingerprint."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[
        :8
    ]
