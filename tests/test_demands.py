"""What is demanded of students, data and settings, tried before hours are spent.

Tiny students of many kinds, and edited data.
"""

import json

import pytest
import torch
from conftest import tiny
from studies import make_study
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)

from cotdistill import corrupt
from cotdistill import study as study_module
from cotdistill.arms import Arm, arm_from_name, format_target, prompt_text
from cotdistill.encode import encode
from cotdistill.errors import DataError
from cotdistill.files import read_json, sha256, write_json
from cotdistill.parameters import BUILT_IN
from cotdistill.paths import study_dir
from cotdistill.runs.grid import run_grid
from cotdistill.runs.results import load_predictions
from cotdistill.sources import write_rationales
from cotdistill.students import BUNDLED, check_attention, load_student
from cotdistill.study import Study, content_fingerprints, read_data, try_student
from cotdistill.tiny import TINY, _tiny_tokenizer

WIDE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=256,
    initializer_range=0.2,
)


def save_student(folder, kind: str, model_class=AutoModelForCausalLM, tokenizer=None, **settings):
    """A two-layer random model of a kind, saved with a tiny tokenizer; its folder as text."""
    tokenizer = tokenizer or _tiny_tokenizer("tiny-llama")
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**WIDE, **settings})
    config.eos_token_id, config.bos_token_id, config.pad_token_id = (
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        None,
    )
    torch.manual_seed(0)
    model_class.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


GOOD = {
    "llama": dict(num_key_value_heads=2),
    "qwen2": dict(num_key_value_heads=2),
    "qwen3": dict(num_key_value_heads=2, head_dim=8),
    "mistral": dict(num_key_value_heads=2, sliding_window=None),
    "gpt_neox": {},
    "olmo2": dict(num_key_value_heads=4),
    "phi": {},
}
BAD = {  # kind -> (settings, what the message says)
    "gemma2": (
        dict(num_key_value_heads=1, head_dim=8),
        "the attention of kind gemma2 (Gemma2ForCausalLM) is not supported",
    ),
    "bloom": (
        dict(n_layer=2, n_head=4),
        "the attention of kind bloom (BloomForCausalLM) is not supported",
    ),
    "mamba": (
        dict(state_size=4),
        "the attention of kind mamba (MambaForCausalLM) is not supported",
    ),
    "rwkv": (
        dict(attention_hidden_size=32),
        "the attention of kind rwkv (RwkvForCausalLM) is not supported",
    ),
    "stablelm": (dict(num_key_value_heads=4), "the attention of kind stablelm is not supported"),
    "bert": (dict(), "of kind bert, which is no causal language model"),
}


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_students_hold_what_training_rests_on(name):
    check_attention(tiny(name))


@pytest.mark.parametrize("kind", GOOD)
def test_students_with_common_attention_are_taken(tmp_path, kind):
    assert (
        load_student(save_student(tmp_path / "s", kind, **GOOD[kind])).model.config.model_type
        == kind
    )


@pytest.mark.parametrize("kind", BAD)
def test_students_whose_attention_is_not_ours_are_refused_in_one_line(tmp_path, kind):
    settings, message = BAD[kind]
    folder = save_student(
        tmp_path / "s",
        kind,
        AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM,
        **settings,
    )
    with pytest.raises(DataError) as error:
        load_student(folder)
    assert (
        message in str(error.value)
        and "; expected a " in str(error.value)
        and str(error.value).isprintable()
    )


def test_a_bert_that_calls_itself_a_decoders_head_is_refused_too(tmp_path):
    with pytest.raises(DataError, match="no causal language model"):
        load_student(save_student(tmp_path / "s", "bert"))  # BertLMHeadModel, is_decoder false


def test_a_student_that_looks_ahead_is_refused_by_what_it_does(monkeypatch):
    """The check does not know architectures.

    A Llama whose attention sees later tokens is found by its logits.
    """
    student = tiny("tiny-llama")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, attn_mask=None, is_causal=False, **how: sdpa(q, k, v, **dict(how.items())),
    )
    with pytest.raises(DataError, match="a later token changes an earlier logit.*logits differ by"):
        check_attention(student)


