"""How fast the study's work is beside what a researcher would otherwise pick: training, scoring, generation, attribution,
elicitation. `notebooks/benchmark.ipynb` calls these functions; `python -m cotdistill.bench run` executes it.

Rules. Both sides run turn about (ABAB), on the same tokens, in float32, with the same threads; medians over repeats, of training the totals of
its steps. Training sides have a process each, held after every step, because in one process the memory of one slows the other; the rest shares
one process. Ours keeps freed memory (`students.keep_memory`), a peer has the C library's own thresholds. Whether they give the same results is
checked first, on the results themselves. A peer gets its best settings: the best of the batch sizes that are tried, all of them shown.
"""

import argparse
import copy
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DataCollatorForSeq2Seq, StoppingCriteria, StoppingCriteriaList, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from cotdistill import elicit, study
from cotdistill.attribute import Attribution, Parts, aggregate_to_words, attribute, attribute_all, split_sequence
from cotdistill.data import DataError, Example, Rationale, load_dataset
from cotdistill.evaluate import evaluate, start
from cotdistill.format import Arm, label_text, parse_answer, prompt_text, split_generation
from cotdistill.students import ROWS, Prepacked, Student, blocks_of, keep_memory, load_student, prepacked, product, weight_gradient
from cotdistill.train import LABEL, PROMPT, Encoded, OrderSampler, TrainConfig, collate, encode, fine_tune, token_losses, training, weighted_loss

PLACEMENTS = ("label_only", "pre_cot", "post_cot")
LOSS_LIMIT = 1e-5  # how far the losses of two sides may differ, relatively
WARM = 3  # steps of one length until its time no longer falls
# side -> (package it needs, batches grouped by length, settings in words)
TRAINERS = {
    "ours": (None, False, "no padding, the head at supervised positions"),
    "ours, grouped": (None, True, "the same on the grouped batches"),
    "itself, compiled": (None, False, "ours with torch.compile of the blocks' MLPs and norms"),
    "ours, checkpointing": (None, False, "the same, the blocks' activations made again in the backward pass"),
    "TRL as it comes": ("trl", False, "SFTTrainer, completion-only loss; activation checkpointing, padding, random order"),
    "TRL at its best": ("trl", True, "SFTTrainer, completion-only loss; no checkpointing, grouped by length"),
    "Trainer as it comes": (None, False, "Trainer, padding collator, random order"),
    "Trainer at its best": (None, True, "Trainer, padding collator, grouped by length"),
}


# ------------------------------------------------------------------------------------------------------------------ inputs

