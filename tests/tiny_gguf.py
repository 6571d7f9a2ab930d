"""A bundled student small enough for tests.

A module that holds a GGUF of two layers, as the real wheels hold theirs.
"""

import json

import gguf
import numpy as np
from conftest import tiny

from cotdistill import students
from cotdistill.files import sha256

BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path) -> None:
    """tiny-llama with its tokenizer, float32."""
    student = tiny("tiny-llama")
    shape, tokenizer = (
        student.model.config,
        json.loads(student.tokenizer.backend_tokenizer.to_str())["model"],
    )
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(shape.max_position_embeddings)
    out.add_embedding_length(shape.hidden_size)
    out.add_block_count(shape.num_hidden_layers)
    out.add_feed_forward_length(shape.intermediate_size)
    out.add_head_count(shape.num_attention_heads)
    out.add_head_count_kv(shape.num_key_value_heads)
    out.add_layer_norm_rms_eps(shape.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(shape.hidden_size // shape.num_attention_heads)
    out.add_vocab_size(shape.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    out.add_token_types([1] * len(tokenizer["vocab"]))
    out.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    out.add_eos_token_id(student.eos_id)
    out.add_bos_token_id(student.eos_id)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    names |= {
        f"model.layers.{i}.{a}": f"blk.{i}.{b}"
        for i in range(shape.num_hidden_layers)
        for a, b in BLOCK.items()
    }
    weights = student.model.state_dict()
    for ours, theirs in names.items():
        out.add_tensor(f"{theirs}.weight", weights[f"{ours}.weight"].numpy().astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def install(folder, monkeypatch):
    """A bundled student `tiny-wheel` and a cache of its own under `folder`.

    Returns the path of its GGUF.
    """
    module = folder / "wheel" / "tiny_wheel_of_tests"
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    write_gguf(module / "tiny.gguf")
    monkeypatch.syspath_prepend(str(folder / "wheel"))
    monkeypatch.setenv("COTDISTILL_CACHE", str(folder / "cache"))
    monkeypatch.setitem(
        students.BUNDLED,
        "tiny-wheel",
        dict(
            module="tiny_wheel_of_tests",
            file="tiny.gguf",
            licence="none",
            sha256=sha256(module / "tiny.gguf"),
            install="pip install tiny-wheel",
            note="two layers",
        ),
    )
    return module / "tiny.gguf"