def llama2_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2's.

    A space before whatever it is given, and none at the start of what it decodes.
    """
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    alphabet = list("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-()?!'\"")
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    corpus = [
        "Question: what is a cup of tea ?",
        "Options: - Answer: Reason: ice cream is cold . It melts .",
    ] * 40
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=alphabet,
            show_progress=False,
            special_tokens=["<unk>", "<s>", "</s>"],
        ),
    )
    saved = json.loads(trained.to_str())["model"]
    vocab = saved["vocab"] | {f"<0x{i:02X}>": len(saved["vocab"]) + i for i in range(256)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(m) for m in saved["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("kind", ["legacy", "first"])
def test_a_space_that_a_tokenizer_adds_is_left_out_and_reported(
    tmp_path, questions, rationales, kind
):
    tokenizer = llama2_tokenizer(kind)
    student = load_student(
        save_student(tmp_path / "s", "llama", tokenizer=tokenizer, num_key_value_heads=2)
    )
    plain = [
        i
        for text in ("Answer:", " drawers")
        for i in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    if kind == "legacy":
        assert tokenizer.decode(plain) == "Answer:  drawers"  # what such students were trained on
        assert (
            student.adds_space
            and "adds a space" in student.note
            and student.fingerprint.endswith("-exact")
        )
    for example in questions:
        for placement in ("label_only", "pre_cot", "post_cot"):
            for label_format in ("text", "letter", "both"):
                arm, rationale = Arm(placement), rationales[example.id].text
                one = encode(student, example, rationale, arm, label_format)
                text = prompt_text(example, placement, label_format) + "".join(
                    part for _, part in format_target(example, rationale, arm, label_format)
                )
                assert one.ids[-1] == student.eos_id and student.decode(one.ids) == text
        text = f" {rationales[example.id].text}"
        spans = corrupt.offsets(student, text)
        assert (
            len(spans) == len(student.encode(text))
            and spans[0][0] == 0
            and spans[-1][1] == len(text)
        )
    for text in (
        " ice\n",
        "\n",
        " ",
        "  two",
        "Reason:",
        "\nAnswer:",
        " naïve 🙂 日本, 12.5 % <x>",
        "</s>",
    ):
        assert student.decode(student.encode(text)) == text


@pytest.mark.parametrize("name", TINY)
def test_other_students_encode_as_ever(name):
    student = tiny(name)
    assert not student.adds_space and "-exact" not in student.fingerprint
    for text in ("Question: a\n", " tea", "\nAnswer:"):
        assert (
            student.encode(text)
            == student.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
        )


def test_a_tokenizer_that_changes_a_text_is_refused(tmp_path):
    from tokenizers import normalizers

    tokenizer = _tiny_tokenizer("tiny-llama")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(
        DataError, match="its tokenizer makes 'question: .* expected one that gives a text back"
    ):
        load_student(
            save_student(tmp_path / "s", "llama", tokenizer=tokenizer, num_key_value_heads=2)
        )


def test_the_students_that_need_no_trial_are_those_of_this_package():
    assert set(BUILT_IN) == {*BUNDLED, *TINY}


def test_a_slow_tokenizer_is_refused_where_offsets_are_needed(monkeypatch, capsys):
    student = tiny("tiny-llama")
    monkeypatch.setattr(type(student.tokenizer), "is_fast", False)
    monkeypatch.setattr(study_module, "load_fresh_student", lambda *how: student)
    study = make_study()
    study.student = student
    with pytest.raises(DataError, match="gives no character offsets; expected a fast tokenizer"):
        study.check_offsets()
    assert try_student("tiny-llama", "cpu", "float32", needs_offsets=True) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert try_student("tiny-llama", "cpu", "float32", needs_offsets=False) == 0


# ---------------------------------------------------------------- edited after a stage

TRAIN = [
    {
        "id": f"q{i}",
        "question": f"What is number {i}?",
        "choices": ["ice", "fire", "tea"],
        "answer": i % 3,
        "rationale": f"Number {i} is what it is.",
    }
    for i in range(8)
]
TEST = [
    {"id": f"t{i}", "question": f"What is test {i}?", "choices": ["ice", "fire"], "answer": i % 2}
    for i in range(4)
]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Own:
    """A study of own data, each method what a stage's notebook does first."""

    def __init__(self, folder):
        self.folder, self.student = folder, "tiny-llama"
        write_rows(folder / "own" / "train.jsonl", TRAIN)
        write_rows(folder / "own" / "test.jsonl", TEST)
        write_rows(
            folder / "recorded.jsonl",
            [{"id": row["id"], "rationale": row["rationale"]} for row in TRAIN],
        )

    def elicit(self):
        spec = dict(
            dataset=str(self.folder / "own"),
            data_dir="",
            validation_size=2,
            data_seed=0,
            microworld=None,
            rationales="",
            rationales_print="",
        )
        data, file = read_data(spec), study_dir("t") / "rationales.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_rationales(data.rationales, file)
        spec |= {
            "rationales": "studies/t/rationales.jsonl",
            "rationales_print": sha256(file)[:16],
            "content": content_fingerprints(data, ["", str(self.folder / "recorded.jsonl")]),
        }
        write_json(study_dir("t") / "data.json", spec)

    def begin_train(self):
        study_module.shared_student.cache_clear()
        study = make_study(
            data=read_json(study_dir("t") / "data.json", "elicit"),
            student=self.student,
            max_new_tokens=4,
        )
        study.check([Arm("label_only")])
        study.save()
        return study

    def train(self):
        run_grid(self.begin_train(), [Arm("label_only")], "train", say=lambda *a, **k: None)

    def later(self):
        return Study.load("t")

    def shuffle(self):
        study_module.shared_student.cache_clear()
        arms = [arm_from_name("post_cot_filler")]
        run_grid(self.later(), arms, "shuffle", say=lambda *a, **k: None)
        return load_predictions("t", ["train", "shuffle"])