def texts(n: int, seed: int = 0, *, n_options: int = 4, option_words: float = 2.2, rationale_words: float = 38.0,
          test: int = 0) -> tuple[list[Example], dict[str, Rationale]]:
    """`n` questions of the embedded world with the lengths of real ones: options lengthened by `option_words` words on
    average and some questions by a sentence (0: as they are), rationales by general sentences to about `rationale_words` words (0: as they are), log-normally
    spread, with a closing sentence that names the answer. test > 0: that many test questions instead, without rationales.

    The words are the embedded world's, so nothing of a dataset is needed; the lengths are what a benchmark depends on."""
    world = dict(n_train=max(n, 48), n_test=max(test, 40), rationale_only=0.3, label_seen=0.35, two_step=0.4, n_options=n_options)
    data = load_dataset("microworld/everyday", None, validation_size=8, data_seed=seed, microworld=world)
    rng = np.random.default_rng([seed, 11])
    sentences = sorted({f"{part.strip()}." for r in data.rationales.values() for part in r.text.split(".") if part.strip()})
    sentences, places = sentences[::max(1, len(sentences) // 40)], ("in the old shop near the river", "at home on the big table")
    examples, rationales = [], {}
    for example in data.test[:test] if test else data.train[:n]:
        if option_words:
            tails = [places[rng.integers(2)].split()[:rng.poisson(option_words)] for _ in example.choices]
            choices = tuple(" ".join([c, *tail]) for c, tail in zip(example.choices, tails))
            lead = f"{sentences[rng.integers(len(sentences))]} " if rng.random() < 0.4 else ""
            example = replace(example, question=lead + example.question, choices=choices)
        examples.append(example)
        if not test:
            words = data.rationales[example.id].text.split()
            closing = f"So it is {example.label}.".split() if rationale_words else []
            wanted = rationale_words * rng.lognormal(0, 0.35) - len(closing)
            while len(words) < wanted:
                words += sentences[rng.integers(len(sentences))].split()
            rationales[example.id] = Rationale(example.id, " ".join(words + closing), example.answer)
    return examples, rationales


def length_table(student: Student, examples: list[Example], rationales: dict[str, Rationale]) -> pd.DataFrame:
    """Tokens of prompts, labels and rationales: mean and percentiles, by this student's tokenizer."""
    found = {"prompt": [len(student.encode(prompt_text(e, "label_only"))) for e in examples],
             "label": [len(student.encode(label_text(e, e.answer))) for e in examples]}
    if rationales:
        found["rationale"] = [len(student.encode(f" {rationales[e.id].text}")) for e in examples]
    rows = [{"part": part, "texts": len(v), "mean": float(np.mean(v)), **{f"{q} %": float(np.percentile(v, q)) for q in (5, 50, 95)}}
            for part, v in found.items()]
    return pd.DataFrame(rows).set_index("part")


def machine() -> pd.DataFrame:
    """Versions, processor, cores and threads of this run; the peers' versions where they are installed."""
    from importlib.metadata import version

    from cotdistill.runs import provenance

    peers = {name: version(name) if find_spec(module) else "not installed" for name, module in (("trl", "trl"), ("lm-eval", "lm_eval"))}
    return pd.DataFrame({"value": {k: str(v) for k, v in (provenance() | peers).items()}})


def optional_student(name: str) -> Student | None:
    """The student, or None (with a line that says what to install) where it is not there: a benchmark goes on without it."""
    try:
        return load_student(name) if name else None
    except DataError as error:
        print(f"left out: {error}")
        return None


# --------------------------------------------------------------------------------------------------------------- comparing

def compare(work: str, ours: dict, peers: dict[str, dict], same, repeats: int, floor=None, gflop: float = 0.0,
            vocabulary: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time one piece of work on both sides: a table with a row per peer, and the search for batch sizes.

    ours and each peer: {"run": size -> result, "sizes": sizes to try, "settings": text, "target": ratio to reach,
    "needs": module}. First every side runs once per size, which warms it up and finds its best size; then
    same(our result, its result) -> (bool, text) is asked; then the sides run turn about, `repeats` times.
    A peer whose module is missing gets a row that says so. What no side can do without, measured in the same turns: floor, a call of
    nothing else, and gflop, operations at the rate of a big product; `bound` is peer / their sum, the ratio that nobody can exceed. With a
    vocabulary, `kernels` is the ratio over the share of our work that is spent in matrix products and attention (`kernel_share`)."""
    sides = {"ours": ours, **{n: p for n, p in peers.items() if not p.get("needs") or find_spec(p["needs"])}}
    best, tried, results = {}, [], {}
    for name, side in sides.items():
        spent = {}
        keep_memory(name == "ours")
        for size in side["sizes"]:
            spent[size], results[name] = timed(side["run"], size)
        best[name] = min(spent, key=spent.get)
        tried += [{"work": work, "side": name, "batch": size, "seconds": s, "chosen": size == best[name]} for size, s in spent.items()]
    checks = {name: same(results["ours"], results[name]) for name in sides}
    seconds, floors = {name: [] for name in sides}, []
    for _ in range(repeats):
        for name, side in sides.items():
            keep_memory(name == "ours")
            seconds[name].append(timed(side["run"], best[name])[0])
        keep_memory()
        if floor or gflop:
            floors.append((timed(floor, best["ours"])[0] if floor else 0.0) + (gflop / best_rate() if gflop else 0.0))
    rows = [row(work, name, peer.get("settings", ""), seconds["ours"], seconds.get(name), peer.get("target"), checks.get(name),
                batch=best.get(name)) for name, peer in peers.items()]
    least = float(np.median(floors)) if floors else np.nan
    share = kernel_share(profile(lambda: ours["run"](best["ours"]), vocabulary)) if vocabulary else np.nan
    return pd.DataFrame([r | {"bound": r["theirs"] / least, "kernels": r["ratio"] / share} for r in rows]), pd.DataFrame(tried)


def timed(call, *given) -> tuple[float, object]:
    """Wall seconds of call(*given), and what it returned."""
    started = time.perf_counter()
    found = call(*given)
    return time.perf_counter() - started, found


def turn_about(calls: dict, tries: int) -> dict:
    """Median wall seconds of each call, one of each in a turn; a first turn, which warms up, is not counted."""
    seconds = {name: [] for name in calls}
    for turn in range(tries + 1):
        for name, call in calls.items():
            seconds[name] += [timed(call)[0]][:turn]
    return {name: float(np.median(spent)) for name, spent in seconds.items()}


def row(work: str, peer: str, settings: str, ours: list[float], theirs: list[float] | None, target: float | None,
        check: tuple[bool, str] | None, batch: int | None = None, middle=np.median) -> dict:
    """One line of the result: seconds of both sides, their ratio (peer / ours) and whether the target is reached with the same results.
    middle: medians over repeats of one work, np.mean over different works, whose ratio is that of the total times. theirs=None: the peer
    is not installed."""
    mine = float(middle(ours))
    if theirs is None:
        return {"work": work, "peer": peer, "settings": settings, "ours": mine, "theirs": np.nan, "ratio": np.nan, "target": target,
                "reached": "not installed", "same": "not installed"}
    other = float(middle(theirs))
    ratio = other / mine
    fine = check[0] and (target is None or ratio >= target)
    return {"work": work, "peer": peer, "settings": settings + (f"; batch {batch}" if batch else ""), "ours": mine, "theirs": other,
            "ratio": ratio, "target": target, "reached": "–" if target is None else "yes" if fine else "no",
            "same": ("yes: " if check[0] else "NO: ") + check[1]}


def read_rows(rows: pd.DataFrame) -> str:
    """The rows in words."""
    said = []
    for r in rows.itertuples():
        if r.reached == "not installed":
            said.append(f"{r.peer}: not installed, so not measured.")
            continue
        missed = "fast enough, **not counted**: results differ" if r.ratio >= pd.to_numeric(r.target, errors="coerce") else "**not reached**"
        goal = "" if pd.isna(r.target) else f" (target {r.target:g}: {'reached' if r.reached == 'yes' else missed})"
        bound, kernels = getattr(r, "bound", np.nan), getattr(r, "kernels", np.nan)
        most = "" if pd.isna(bound) else f"; at most {bound:.1f} times is possible, what no side can do without being {r.theirs / bound:.2f} s"
        most += "" if pd.isna(kernels) else f"; {kernels:.1f} times, if ours took no time but in the libraries' kernels"
        said.append(f"{r.work}, {r.peer}: {r.theirs:.2f} s against our {r.ours:.2f} s, **{r.ratio:.2f} times**{goal}{most}; same results: {r.same}.")
    return "\n".join(f"- {line}" for line in said)


def close(a, b, tolerance: float, what: str) -> tuple[bool, str]:
    """Whether two arrays agree to `tolerance`, relative to the largest absolute value; and the difference in words."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        return False, f"{a.shape} and {b.shape} {what}"
    gap = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) if a.size else 0.0
    return gap <= tolerance, f"{a.size} {what}, largest difference {gap:.0e} (limit {tolerance:.0e})"


def equal(a: list, b: list, what: str) -> tuple[bool, str]:
    """Whether two lists are equal; and the count in words."""
    hits = sum(x == y for x, y in zip(a, b))
    return len(a) == len(b) == hits, f"{hits} of {max(len(a), len(b))} {what}"


# ---------------------------------------------------------------------------------------------------------------- training

def encode_placements(student: Student, examples: list[Example], rationales: dict[str, Rationale]) -> dict[str, list[Encoded]]:
    """Training sequences of the three placements."""
    return {p: [encode(student, e, rationales[e.id].text, Arm(p)) for e in examples] for p in PLACEMENTS}


def pick_batches(sequences: list[Encoded], batch_size: int, n: int, grouped: bool, seed: int = 0) -> list[list[Encoded]]:
    """`n` batches out of one epoch's: in random order, or in the order of the library's own grouping by length; those at
    evenly spaced quantiles of the batch's tokens, so that a few stand for the epoch."""
    lengths = [len(e.ids) for e in sequences]
    generator = torch.Generator().manual_seed(seed)
    order = (get_length_grouped_indices(lengths, batch_size, generator=generator) if grouped else
             torch.randperm(len(sequences), generator=generator).tolist())
    whole = [[sequences[i] for i in order[a:a + batch_size]] for a in range(0, len(order) - batch_size + 1, batch_size)]
    whole.sort(key=lambda batch: sum(len(e.ids) for e in batch))
    return [whole[int((i + 0.5) / n * len(whole))] for i in range(n)]


def training_batches(encoded: dict[str, list[Encoded]], batch_size: int, n: int, seed: int = 0) -> dict[bool, list[tuple[str, list[Encoded]]]]:
    """grouped -> the batches of one run, each with its placement: as a warm-up twice the longest and twice the shortest, which meet the
    memory that a run of hundreds of steps has long met (a page costs most when it is touched first, and the first steps of another length
    cost a tenth more), then n per placement. The two orders have the sequences of different batches, and every trainer of an order sees
    the same batches one after the other."""
    found = {}
    for grouped in (False, True):
        parts = {p: pick_batches(encoded[p], batch_size, n, grouped, seed) for p in encoded}
        by_length = sorted((batch for p in parts for batch in parts[p]), key=lambda batch: sum(len(e.ids) for e in batch))
        found[grouped] = [("warm-up", by_length[at]) for at in (-1, -1, 0, 0)] + [(p, batch) for p in parts for batch in parts[p]]
    return found


class Enough(Exception):
    """Raised inside a training loop after the last measured step: no checkpoint is written, no epoch ends."""


def train_side(side: str, student: Student, batches: list[list[Encoded]], config: TrainConfig, seed: int = 0,
               stepped=lambda seconds, loss: None) -> None:
    """Train the student, which changes, the way of one side of TRAINERS on the batches in their order.

    stepped is called after every optimiser step, outside its time, with its wall seconds (the first one's hold all preparations) and its
    loss in nats per supervised token. Raises DataError where there were fewer or more steps than batches."""
    config = replace(config, gradient_checkpointing="checkpointing" in side, compile="inductor" if side == "itself, compiled" else "")
    own, losses, seconds, since = Trainer.training_step, [], [], [time.perf_counter()]

    def training_step(self, *args, **kwargs):
        loss = own(self, *args, **kwargs)
        losses.append(float(loss.detach()))
        return loss

    def after_step(*_):
        seconds.append(time.perf_counter() - since[0])
        stepped(seconds[-1], losses[-1])
        if len(seconds) >= len(batches):
            raise Enough
        since[0] = time.perf_counter()

    hook, Trainer.training_step = register_optimizer_step_post_hook(after_step), training_step
    keep_memory(not is_peer(side))
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            if is_peer(side):
                _peer_trainer(side, student, batches, config, seed, folder).train()
            else:
                _ours(student, batches, config, seed, folder)
    except Enough:
        pass
    finally:
        Trainer.training_step = own
        hook.remove()
        keep_memory()
        gc.collect()
    if not len(seconds) == len(losses) == len(batches):
        raise DataError(f"{side}: {len(seconds)} optimiser steps and {len(losses)} losses; expected {len(batches)} of each")


def train_turn_about(sides: list[str], student: str, batches: list[list[Encoded]], config: TrainConfig, seed: int = 0,
                     between=lambda: None) -> list[dict]:
    """`train_side` of each side in a fresh process of its own, an optimiser step of one, then the same step of the next: a machine's speed
    changes from minute to minute, and this way every side meets the same, with no other model in its memory.

    student: a name or path for `load_student`; between is called after every step, while all sides wait. For each side: "seconds" of the
    steps, nan for the first, "losses" of all in nats per supervised token, "between", what that returned, and GB of memory: "loaded_gb"
    with imports and all weights, "peak_gb" ever held. Raises DataError with what a process ended with."""
    asked = {"student": student, "threads": torch.get_num_threads(), "config": asdict(config), "seed": seed,
             "batches": [[[e.id, e.ids, e.kinds] for e in batch] for batch in batches]}
    with ExitStack() as stack:
        children = [stack.enter_context(Process(side)) for side in sides]
        for child, side in zip(children, sides):
            child.write(json.dumps(asked | {"side": side}))
        found, told_between = [child.read() | {"seconds": [], "losses": []} for child in children], []
        for step in range(len(batches)):
            for child, made in zip(children, found):
                child.write("go")
                told = child.read()
                made["seconds"].append(told["seconds"] if step else np.nan)
                made["losses"].append(told["loss"])
                made["peak_gb"] = told["peak_gb"]
            told_between.append(between())
    return [made | {"between": told_between} for made in found]


class Process:
    """One side's child process, a line to it and a line from it at a time; killed on leaving."""

    def __init__(self, side: str):
        self.side, self.errors = side, tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen([sys.executable, "-m", "cotdistill.bench", "side"], cwd=study.root(), text=True, stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=self.errors, env=os.environ | {"PYTHONPATH": str(study.root())})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.communicate()
        self.errors.close()

    def write(self, line: str) -> None:
        try:
            print(line, file=self.child.stdin, flush=True)
        except BrokenPipeError:
            pass  # the next reading says what it ended with

    def read(self) -> dict:
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait()
            self.errors.seek(0)
            raise DataError(f"{self.side}: its process ended with {code}: {(self.errors.read().strip().splitlines() or ['nothing said'])[-1]}")
        return json.loads(line)


def be_a_side() -> None:
    """The child of `train_turn_about`: its settings on the first line of standard input, then a line for every step to make; on standard
    output a line once it is ready and one per step. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**found):
        print(json.dumps(found), file=answers, flush=True)
        if not sys.stdin.readline():  # the parent is gone
            sys.exit(1)

    asked = json.loads(sys.stdin.readline())
    torch.set_num_threads(asked["threads"])
    student = load_student(asked["student"])
    if asked["side"].startswith("TRL"):
        import trl  # noqa: F401  its imports belong to what is loaded
    batches = [[Encoded(id, tuple(ids), tuple(kinds)) for id, ids, kinds in batch] for batch in asked["batches"]]
    for weights in student.model.parameters():
        weights.detach().sum()  # a weight comes from its file when it is first read; until then it is not among what is held
    tell(loaded_gb=_held("VmRSS") / 1e6)
    train_side(asked["side"], student, batches, TrainConfig(**asked["config"]), asked["seed"],
               lambda seconds, loss: tell(seconds=seconds, loss=loss, peak_gb=_held("VmHWM") / 1e6))


def is_peer(side: str) -> bool:
    """Whether a side of TRAINERS is somebody else's trainer."""
    return not side.startswith(("ours", "itself"))


def _ours(student, batches, config, seed, folder):
    """`fine_tune`, given the sequences so that its own order brings the batches one after the other."""
    flat = [e for batch in batches for e in batch]
    data = [None] * len(flat)
    for e, place in zip(flat, OrderSampler(len(flat), seed, 1)):
        data[place] = e
    fine_tune(student, [data], Arm("label_only"), replace(config, epochs=1), seed, Path(folder) / "run")


def _peer_trainer(side, student, batches, config, seed, folder):
    """A peer's Trainer on already tokenised sequences in a fixed order; everything not named here is its default."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tokenizer = _padding_tokenizer(student)
    common = dict(output_dir=folder, use_cpu=student.model.device.type == "cpu", bf16=False, seed=seed, num_train_epochs=1,
                  per_device_train_batch_size=config.batch_size, learning_rate=config.lr, weight_decay=config.weight_decay,
                  warmup_steps=config.warmup, lr_scheduler_type=config.schedule, max_grad_norm=config.max_grad_norm, report_to="none",
                  disable_tqdm=True, save_strategy="no", logging_strategy="no", train_sampling_strategy="sequential",
                  dataloader_pin_memory=False)
    data = Dataset.from_list([_features(e) for batch in batches for e in batch])
    if side.startswith("TRL"):
        from trl import SFTConfig, SFTTrainer

        if side == "TRL at its best":
            common["activation_checkpointing"] = False
        trainer = SFTTrainer(student.model, args=SFTConfig(**common), train_dataset=data, processing_class=tokenizer)
    else:
        trainer = Trainer(student.model, args=TrainingArguments(**common), train_dataset=data, data_collator=_padding_collator(tokenizer))
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _features(e: Encoded) -> dict[str, list[int]]:
    """A sequence as a peer takes it; -100 is what it learns nothing from."""
    return {"input_ids": list(e.ids), "labels": [i if kind != PROMPT else -100 for i, kind in zip(e.ids, e.kinds)]}


def _padding_tokenizer(student: Student):
    """The student's tokenizer, with a token to pad with where it has none."""
    tokenizer = copy.deepcopy(student.tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _padding_collator(tokenizer):
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)


def needed_flops(model: nn.Module, batch: list[Encoded], least: bool = False) -> float:
    """Floating-point operations that one training step on a batch needs: 6 per weight of a linear layer and token (forward, and two
    products backward), the head at supervised positions only, causal attention scores and their weighted sum. Norms, activations and
    the optimiser count nothing.

    least: without what nothing is learnt from: a sequence's last token, which only follows (`collate`), and the last block's weights but
    the keys' and values' at positions that predict no supervised token (`last_block_at_places`)."""
    config, (linear, head) = model.config, weights_of(model)
    lengths = [len(e.ids) - least for e in batch]
    tokens, asked = sum(lengths), sum(kind != PROMPT for e in batch for kind in e.kinds)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    attention = 3 * 4 * config.num_attention_heads * _head_width(config) * pairs * config.num_hidden_layers
    return 6.0 * (_least_weights(model, tokens, asked) if least else linear * tokens + head * asked) + attention


def _head_width(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _least_weights(model: nn.Module, tokens: int, asked: int) -> float:
    """Weights times tokens that a pass over `tokens` needs where only `asked` of them predict something: all layers but the head, which
    runs there only, as the last block's do but those of keys and values (`last_block_at_places`)."""
    config, (linear, head) = model.config, weights_of(model)
    values = 2 * config.hidden_size * _head_width(config) * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    return linear * tokens - (linear / config.num_hidden_layers - values) * (tokens - asked) + head * asked


def weights_of(model: nn.Module) -> tuple[int, int]:
    """How many weights a token meets: those of the blocks' linear layers, and those of the head."""
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if m is not head and m is not model.get_input_embeddings()
                 and isinstance(getattr(m, "weight", None), torch.Tensor) and m.weight.dim() == 2 and not isinstance(m, nn.Embedding))
    return linear, head.weight.numel()


def vocabulary_of(student: Student) -> int:
    """Rows of the head: how many tokens the student can choose from."""
    return student.model.get_output_embeddings().weight.shape[0]


def square_rate(size: int = 2048, tries: int = 3, product=torch.mm) -> float:
    """GFLOP/s of the float32 product of two [size, size] matrices, right now: the median of some tries."""
    a, b = torch.randn(2, size, size)
    return 2.0 * size**3 / float(np.median([timed(product, a, b)[0] for _ in range(tries)])) / 1e9


def best_rate(size: int = 2048, tries: int = 3) -> float:
    """`square_rate` of the faster one of two libraries: plain products and those of `prepacked` weights."""
    layer = Prepacked(nn.Linear(size, size, bias=False).requires_grad_(False))
    layer(torch.randn(1, size))  # laying the weights out is not counted
    return max(square_rate(size, tries), square_rate(size, tries, lambda a, _: layer(a)))


def layer_rates(model: nn.Module, rows: list[int], tries: int = 5) -> pd.DataFrame:
    """GFLOP/s of all linear layers of the model's blocks one after the other (so the weights come from memory, as they do in use), by the
    rows of their input: plain (torch's own, MKL), oneDNN (`product`) and `prepacked`, the last two also as ratios to plain. Medians, turn
    about; laying the weights out is not counted."""
    layers = [m for block in blocks_of(model) for m in block.modules() if isinstance(m, nn.Linear)]
    found, sides = [], {"plain": layers, "oneDNN": [partial(product, weight=m.weight, bias=m.bias) for m in layers],
                        "prepacked": [Prepacked(m) for m in layers]}
    with torch.no_grad():
        for n in rows:
            inputs, gflop = {m.in_features: torch.randn(n, m.in_features) for m in layers}, 2e-9 * n * sum(m.weight.numel() for m in layers)
            seconds = turn_about({side: lambda called=called: [f(inputs[m.in_features]) for f, m in zip(called, layers)]
                                  for side, called in sides.items()}, tries)
            found.append({"rows": n, **{side: gflop / s for side, s in seconds.items()}})
    table = pd.DataFrame(found).set_index("rows")
    return table.assign(oneDNN_ratio=table["oneDNN"] / table["plain"], prepacked_ratio=table["prepacked"] / table["plain"])


def training_rates(model: nn.Module, batch: list[Encoded], tries: int = 3) -> pd.DataFrame:
    """GFLOP/s of the products of a training step on a batch: plain (torch's own), ours, their ratio. Rows: forward, gradient of the
    input, gradient of the weight (of all linear layers of the blocks one after the other), logits and the gradient of their input.
    Medians, turn about."""
    laid = collate(batch)
    tokens, asked = laid["input_ids"].shape[1], len(laid["weights"])
    layers = [m.weight for block in blocks_of(model) for m in block.modules() if isinstance(m, nn.Linear)]
    head = model.get_output_embeddings().weight
    into, out = ({n: torch.randn(tokens, n) for n in sizes} for sizes in ({w.shape[1] for w in layers}, {w.shape[0] for w in layers}))
    hidden, logits = torch.randn(asked, head.shape[1]), torch.randn(asked, head.shape[0])
    body, top = 2e-9 * tokens * sum(w.numel() for w in layers), 2e-9 * asked * head.numel()
    works = {"forward": (body, lambda: [into[w.shape[1]] @ w.t() for w in layers], lambda: [product(into[w.shape[1]], w) for w in layers]),
             "gradient of the input": (body, lambda: [out[w.shape[0]] @ w for w in layers], lambda: [product(out[w.shape[0]], w.t()) for w in layers]),
             "gradient of the weight": (body, lambda: [out[w.shape[0]].t() @ into[w.shape[1]] for w in layers],
                                        lambda: [weight_gradient(out[w.shape[0]], into[w.shape[1]]) for w in layers]),
             "logits": (top, lambda: hidden @ head.t(), lambda: product(hidden, head)),
             "gradient of the logits' input": (top, lambda: logits @ head, lambda: product(logits, head.t()))}
    found = []
    with torch.no_grad():
        for name, (gflop, *sides) in works.items():
            seconds = turn_about(dict(zip(("plain", "ours"), sides)), tries)
            found.append({"product": name, **{side: gflop / s for side, s in seconds.items()}})
    table = pd.DataFrame(found).set_index("product")
    return table.assign(ratio=table["ours"] / table["plain"])


def read_rates(rates: pd.DataFrame) -> str:
    """A sentence that reads a `training_rates` table."""
    ratios = rates["ratio"]
    return (f"GFLOP/s of a training step's products, torch's own and ours: from {ratios.min():.2f} times ({ratios.idxmin()}) "
            f"to {ratios.max():.2f} times ({ratios.idxmax()}).")


def product_rates(model: nn.Module, tokens: int, size: int = 2048, tries: int = 3) -> dict[str, float]:
    """GFLOP/s of float32 matrix products, right now: "square", `square_rate`; "best", `best_rate`; and "own", the three products of
    every linear layer of the model (forward, gradient of the input, gradient of the weight) for `tokens` rows, as we train on them."""
    shapes = {}
    for m in model.modules():
        if isinstance(m, nn.Linear) and m is not model.get_output_embeddings():
            shapes[tuple(m.weight.shape)] = shapes.get(tuple(m.weight.shape), 0) + 1
    own, flops, tokens = [], 0.0, tokens + -tokens % ROWS
    for (out, into), count in shapes.items():
        x, w, y = torch.randn(tokens, into), torch.randn(out, into), torch.randn(tokens, out)
        spent = [timed(lambda: (product(x, w), product(y, w.t()), weight_gradient(y, x)))[0] for _ in range(tries)]
        own.append(float(np.median(spent)) * count)
        flops += 6.0 * tokens * out * into * count
    return {"square": square_rate(size, tries), "best": best_rate(size, tries), "own": flops / sum(own) / 1e9 if own else float("nan")}


def _ours_beside(peer: str) -> str:
    """Our side on the batches that a peer gets."""
    return "ours, grouped" if TRAINERS[peer][1] else "ours"


def time_training(student: Student, batches: dict[bool, list[tuple[str, list[Encoded]]]], config: TrainConfig, repeats: int,
                  sides: list[str], square: int = 2048) -> pd.DataFrame:
    """Every optimiser step of every peer among `sides` and of ours beside it on the same batches (`train_turn_about`, of the student as it
    is loaded by its name): side, beside (the peer), repeat, step, placement, tokens, seconds, loss, the machine's product rates right after
    that step of the pair (GFLOP/s: square, best, own shapes) and the step's needed GFLOP."""
    there = [s for s in sides if not s.startswith("ours") and (not TRAINERS[s][0] or find_spec(TRAINERS[s][0]))]
    rows = []
    for repeat in range(repeats):
        for peer in there:
            pair, work = [_ours_beside(peer), peer], batches[TRAINERS[peer][1]]
            tokens = int(np.mean([sum(len(e.ids) for e in b) for _, b in work]))
            found = train_turn_about(pair, student.name, [b for _, b in work], config, between=lambda: product_rates(student.model, tokens, square))
            for side, made in zip(pair, found):
                for step, (placement, batch) in enumerate(work):
                    rows.append({"side": side, "beside": peer, "repeat": repeat, "step": step, "placement": placement,
                                 "tokens": sum(len(e.ids) for e in batch), "seconds": made["seconds"][step], "loss": made["losses"][step],
                                 "gflop": needed_flops(student.model, batch) / 1e9, "least_gflop": needed_flops(student.model, batch, True) / 1e9,
                                 **made["between"][step]})
    return pd.DataFrame(rows)


KERNELS = ["matrix products", "head", "attention", "optimiser"]  # groups of a `Clock` that the libraries' kernels do


def kernel_share(profiled: pd.Series) -> float:
    """The share of a `profile` that is spent in kernels. A ratio divided by it is what our side would reach if nothing but
    these took time: who is ahead of that must have faster products, not less around them."""
    return float(profiled.reindex(KERNELS).sum() / profiled.sum())


def training_kernels(student: Student, batches: dict[bool, list[tuple[str, list[Encoded]]]], steps: int = 4) -> pd.Series:
    """By placement: `kernel_share` of our optimiser steps on the middle batch of each."""
    parts = {p: [batch for placement, batch in batches[True] if placement == p] for p in PLACEMENTS}
    return pd.Series({p: kernel_share(profile_training("ours", student, part[len(part) // 2], vocabulary_of(student), steps)) for p, part in parts.items()})


def training_rows(steps: pd.DataFrame, work: str, targets: dict[str, float], sides: list[str], kernels: pd.Series) -> pd.DataFrame:
    """`time_training`'s steps as result rows: one per peer and placement (seconds per optimiser step). A peer's step is compared with
    ours on the same batch, right before it, and its loss of every step with ours. The ratio is that of the total times, as in an epoch:
    batches differ in their padding, and a median of few ratios is one batch's. `bound` is the ratio that steps of nothing but the least
    operations, at the rate of a big product of the faster library, would reach: no implementation in float32 can be further ahead of this
    peer. `kernels` is the ratio over the share of our step that is spent in kernels (`training_kernels`)."""
    rows = []
    for side in sides:
        if side.startswith("ours"):
            continue
        mine, theirs, known = steps[steps["side"].str.startswith("ours") & (steps["beside"] == side)], steps[steps["side"] == side], {}
        if not len(mine):  # the peer is not installed
            mine = steps[steps["side"] == _ours_beside(side)]
        if len(theirs):
            a, b = (x.sort_values(["repeat", "step"])["loss"].to_numpy() for x in (mine, theirs))
            known = {"check": close(a, b, LOSS_LIMIT, "losses")}
        for placement in PLACEMENTS:
            ours, their = (x[x["placement"] == placement].sort_values(["repeat", "step"]) for x in (mine, theirs))
            if len(ours):
                found = row(f"{work}, {placement}", side, TRAINERS[side][2], ours["seconds"].tolist(), their["seconds"].tolist() or None,
                            targets.get(side), known.get("check"), middle=np.mean)
                bound = float(their["seconds"].sum() / (ours["least_gflop"] / ours["best"]).sum()) if len(their) else np.nan
                rows.append(found | {"bound": bound, "kernels": found["ratio"] / kernels[placement]})
    return pd.DataFrame(rows)


def whose_rounding(student: Student, steps: pd.DataFrame, batches: dict[bool, list[tuple[str, list[Encoded]]]], config: TrainConfig,
                   seed: int = 0) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """Where a peer's loss is furthest from ours, whose rounding that is. Ours trains once more (all steps: the learning rate depends on
    their number); with the weights that it has there, the loss of that batch is computed in float64 and, in float32, by transformers
    (padded, what the Trainer calls).

    Returns the losses in nats per supervised token with their relative difference from the float64 one (the peer's own rests on the
    weights of its run), and for a Trainer {(student, peer): difference of transformers' loss}: with the same weights, so it is the
    function's."""
    mine, theirs = (steps[steps["side"].map(is_peer) == peer] for peer in (False, True))
    both = theirs.merge(mine, left_on=["side", "repeat", "step"], right_on=["beside", "repeat", "step"], suffixes=("", "_ours"))
    worst = both.loc[(both["loss"] / both["loss_ours"] - 1).abs().idxmax()]
    order = [batch for _, batch in batches[TRAINERS[worst["side"]][1]]]
    learner, said, found = replace(student, model=copy.deepcopy(student.model)), [], {}

    def look():
        if len(said) == worst["step"]:
            found.update(_losses_with(student, learner.model.state_dict(), order[len(said)]))

    look()
    train_side(worst["side_ours"], learner, order, config, seed, lambda _, loss: (said.append(loss), look()))
    losses = {worst["side_ours"]: said[worst["step"]], "transformers, with our weights": found["transformers"], worst["side"]: worst["loss"]}
    off = {side: abs(loss / found["float64"] - 1) for side, loss in losses.items()}
    table = pd.DataFrame([{"loss": side, "step": worst["step"] + 1, "nats": f"{loss:.7f}", "float64": f"{found['float64']:.7f}",
                           "difference": f"{off[side]:.0e}"} for side, loss in losses.items()])
    return table, {(student.name, worst["side"]): off["transformers, with our weights"]} if worst["side"].startswith("Trainer") else {}


def _losses_with(student: Student, weights: dict[str, torch.Tensor], batch: list[Encoded]) -> dict[str, float]:
    """The loss of a batch with these weights: transformers' own in float32, and in float64 on our batch layout."""
    plain = copy.deepcopy(student.model).eval()
    plain.load_state_dict(weights)
    with torch.no_grad():
        theirs = float(plain(**_padding_collator(_padding_tokenizer(student))([_features(e) for e in batch])).loss)
        plain.double().set_attn_implementation("packed")
        return {"transformers": theirs, "float64": float(token_losses(plain, collate(batch)).mean())}


def limit_share(steps: pd.DataFrame, kernels: pd.Series) -> pd.DataFrame:
    """Our training against the machine's own limit, by placement: tokens/s, needed GFLOP/s, and its share of the rate of a
    big square product (torch's own), of the faster library's (with only the `least` operations counted) and of the products at the
    model's own shapes, all measured right after each step; "kernels", the first of these shares if our step took no time but in kernels
    (`training_kernels`)."""
    rows = []
    for placement, part in steps[steps["side"].str.startswith("ours") & (steps["placement"] != "warm-up")].groupby("placement", sort=False):
        rate = part["gflop"] / part["seconds"]
        of_square = float((rate / part["square"]).median())
        rows.append({"placement": placement, "steps": len(part), "tokens_per_s": float((part["tokens"] / part["seconds"]).median()),
                     "needed_gflop_s": float(rate.median()), "square_gflop_s": float(part["square"].median()),
                     "best_gflop_s": float(part["best"].median()), "own_gflop_s": float(part["own"].median()),
                     "share_of_square": of_square,
                     "share_of_best": float((part["least_gflop"] / part["seconds"] / part["best"]).median()),
                     "share_of_own": float((rate / part["own"]).median()), "kernels": of_square / kernels[placement]})
    return pd.DataFrame(rows)


def read_shares(shares: pd.DataFrame) -> str:
    """A sentence that reads a `limit_share` table."""
    return (f"Share of the big product's rate: {', '.join(f'{r.placement} **{100 * r.share_of_square:.0f} %**' for r in shares.itertuples())}. Nothing but kernels "
            f"would reach {', '.join(f'{100 * share:.0f} %' for share in shares['kernels'])}; of the faster library's rate {100 * shares['share_of_best'].median():.0f} %, "
            f"of the products at the model's own shapes {100 * shares['share_of_own'].median():.0f} % (medians).")


def peak_memory(student: Student, sides: list[str], sequences: list[Encoded], config: TrainConfig) -> pd.DataFrame:
    """Memory in GB of training two batches, each side in a fresh process: "loaded_gb" with imports and all weights, "peak_gb" ever held."""
    rows = []
    for side in sides:
        found = {"loaded_gb": np.nan, "peak_gb": np.nan}
        if not TRAINERS[side][0] or find_spec(TRAINERS[side][0]):
            (found,) = train_turn_about([side], student.name, pick_batches(sequences, config.batch_size, 2, TRAINERS[side][1]), config)
        rows.append({"side": side, **{name: found[name] for name in ("loaded_gb", "peak_gb")}})
    return pd.DataFrame(rows)


def _held(name: str) -> float:
    """kB of this process: VmRSS now, VmHWM at its highest."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
        return float(line.split()[1])
    except (OSError, StopIteration):
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def taught(student: Student, placement: str, examples: list[Example], rationales: dict[str, Rationale], frozen_layers: int,
           epochs: int = 1, lr: float = 3e-4) -> Student:
    """A copy of the student, briefly trained on one placement, so that its answers end as a trained student's do."""
    pupil = replace(student, model=copy.deepcopy(student.model))
    sequences = [encode(pupil, e, rationales[e.id].text, Arm(placement)) for e in examples]
    config = TrainConfig(epochs=epochs, batch_size=8, frozen_layers=frozen_layers, lr=lr)
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(pupil, [sequences] * epochs, Arm(placement), config, 0, Path(folder) / "run")
    pupil.model.requires_grad_(False)
    return pupil


# ------------------------------------------------------------------------------------------------- scoring and generation

def time_scoring(student: Student, examples: list[Example], sizes: list[int], own_sizes: list[int], repeats: int,
                 target: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forced choice: `evaluate` without generation against the evaluation harness's HFLM on the same tokens. The same option
    must be picked for every question."""
    def ours(size):
        return [p["scores"] for p in evaluate(student, examples, "label_only", generate=False, batch_size=size)]

    def same(a, b):
        picks = equal([int(np.argmax(s)) for s in a], [int(np.argmax(s)) for s in b], "options picked alike")
        logps = close(np.concatenate(a), np.concatenate(b), 1e-4, "log probabilities")
        return picks[0] and logps[0], f"{picks[1]}; {logps[1]}"

    peer = {"run": lambda size: harness_scores(student, examples, size), "sizes": sizes, "needs": "lm_eval", "target": target,
            "settings": "HFLM.loglikelihood on the same tokens"}
    return compare("forced choice", {"run": ours, "sizes": own_sizes}, {"lm-evaluation-harness": peer}, same, repeats,
                   floor=lambda size: prompts_only(student, examples, "label_only", size))


def prompts_only(student: Student, examples: list[Example], placement: str, batch_size: int) -> None:
    """One pass over the prompts, in batches of about the same length: what scoring and answering can't do without."""
    prompts = sorted((student.bos_ids + student.encode(prompt_text(e, placement)) for e in examples), key=len)
    with prepacked(student.model):
        for begin in range(0, len(prompts), batch_size):
            start(student, prompts[begin:begin + batch_size])


def steps_only(student: Student, steps: int) -> None:
    """Reads every weight once per decoding step, as one row's products do: what generation can't do without after the prompt."""
    layers = [m.weight for m in student.model.modules() if isinstance(m, nn.Linear)]
    rows = {w.shape[1]: torch.randn(1, w.shape[1]) for w in layers}
    with torch.no_grad():
        for _ in range(steps):
            for weight in layers:
                nn.functional.linear(rows[weight.shape[1]], weight)


def harness_scores(student: Student, examples: list[Example], batch_size: int) -> list[list[float]]:
    """log p of each option by lm-evaluation-harness's HFLM, from our token ids, prompt and option tokenised as we do."""
    from lm_eval.models.huggingface import HFLM

    if not hasattr(student, "_harness"):
        import logging

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        student._harness = HFLM(pretrained=student.model, tokenizer=copy.deepcopy(student.tokenizer), backend="causal", dtype="float32")
    lm = student._harness
    lm.batch_size_per_gpu = batch_size
    requests = []
    for e in examples:
        prompt = student.bos_ids + student.encode(prompt_text(e, "label_only"))
        requests += [((e.id, str(o)), prompt, student.encode(label_text(e, o))) for o in range(len(e.choices))]
    scores, found, at = lm._loglikelihood_tokens(requests, disable_tqdm=True), [], 0
    for e in examples:
        found.append([s[0] for s in scores[at:at + len(e.choices)]])
        at += len(e.choices)
    return found


class StopAt(StoppingCriteria):
    """Ends a row of HF's generate once a text stands in what it wrote, as our elicitation does."""

    def __init__(self, student: Student, text: str, prompt_length: int):
        self.student, self.text, self.length = student, text, prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        recent = input_ids[:, self.length:][:, -len(self.text) - 2:]
        return torch.tensor([self.text in self.student.decode(r) for r in recent.tolist()], device=input_ids.device)


def hf_generate(student: Student, prompts: list[list[int]], max_new_tokens: int, batch_size: int, ends: set[int] = frozenset(),
                stop: str = "") -> list[list[int]]:
    """HF's generate, greedy, on prompts sorted by length and padded on the left. New ids of each prompt, up to its end token."""
    ends, found = {student.eos_id, *ends}, [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin:begin + batch_size]
        length = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[student.pad_id] * (length - len(prompts[i])) + prompts[i] for i in rows], device=student.model.device)
        mask = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=student.model.device)
        criteria = StoppingCriteriaList([StopAt(student, stop, length)]) if stop else None
        with torch.no_grad():
            out = student.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
                                         eos_token_id=sorted(ends), pad_token_id=student.pad_id, stopping_criteria=criteria)
        for i, new in zip(rows, out[:, length:].tolist()):
            cut = next((k for k, token in enumerate(new) if token in ends), len(new))
            found[i] = new[:cut]
    return found


def time_answers(student: Student, examples: list[Example], placement: str, max_new_tokens: int, sizes: list[int],
                 own_sizes: list[int], repeats: int, target: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Generated answers of a label-first student: `evaluate` (which scores the options too, and stops at the label) against
    HF's generate to the same maximum. The answers, as they are parsed, must be the same."""
    prompts = [student.bos_ids + student.encode(prompt_text(e, placement)) for e in examples]

    def ours(size):
        return [p["generated"] for p in evaluate(student, examples, placement, batch_size=size, max_label_tokens=max_new_tokens)]

    def theirs(size):
        written = [student.decode(new) for new in hf_generate(student, prompts, max_new_tokens, size)]
        return [parse_answer(split_generation(text, placement)[1], e.choices) for text, e in zip(written, examples)]

    peer = {"run": theirs, "sizes": sizes, "target": target, "settings": f"model.generate, at most {max_new_tokens} tokens, padded"}
    return compare(f"generated answers, {placement}", {"run": ours, "sizes": own_sizes}, {"HF generate": peer},
                   lambda a, b: equal(a, b, "parsed answers alike"), repeats,
                   floor=lambda size: prompts_only(student, examples, placement, size))


def time_rationales(student: Student, examples: list[Example], max_new_tokens: int, max_label_tokens: int, sizes: list[int],
                    own_sizes: list[int], repeats: int, target: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """pre_cot's rationale and answer: `evaluate` (which scores the options too) against HF's generate. The text must be the
    same; a rationale that did not end within its limit is compared up to the limit."""
    prompts = [student.bos_ids + student.encode(prompt_text(e, "pre_cot")) for e in examples]

    def ours(size):
        found = evaluate(student, examples, "pre_cot", batch_size=size, max_new_tokens=max_new_tokens, max_label_tokens=max_label_tokens)
        return [(p["rationale"], p["text"], p["cut_off"]) for p in found]

    def theirs(size):
        written = hf_generate(student, prompts, max_new_tokens + max_label_tokens, size)
        return [(student.decode(new), student.decode(new[:max_new_tokens])) for new in written]

    def same(a, b):
        if isinstance(b[0][-1], bool):
            return True, "itself"
        alike = []
        for (rationale, label, cut), (text, head) in zip(a, b):
            thought, answer = split_generation(text, "pre_cot")
            whole = not cut and answer is not None  # otherwise a limit or an early end came before the label: compare what came before
            alike.append((rationale, label) == (thought, answer.strip().split("\n")[0]) if whole else head.strip().startswith(rationale))
        ended = sum(not cut for _, _, cut in a)
        return all(alike), f"{sum(alike)} of {len(a)} texts alike, {ended} ended by themselves"

    peer = {"run": theirs, "sizes": sizes, "target": target,
            "settings": f"model.generate, at most {max_new_tokens + max_label_tokens} tokens, static batch"}

    def floor(size):
        prompts_only(student, examples, "pre_cot", size)
        steps_only(student, max_new_tokens * -(-len(examples) // size))

    return compare(f"pre_cot generation, {len(examples)} questions", {"run": ours, "sizes": own_sizes}, {"HF generate": peer}, same, repeats, floor)


def time_elicitation(student: Student, examples: list[Example], demonstrations: list, max_new_tokens: int, sizes: list[int],
                     own_sizes: list[int], repeats: int, target: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Few-shot elicitation, greedy: `elicit.generate` on a shared prefix (its computing included) against HF's generate on
    whole prompts. The text must be the same."""
    chat = student.tokenizer if student.tokenizer.chat_template else None
    ids = [elicit.prompt_ids(student, elicit.build_prompt(e, demonstrations, "blind", chat)) for e in examples]
    ends = elicit._end_ids(student)

    def ours(size):
        order, texts_ = sorted(range(len(ids)), key=lambda i: len(ids[i][1])), [""] * len(ids)
        with prepacked(student.model):
            shared = elicit.prefix_cache(student, ids[0][0])
            for begin in range(0, len(order), size):
                rows = order[begin:begin + size]
                for i, new, _, _ in elicit.generate(student, [ids[r][1] for r in rows], shared, max_new_tokens=max_new_tokens, end_ids=ends):
                    texts_[rows[i]] = student.decode(new).split(elicit.STOP)[0]
        return texts_

    def theirs(size):
        written = hf_generate(student, [a + b for a, b in ids], max_new_tokens, size, ends, elicit.STOP)
        return [student.decode(new).split(elicit.STOP)[0] for new in written]

    peer = {"run": theirs, "sizes": sizes, "target": target,
            "settings": f"model.generate on whole prompts ({len(ids[0][0])} tokens shared), at most {max_new_tokens} tokens"}
    reading = 2e-9 * weights_of(student.model)[0] * (len(ids[0][0]) + sum(len(own) for _, own in ids))  # the prefix once, then the questions
    return compare(f"elicitation, {len(demonstrations)} demonstrations, {len(ids)} questions", {"run": ours, "sizes": own_sizes},
                   {"HF generate": peer}, lambda a, b: equal(a, b, "texts alike"), repeats,
                   floor=lambda size: steps_only(student, max_new_tokens * -(-len(ids) // size)), gflop=reading)


# ------------------------------------------------------------------------------------------------------------ attribution

def _whole(student: Student, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole sequence up to the label's last token, and the same with the rationale at the filler token, [1, T] each."""
    head, tail = parts.prefix, parts.frame + parts.label[:-1]
    ids, base = ([*head, *middle, *tail] for middle in (parts.rationale, [student.filler_id] * len(parts.rationale)))
    return torch.tensor([ids]), torch.tensor([base])


def _label_logp(student: Student, parts: Parts, keep: bool):
    """A researcher's forward function: ids [B, T] -> log p(label) [B], on the whole sequence; keep=True asks the head for the
    label's positions only."""
    label, n = torch.tensor(parts.label), len(parts.label)

    def forward(ids):
        logits = student.model(input_ids=ids, use_cache=False, **({"logits_to_keep": n} if keep else {})).logits[:, -n:]
        return logits.float().log_softmax(-1)[:, torch.arange(n), label].sum(1)

    return forward


def captum_gradients(student: Student, example: Example, rationale: str, n_steps: int, batch_size: int, how: str) -> np.ndarray:
    """Integrated gradients of the rationale's tokens by captum on the whole sequence. how: "as it comes" (parameters require
    gradients), "frozen", or "frozen, head at the label"."""
    from captum.attr import LayerIntegratedGradients

    parts = split_sequence(student, example, rationale)
    ids, base = _whole(student, parts)
    flags = [p.requires_grad for p in student.model.parameters()]
    student.model.requires_grad_(how == "as it comes")
    try:
        method = LayerIntegratedGradients(_label_logp(student, parts, "head" in how), student.model.get_input_embeddings())
        found = method.attribute(ids, baselines=base, n_steps=n_steps, internal_batch_size=batch_size)
    finally:
        for parameter, flag in zip(student.model.parameters(), flags):
            parameter.requires_grad_(flag)
    a = len(parts.prefix)
    return found.sum(-1)[0, a:a + len(parts.rationale)].detach().double().numpy()


def captum_occlusion(student: Student, example: Example, rationale: str, batch_size: int, keep: bool = False) -> np.ndarray:
    """The fall of log p(label) when a rationale word is at the filler, one number per word, by captum's FeatureAblation."""
    from captum.attr import FeatureAblation

    parts = split_sequence(student, example, rationale)
    ids, base = _whole(student, parts)
    a, words = len(parts.prefix), np.array(parts.words)
    mask = torch.zeros_like(ids)  # the words are features 1, 2, ...; what stands around them is feature 0 and never changes
    mask[0, a:a + len(words)] = torch.tensor(words - words.min() + 1)
    with torch.no_grad():
        found = FeatureAblation(_label_logp(student, parts, keep)).attribute(ids, baselines=base, feature_mask=mask,
                                                                              perturbations_per_eval=batch_size)
    tokens = found[0, a:a + len(words)].double().numpy()
    return np.array([tokens[words == w][0] for w in np.unique(words)])


def _attributed(student: Student, pairs: list[tuple[Example, str]], method: str, **settings) -> list[Attribution]:
    """`attribute_all`, as a study calls it."""
    return attribute_all(student, [e for e, _ in pairs], {e.id: Rationale(e.id, r) for e, r in pairs}, method, **settings)


def time_gradients(student: Student, pairs: list[tuple[Example, str]], n_steps: int, sizes: list[int], own_sizes: list[int],
                   repeats: int, ways: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Integrated gradients: `attribute` against captum on the whole sequence, in the `ways` of `captum_gradients`. Attributions
    must agree to 1e-4 of the largest."""
    def ours(size):
        return np.concatenate([a.scores for a in _attributed(student, pairs, "integrated_gradients", n_steps=n_steps, batch_size=size)])

    def theirs(how):
        return lambda size: np.concatenate([captum_gradients(student, e, r, n_steps, size, how) for e, r in pairs])

    parts, targets = [split_sequence(student, e, r) for e, r in pairs], {"as it comes": 5.0, "frozen": 3.0}
    least = sum(4e-9 * n_steps * _least_weights(student.model, len(p.rationale + p.frame + p.label) - 1, len(p.label)) for p in parts)
    peers = {f"captum, {how}": {"run": theirs(how), "sizes": sizes, "target": targets.get(how), "settings": "LayerIntegratedGradients"}
             for how in ways}
    return compare(f"integrated gradients, {n_steps} steps", {"run": ours, "sizes": own_sizes}, peers,
                   lambda a, b: close(a, b, 1e-4, "attributions"), repeats, gflop=least, vocabulary=vocabulary_of(student))


def time_occlusion(student: Student, pairs: list[tuple[Example, str]], sizes: list[int], own_sizes: list[int], repeats: int,
                   target: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Occlusion of every rationale word: `attribute` against captum's FeatureAblation. The falls must agree to 1e-5 of the
    largest log probability's scale."""
    def ours(size):
        found = _attributed(student, pairs, "occlusion_word", batch_size=size)
        return np.concatenate([aggregate_to_words(a.scores, a.words) for a in found])

    scale = max(abs(a.logp_full) for a in _attributed(student, pairs, "saliency"))  # one pass each

    def same(a, b):  # both sides subtract two log probabilities of this size: its rounding is what can differ
        gap = float(np.abs(a - b).max() / scale)
        return gap <= 1e-5, f"{len(a)} words, largest difference {gap:.0e} of log p (limit 1e-05)"

    peers = {f"captum{', head at the label' if keep else ''}": {
        "run": (lambda k: lambda size: np.concatenate([captum_occlusion(student, e, r, size, k) for e, r in pairs]))(keep),
        "sizes": sizes, "target": None if keep else target, "settings": "FeatureAblation, a feature per word"} for keep in (False, True)}
    least = 0.0  # for each word: the tokens from it on, and the head at the label
    for p in (split_sequence(student, e, r) for e, r in pairs):
        starts, whole = np.unique(p.words, return_index=True)[1], len(p.rationale + p.frame + p.label) - 1
        least += 2e-9 * sum(_least_weights(student.model, whole - int(a), len(p.label)) for a in starts)
    return compare("occlusion of every word", {"run": ours, "sizes": own_sizes}, peers, same, repeats, gflop=least, vocabulary=vocabulary_of(student))


# ---------------------------------------------------------------------------------------------------------------- profiles

GROUPS = (  # the first group whose mark stands in an operation's name
    ("loss", ("nll_loss", "log_softmax", "logsumexp", "aten.exp_")),
    ("attention", ("scaled_dot_product", "_flash_attention", "softmax")),
    ("optimiser", ("_fused_adam", "_foreach", "linalg_vector_norm")),
    ("matrix products", ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "mkldnn._linear")),
    ("copies and indexing", ("reorder", "copy", "cat", "index", "clone", "fill", "zero", "select", "slice", "gather", "scatter", "embedding",
                             "new_empty", "empty", "resize", "repeat", "expand", "view", "transpose", "aten.t.", "permute", "split", "squeeze", "detach")),
)


class Clock(TorchDispatchMode):
    """While open, every operation that is called is timed by itself: `spent`, wall seconds by kind (GROUPS). Matrix products with the
    vocabulary among their sizes are the head's. It costs a twentieth of a training step, between the operations; torch's profiler a
    fifth, and its records lie between the tensors in memory, which slows the products themselves."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.spent = vocabulary, {}

    def __torch_dispatch__(self, called, types, given=(), named=None):
        seconds, found = timed(lambda: called(*given, **(named or {})))
        group = next((g for g, marks in GROUPS if any(m in str(called) for m in marks)), "norms and activations")
        if group == "matrix products" and any(isinstance(x, torch.Tensor) and self.vocabulary in x.shape for x in given):
            group = "head"
        self.add(group, seconds)
        return found

    def add(self, group: str, seconds: float) -> None:
        self.spent[group] = self.spent.get(group, 0.0) + seconds


def _with_rest(spent: dict[str, float], wall: float) -> pd.Series:
    """Seconds by kind of operation; what is left of the wall time, measured without the clock, is Python."""
    return pd.Series(spent | {"Python and the rest": max(0.0, wall - sum(spent.values()))})


def profile(call, vocabulary: int) -> pd.Series:
    """Wall seconds of one call by kind of operation (`Clock`), tokenisation among them: it runs once without the clock, once with it."""
    wall, own, clock = timed(call)[0], Student.encode, Clock(vocabulary)

    def encode_timed(self, text):
        seconds, found = timed(own, self, text)
        clock.add("tokenisation", seconds)
        return found

    Student.encode = encode_timed
    try:
        with clock:
            call()
    finally:
        Student.encode = own
    return _with_rest(clock.spent, wall)


def profile_training(side: str, student: Student, batch: list[Encoded], vocabulary: int, steps: int = 2) -> pd.Series:
    """Wall seconds of an optimiser step of a trainer by kind of operation: after WARM steps that are not looked at, the medians of `steps` with
    the clock, each right after one without it, whose wall time counts. The student stays as it was."""
    clocks, times = [], []
    with ExitStack() as stack:
        def stepped(seconds, _):
            stack.close()
            times.append(seconds)
            if len(times) > WARM and (len(times) - WARM) % 2:
                clocks.append(Clock(vocabulary))
                stack.enter_context(clocks[-1])

        train_side(side, replace(student, model=copy.deepcopy(student.model)), [batch] * (WARM + 2 * steps), TrainConfig(batch_size=len(batch)),
                   stepped=stepped)
    return _with_rest(pd.DataFrame([clock.spent for clock in clocks]).median().to_dict(), float(np.median(times[WARM::2])))


def profiles(student: Student, examples: list[Example], rationales: dict[str, Rationale], batch: list[Encoded], n_steps: int = 8,
             generator: Student | None = None, max_new_tokens: int = 32) -> pd.DataFrame:
    """Training (an optimiser step; ours and the Trainer's), scoring, pre_cot generation and integrated gradients, side by side as shares of each stage's time by
    kind of operation; the last row holds its seconds. n_steps: of the integral; generator: a student that ends its texts."""
    vocabulary, writer, first = vocabulary_of(student), generator or student, examples[0]
    stages = {
        "scoring": lambda: evaluate(student, examples, "label_only", generate=False),
        "pre_cot generation": lambda: evaluate(writer, examples, "pre_cot", max_new_tokens=max_new_tokens),
        "integrated gradients": lambda: attribute(student, first, rationales[first.id].text, "integrated_gradients", n_steps=n_steps)}
    columns = {f"training: {side}": profile_training(side, student, batch, vocabulary) for side in ("ours", "Trainer at its best")}
    for stage, call in stages.items():
        call()
        columns[stage] = profile(call, vocabulary)
    table = pd.DataFrame(columns).fillna(0.0)
    totals, shares = table.sum(), table / table.sum()
    shown = shares.loc[shares.sum(axis=1).sort_values(ascending=False).index].map(lambda share: f"{100 * share:.1f} %")
    shown.loc["seconds"] = [f"{totals[c]:.2f}" for c in shown.columns]
    return shown


def at_threads(student: Student, batch: list[Encoded], examples: list[Example], threads: list[int], repeats: int) -> pd.DataFrame:
    """Seconds of one training step (forward and backward) and of scoring, by number of torch threads, turn about."""
    before, pupil = torch.get_num_threads(), replace(student, model=copy.deepcopy(student.model).requires_grad_(True))
    works = {"training step": lambda: backward_step(pupil, batch), "scoring": lambda: evaluate(student, examples, "label_only", generate=False)}

    def at(n, call):
        torch.set_num_threads(n)
        call()

    try:
        seconds = turn_about({(name, n): partial(at, n, call) for n in threads for name, call in works.items()}, repeats)
    finally:
        torch.set_num_threads(before)
    return pd.Series(seconds).rename_axis(["work", "threads"]).unstack(sort=False)


def backward_step(student: Student, batch: list[Encoded]) -> float:
    """Forward and backward of one padding-free batch, gradients thrown away; the loss in nats per token."""
    found = collate(batch)
    with training(student.model):
        loss, _ = weighted_loss(student.model, found, found["weights"] / len(found["weights"]))
        loss.backward()
    student.model.zero_grad(set_to_none=True)
    return loss.item()


# ---------------------------------------------------------------------------------------------------------------- curves

def small_student(vocabulary: int = 8192, width: int = 128, layers: int = 4) -> Student:
    """A random Llama of a given vocabulary for the curves, with the tiny student's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = load_student("tiny-llama")
    config = AutoConfig.for_model("llama", vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
                                  num_key_value_heads=2, intermediate_size=3 * width, max_position_embeddings=4096, tie_word_embeddings=True,
                                  bos_token_id=base.eos_id, eos_token_id=base.eos_id)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
    return replace(base, name="small random", model=model)


def random_batch(length: int, size: int, rng: np.random.Generator, asked: float = 0.5) -> list[Encoded]:
    """`size` sequences of `length` random ids, the last `asked` of them supervised."""
    start = int(length * (1 - asked))
    return [Encoded(f"r{i}", tuple(rng.integers(1, 500, length).tolist()), (PROMPT,) * start + (LABEL,) * (length - start)) for i in range(size)]


def measure_curves(lengths: list[int], batches: list[int], options: list[int], steps: list[int], vocabularies: list[int],
                   repeats: int, base_length: int = 128, base_batch: int = 8) -> pd.DataFrame:
    """How cost grows, on small random students: curve, x, tokens (worked on), seconds (median of repeats, the curve's points turn
    about). training by length, batch and vocabulary; scoring by options; integrated gradients by steps."""
    rng, one = np.random.default_rng(0), small_student()
    question = Example("q", "What is it that melts in the sun on a warm day?", (), 0)
    rationale = "It is cold and hard and it turns to water when it is warm, and so it melts in the sun on a warm day."
    by_options = {k: [replace(question, id=f"q{i}", choices=tuple(f"thing number {j} of {i}" for j in range(k))) for i in range(base_batch)]
                  for k in options}
    asked = replace(question, choices=("ice", "stone"))
    students = {v: small_student(v, layers=1) for v in vocabularies}
    points = {}
    for n in lengths:
        points["training: length", n] = (base_batch * n, lambda b=random_batch(n, base_batch, rng): backward_step(one, b))
    for n in batches:
        points["training: batch", n] = (n * base_length, lambda b=random_batch(base_length, n, rng): backward_step(one, b))
    for v in vocabularies:
        points["training: vocabulary", v] = (base_batch * base_length, lambda s=students[v], b=random_batch(base_length, base_batch, rng):
                                             backward_step(s, b))
    for k in options:
        count = sum(len(one.encode(label_text(e, o))) for e in by_options[k] for o in range(k))
        points["scoring: options", k] = (count, lambda e=by_options[k]: evaluate(one, e, "label_only", generate=False))
    parts = split_sequence(one, asked, rationale)
    for n in steps:
        points["integrated gradients: steps", n] = (n * len(parts.rationale), lambda n=n: attribute(one, asked, rationale, "integrated_gradients",
                                                                                                  n_steps=n))
    seconds = turn_about({point: call for point, (_, call) in points.items()}, repeats)
    table = pd.DataFrame([{"curve": c, "x": x, "tokens": points[c, x][0], "seconds": s} for (c, x), s in seconds.items()])
    return table.assign(tokens_per_s=table["tokens"] / table["seconds"])


LAWS = {"training: length": (0, 1, 2), "training: batch": (0, 1), "training: vocabulary": (0, 1), "scoring: options": (0, 1),
        "integrated gradients: steps": (0, 1)}  # the powers of x in seconds = sum of coefficient * x ** power


def fit_laws(curves: pd.DataFrame) -> pd.DataFrame:
    """Each curve's seconds as a sum of the stated powers of x with coefficients from 0 on, by least squares of the relative errors (the
    shortest point counts as much as the longest): curve, law (text), r2, worst_error (of a point, as a share of it), coefficients."""
    rows = []
    for curve, part in curves.groupby("curve", sort=False):
        powers = LAWS[curve][:max(1, len(part) - 1)]
        x, y = part["x"].to_numpy(float), part["seconds"].to_numpy(float)
        basis = np.stack([x**p for p in powers], 1)
        scale = basis.max(0)
        found = nnls(basis / scale / y[:, None], np.ones(len(y)))[0] / scale
        rest, spread = ((y - basis @ found) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        name = curve.split(": ")[1][0].upper() if "vocabulary" in curve else curve.split(": ")[1][0]
        law = " + ".join(f"{c:.2e}{['', f'·{name}', f'·{name}²'][p]}" for c, p in zip(found, powers))
        rows.append({"curve": curve, "points": len(part), "law": f"seconds = {law}", "r2": 1 - rest / spread if spread else np.nan,
                     "worst_error": float(np.abs(basis @ found / y - 1).max()), "coefficients": found.tolist()})
    return pd.DataFrame(rows)


def plot_curves(curves: pd.DataFrame, laws: pd.DataFrame):
    """A small plot per curve: tokens/s measured (points) and by the law (line). Returns the figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(laws), figsize=(2.6 * len(laws), 2.4))
    for ax, law in zip(np.atleast_1d(axes), laws.itertuples()):
        part = curves[curves["curve"] == law.curve]
        x = np.linspace(part["x"].min(), part["x"].max(), 60)
        predicted = sum(c * x**p for c, p in zip(law.coefficients, LAWS[law.curve]))
        tokens = np.interp(x, part["x"], part["tokens"])
        ax.plot(part["x"], part["tokens_per_s"], "o", color="#0072B2")
        ax.plot(x, tokens / np.where(predicted > 0, predicted, np.nan), "-", color="#E69F00")
        ax.set(title=law.curve.replace(": ", "\n"), xlabel=law.curve.split(": ")[1], ylim=(0, None))
    np.atleast_1d(axes)[0].set_ylabel("tokens/s")
    return figure


# ------------------------------------------------------------------------------------------------------------- the report

def reproduce_seconds(folders: dict[str, str]) -> pd.DataFrame:
    """Wall seconds of the executed notebooks in each folder (name -> path from the repository's root), from their metadata; a
    folder that is not there gives a row without numbers."""
    rows = []
    for name, folder in folders.items():
        paths = sorted((study.root() / folder).glob("[0-9]*.ipynb")) if folder else []
        seconds = [json.loads(p.read_text(encoding="utf-8"))["metadata"].get("cotdistill", {}).get("seconds", np.nan) for p in paths]
        rows.append({"run": name, "notebooks": len(paths), "seconds": float(np.sum(seconds)) if paths else np.nan})
    return pd.DataFrame(rows)


def reproduce_rows(table: pd.DataFrame, limits: dict[str, float]) -> pd.DataFrame:
    """`reproduce_seconds` as result rows: the limit in seconds is the target."""
    rows = []
    for r in table.itertuples():
        there = not pd.isna(r.seconds)
        rows.append({"work": r.run, "peer": "–", "settings": f"{r.notebooks} notebooks", "ours": r.seconds, "theirs": np.nan, "ratio": np.nan,
                     "target": f"< {limits[r.run]:.0f} s", "reached": ("yes" if r.seconds < limits[r.run] else "no") if there else "not run",
                     "same": "–"})
    return pd.DataFrame(rows)


def limit_rows(shares: pd.DataFrame, work: str, target: float = 0.8) -> pd.DataFrame:
    """`limit_share` as result rows: the ratio is the share of the rate of a big square product (the bound: of the faster library's)."""
    return pd.DataFrame([{"work": f"{work}, {r.placement}: share of the limit", "peer": "float32 matrix product",
                          "settings": f"{r.square_gflop_s:.0f} GFLOP/s", "ours": np.nan, "theirs": np.nan, "ratio": r.share_of_square,
                          "target": target, "reached": "yes" if r.share_of_square >= target else "no", "same": "–",
                          "bound": r.best_gflop_s / r.square_gflop_s, "kernels": r.kernels} for r in shares.itertuples()])


def memory_rows(peaks: pd.DataFrame, work: str, least: float, target: float = 2.0) -> pd.DataFrame:
    """`peak_memory` as result rows, one per peer and setting of ours: GB instead of seconds, the ratio is peer / ours. least: GB of
    weights, gradients and the two moments; with what our process holds beside its weights (imports), it gives `bound`."""
    peak, loaded, rows = *(peaks.set_index("side")[name] for name in ("peak_gb", "loaded_gb")), []
    for mine in (side for side in peak.index if side.startswith("ours")):
        for side in (side for side in peak.index if not side.startswith("ours")):
            missing, ratio = pd.isna(peak[side]), peak[side] / peak[mine]
            rows.append({"work": f"{work}: peak memory in GB, {mine}", "peer": side, "settings": TRAINERS[side][2], "ours": peak[mine],
                         "theirs": peak[side], "ratio": ratio, "target": target, "reached": "not installed" if missing else
                         "yes" if ratio >= target else "no", "same": "not installed" if missing else "–", "bound": peak[side] / (least + loaded[mine] - least / 4)})
    return pd.DataFrame(rows)


def out_of_reach(rows: pd.DataFrame, by: str = "bound") -> pd.DataFrame:
    """The rows not reached whose target is above their `bound` (no implementation can reach it in float32 on this machine) or, by="kernels",
    above what is left where nothing but the libraries' kernels takes time."""
    numbers = rows.assign(target=pd.to_numeric(rows["target"], errors="coerce"), **{by: rows.get(by, np.nan)})
    return numbers[(numbers[by] < numbers["target"]) & (numbers["reached"] != "yes")]


def summary(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """All result rows in one table."""
    return pd.concat([t for t in tables if len(t)], ignore_index=True)


def count_reached(rows: pd.DataFrame) -> str:
    """How many targets are reached, in words; rows whose peer is not installed are counted apart."""
    counts, other = rows["reached"].value_counts(), int(rows["same"].str.startswith("NO").sum())
    said = {"–": "without a target", "not installed": "wait for a peer that is not installed", "not run": "for a run"}
    return "; ".join([f"Targets reached: {counts.get('yes', 0)}, not reached: {counts.get('no', 0)}",
                      *(f"{counts[key]} {text}" for key, text in said.items() if key in counts),
                      f"{other} show different results" if other else "results are the same everywhere"])


def findings(rows: pd.DataFrame, rounding: dict[tuple[str, str], float]) -> str:
    """What the rows say, as Markdown: how many targets are reached, and for those that are not, what forbids them, the strictest first.
    rounding: (student, peer) -> how far the peer's loss is from the float64 one with the same weights (`whose_rounding`); it speaks for the
    rows of that student only."""
    def off(r):
        return max((gap for (student, peer), gap in rounding.items() if student in r.work and peer == r.peer), default=0.0)

    beyond = out_of_reach(rows)
    slow = out_of_reach(rows, "kernels").drop(beyond.index, errors="ignore")
    left = rows[(rows["reached"] == "no") & ~rows.index.isin([*beyond.index, *slow.index])]
    apart = left[np.array([r.same.startswith("NO") and off(r) > LOSS_LIMIT for r in left.itertuples()], bool)]
    left = left.drop(apart.index)
    near = sum(r.bound > 0.8 * r.target for r in beyond.itertuples()) + sum(r.kernels > 0.8 * r.target for r in slow.itertuples())

    def named(part, limit):
        return "; ".join(f"{r.work}, {r.peer} ({limit(r)} of {float(r.target):g})" for r in part.itertuples()) or "none"

    return "\n".join([
        f"**Findings.** {count_reached(rows)}.", "",
        f"- Beyond the bound ({len(beyond)} rows: what every float32 implementation must do takes longer than the target leaves): "
        + named(beyond, lambda r: f"at most {r.bound:.2f}") + ".",
        f"- Beyond the kernels ({len(slow)} rows: matrix products, attention and the optimiser alone, as MKL, oneDNN and torch run them in our work, do): "
        + named(slow, lambda r: f"at most {r.kernels:.2f}") + ".",
        f"- Beyond agreement ({len(apart)} rows whose losses differ: with the same weights the peer's is further from the float64 one than the limit of 1e-5): "
        + named(apart, lambda r: f"{r.ratio:.2f}, its loss off by {off(r):.0e},") + ".",
        f"- A limit is good to about a fifth; for {near} of these rows it is that near to the target, and another hour may judge otherwise.",
        f"- Left ({len(left)} rows that nothing measured here forbids): "
        + named(left, lambda r: f"{r.ratio:.2f}" + (", not counted, for the results differ," if r.ratio >= float(r.target) else "")) + "."])


# ---------------------------------------------------------------------------------------------------------- command line

def run(values: dict, out: Path) -> Path:
    """Execute notebooks/benchmark.ipynb with `values`; the result replaces an older one only when it is whole.

    Raises DataError for an unknown parameter, a value of the wrong type, and for what the notebook ended with."""
    source = study.root() / "notebooks" / "benchmark.ipynb"
    defaults = study.notebook_parameters(source)
    for key, value in values.items():
        if key not in defaults:
            raise DataError(f"unknown parameter '{key}'; expected one of {', '.join(defaults)}")
        study.check_value(key, value, defaults[key], "benchmark")
    out.mkdir(parents=True, exist_ok=True)
    part, started = out / ".benchmark.part.ipynb", time.time()
    try:
        study.execute_notebook(source, part, values)
    except Exception as error:
        said = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}".splitlines()[0]
        raise DataError(f"benchmark: {said} (the notebook up to the error: {part})") from None
    study.tidy(part, seconds=time.time() - started)
    os.replace(part, out / "benchmark.ipynb")
    return out / "benchmark.ipynb"


def main(arguments: list[str] | None = None) -> int:
    """`run [values.yaml] [--executed DIR]` executes the notebook; `side` is a child of `train_turn_about`."""
    import yaml

    parser = argparse.ArgumentParser(prog="python -m cotdistill.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("run")
    asked.add_argument("values", nargs="?", default=None)
    asked.add_argument("--executed", default=None)
    commands.add_parser("side")
    chosen = parser.parse_args(arguments)
    if chosen.command == "side":
        be_a_side()
        return 0
    try:
        values = yaml.safe_load(Path(chosen.values).read_text(encoding="utf-8")) if chosen.values else {}
        own = study.artifacts() / "executed" / "benchmark"
        made = run(values or {}, study.root() / chosen.executed if chosen.executed else own)
        print(f"benchmark: done in {json.loads(made.read_text())['metadata']['cotdistill']['seconds'] / 60:.1f} minutes; {os.path.relpath(made)}")
        return 0
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