def flip_test(own):
    write_rows(
        own.folder / "own" / "test.jsonl", [row | {"answer": 1 - row["answer"]} for row in TEST]
    )


def edit_train(own, **change):
    write_rows(own.folder / "own" / "train.jsonl", [row | change for row in TRAIN])


EDITS = {
    "test answers flipped": (flip_test, "its test questions changed after stage elicit read it"),
    "a question reworded": (
        lambda own: edit_train(own, choices=["ice", "fire", "milk"]),
        "its training questions changed",
    ),
    "rationales edited": (
        lambda own: edit_train(own, rationale="Because it is so."),
        "its own rationales changed",
    ),
    "the recorded file edited": (
        lambda own: (own.folder / "recorded.jsonl").write_text('{"id": "q0", "rationale": "x"}\n'),
        "recorded.jsonl: its content changed",
    ),
}


@pytest.mark.parametrize("edit, message", EDITS.values(), ids=EDITS)
def test_data_edited_after_a_stage_name_the_stage_to_run_again_and_obeying_helps(
    tmp_path, store, edit, message
):
    own = Own(tmp_path)
    own.elicit(), own.train(), own.later()
    edit(own)
    stored = set(store.glob("runs/*"))
    for stage in (own.begin_train, own.later, own.shuffle):
        with pytest.raises(DataError) as error:
            stage()
        assert message in str(error.value) and "run `make elicit STUDY=t` again" in str(error.value)
    assert set(store.glob("runs/*")) == stored, "something was trained"
    own.elicit()
    for stage in (own.later, own.shuffle):
        with pytest.raises(
            DataError,
            match="data.json: stage elicit was run again .* run `make train STUDY=t` again",
        ):
            stage()
    assert set(store.glob("runs/*")) == stored, "something was trained"
    own.train()
    assert len(own.shuffle()) == 2 * len(TEST)


def test_a_train_stage_that_was_not_finished_is_named_before_shuffle_trains(tmp_path, store):
    own = Own(tmp_path)
    own.elicit(), own.train()
    flip_test(own)
    own.elicit(), own.begin_train()  # and killed
    stored = set(store.glob("runs/*"))
    with pytest.raises(
        DataError,
        match="label_only, seed 0 of stage train was made with other "
        "test .* run `make train STUDY=t` again, then shuffle",
    ):
        own.shuffle()
    assert set(store.glob("runs/*")) == stored
    own.train()
    assert len(own.shuffle()) == 2 * len(TEST)


def test_a_local_student_that_changed_after_training_is_named(tmp_path, store):
    own = Own(tmp_path)
    own.student = save_student(tmp_path / "s", "llama", num_key_value_heads=2)
    own.elicit(), own.train(), own.later()
    save_student(tmp_path / "s", "llama", num_key_value_heads=1)
    for stage in (own.later, own.shuffle):
        with pytest.raises(
            DataError,
            match="its files changed after stage train; .* run `make train STUDY=t` again",
        ):
            stage()
    own.train()
    assert len(own.shuffle()) == 2 * len(TEST)


def test_files_of_an_older_version_without_content_are_read_as_they_are(tmp_path, store):
    own = Own(tmp_path)
    own.elicit()
    spec = read_json(study_dir("t") / "data.json", "elicit")
    write_json(
        study_dir("t") / "data.json",
        {key: value for key, value in spec.items() if key != "content"},
    )
    own.train()
    assert len(own.shuffle()) == 2 * len(TEST)


def test_a_run_that_diverges_ends_in_one_line_and_is_not_stored(tmp_path, store, monkeypatch):
    own = Own(tmp_path)
    own.elicit()
    study = own.begin_train()
    student = study.student
    with torch.no_grad():
        next(p for p in student.model.parameters() if p.ndim == 2)[:] = float("nan")
    with pytest.raises(
        DataError,
        match="training diverged: the loss is nan at step 1, .* "
        "expected a finite loss: lower lr, or dtype and precision float32",
    ):
        run_grid(study, [Arm("label_only")], "train", say=lambda *a, **k: None)
    assert not list(store.glob("runs/*/metrics.json"))
    study_module.shared_student.cache_clear()
