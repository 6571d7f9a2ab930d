"""What the paper's grid would cost.

A prediction from a measured law of cost, for GPUs that nobody here has.

    python -m benchmarks.grid_cost         render docs/grid-cost.md (`make scale`)
    python -m benchmarks.grid_cost costs   gather artifacts/executed/quick/costs.json from the runs
                                           of `quick` and `openbookqa-probe`

`make publish STUDY=quick` publishes the costs; the document is rendered from the published ones.

A run's cost is counted in FLOPs (6 N per token trained, the head at supervised positions only) and
turned into seconds by a `Machine`: this one's rates are fitted to `quick`, an A100's are
assumptions, each a named field. Whole runs are then packed on k devices.
"""

import argparse
import heapq
import json
import re
import sys
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import mean, median

from cotdistill.arms import CORRUPTIONS, Arm
from cotdistill.errors import DataError
from cotdistill.files import atomic_write
from cotdistill.grids import (
    control_arms,
    key_token_arms,
    masked_arms,
    shuffled_arms,
    training_arms,
)
from cotdistill.parameters import all_parameters, load_study
from cotdistill.paths import artifacts, root

COSTS = "notebooks/executed/quick/costs.json"
PAGE = "docs/grid-cost.md"
# Weights of the blocks, weights of the head.
STUDENTS = {
    "gpt2": (85_056_000, 38_597_376),
    "phi-1.5": (1_208_556_000, 104_857_600),
    "gemma-2b": (1_981_884_000, 524_288_000),
}
# Train, validation, test
DATASETS = {
    "commonsense_qa": (9241, 500, 1221),
    "openbookqa": (4957, 500, 500),
    "quarel": (1941, 278, 552),
}


@dataclass(frozen=True)
class Machine:
    """The rates of a machine.

    train, infer   FLOP/s in training and in inference
    bandwidth      bytes/s of memory
    batch, step    the least seconds that a training batch and a decoding step take
    """

    train: float
    infer: float
    bandwidth: float = inf
    batch: float = 0.0
    step: float = 0.0


# 35 % of its bfloat16 peak: assumed
A100 = Machine(train=0.35 * 312e12, infer=0.35 * 312e12, bandwidth=2.0e12, batch=0.05, step=0.03)


def train_flops(
    body: float,
    head: float,
    tokens: float,
    supervised: float,
    *,
    trained: float | None = None,
    again: bool = False,
) -> float:
    """Count FLOPs: forward 2, backward 4 per weight and token, the head at supervised tokens.

    trained: the weights of blocks that learn, where some (and the head) are frozen; again: gradient
    checkpointing runs the blocks forward twice.
    """
    full = trained is None
    return tokens * (
        (4 if again else 2) * body + 4 * (body if full else trained)
    ) + supervised * head * (6 if full else 4)


def answer_seconds(
    machine: Machine,
    body: float,
    head: float,
    n: int,
    questions: dict,
    values: dict,
    pre_cot: bool,
    labels: bool = True,
) -> float:
    """Predict the seconds that n answers take.

    Prompts and options take one pass each, then every batch is decoded up to its limits, which is
    the longest case.
    """
    batch = min(n, values["eval_batch_size"])
    steps = values["max_new_tokens"] * pre_cot + values["max_label_tokens"] * labels
    reading = 2 * body * batch * (questions["prompt"] + questions["options"]) / machine.infer
    writing = max(
        machine.step,
        2 * (body + head) * batch / machine.infer,
        4 * (body + head) / machine.bandwidth,
    )
    return ceil(n / batch) * (max(reading, 2 * machine.step) + steps * writing)


def target(arm: Arm, questions: dict) -> float:
    """Count the supervised tokens of one question in an arm."""
    whole = questions["rationale"]
    left = CORRUPTIONS[arm.corruption].length(whole, arm)
    return (
        0
        if arm.placement == "zero_shot"
        else questions["label"] + (left if arm.uses_rationale else 0)
    )


def run_seconds(
    machine: Machine, student: str, sizes: tuple, arm: Arm, questions: dict, values: dict
) -> float:
    """Predict the seconds of one run: its epochs, each with validation, and the test questions."""
    (body, head), (n, validation, test), pre = STUDENTS[student], sizes, arm.placement == "pre_cot"
    seconds = answer_seconds(machine, body, head, test, questions, values, pre)
    if arm.placement != "zero_shot":
        learnt = target(arm, questions)
        flops = n * train_flops(
            body, head, questions["prompt"] + learnt, learnt, again=values["gradient_checkpointing"]
        )
        batches = ceil(n / values["batch_size"])
        seconds += values["epochs"] * (
            batches * max(machine.batch, flops / batches / machine.train)
            + answer_seconds(machine, body, head, validation, questions, values, pre, labels=False)
        )
    return seconds


def grid(values: dict) -> list[Arm]:
    """List the arms of notebooks 02, 04 and 05 for a study's parameters, each once."""
    v = values
    arms = training_arms(v["arms"], v["label_weights"], v["also_losses"], v["also_loss_arms"])
    arms += shuffled_arms(v["shuffle_placements"], v["shuffle_units"], v["fresh_shuffle"])
    arms += control_arms(v["control_placements"], v["controls"])
    arms += key_token_arms(v["keep_amounts"], v["selectors"])
    masked = ("mask_placements", "mask_orders", "mask_amounts", "mask_fill", "mask_selector")
    arms += masked_arms(*(v[name] for name in masked))
    return list(dict.fromkeys(arms))


def paper(machine: Machine, questions: dict, **change) -> dict[str, list[float]]:
    """Predict the seconds of all runs of the paper's grid: student -> a list over three datasets.

    Each attribution of all training questions counts as one more run.
    """
    found, defaults = {}, {k: v for stage in all_parameters().values() for k, v in stage.items()}
    for student in STUDENTS:
        found[student] = []
        for dataset, sizes in DATASETS.items():
            v = defaults | load_study(f"{dataset.replace('_', '')}-{student}") | change
            for arm in grid(v):
                times = 1 if arm.placement == "zero_shot" else len(v["seeds"])
                found[student] += [run_seconds(machine, student, sizes, arm, questions, v)] * times
            # A gradient costs three passes
            passes = {"integrated_gradients": 3 * v["n_steps"], "occlusion": questions["rationale"]}
            length, body = (
                sum(questions[k] for k in ("prompt", "label", "rationale")),
                STUDENTS[student][0],
            )
            found[student] += [
                sizes[0] * max(machine.batch, passes.get(s, 3) * 2 * body * length / machine.train)
                for s in v["selectors"]
                if s != "random"
            ]
    return found


def makespan(seconds: list[float], devices: int) -> float:
    """Compute when the last of the runs ends on so many devices.

    The longest run starts first, each on the device that is free first.
    """
    free = [0.0] * devices
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def own_body(costs: dict, run: dict) -> int:
    """Count the weights of the blocks that a measured run passed its prompts through itself."""
    shares = costs.get("shared") and run["train_tokens"] and not run["arm"].startswith("pre_cot")
    return costs["student"]["trained" if shares else "body"]


def fit(costs: dict) -> tuple[Machine, list[float], list[float]]:
    """Fit this machine's rates to the measured runs.

    Returns the medians, and every run's own rates of training and of inference in FLOP/s.

    "shared" costs are of runs that took the output of frozen blocks from other runs, for training
    sequences and for the prompts of students that answer first. Their own work is that of the other
    blocks.
    """
    s, v, unit, training = costs["student"], costs["values"], Machine(1, 1), []
    answer = lambda r, n, **more: answer_seconds(
        unit,
        own_body(costs, r),
        s["head"],
        n,
        costs["microworld"],
        v,
        r["arm"].startswith("pre_cot"),
        **more,
    )
    inference = [answer(r, costs["test"]) / r["evaluate_seconds"] for r in costs["runs"]]
    for r in costs["runs"]:
        if r["train_tokens"]:
            flops = train_flops(
                s["trained"] if costs.get("shared") else s["body"],
                s["head"],
                r["train_tokens"],
                r["supervised"],
                trained=s["trained"],
            )
            checking = (
                v["epochs"] * answer(r, costs["validation"], labels=False) / median(inference)
            )
            training.append(flops / (r["train_seconds"] - checking))
    return Machine(median(training), median(inference)), training, inference


def gather() -> dict:
    """Gather what was measured from the store.

    That is the runs of `quick` with their times, and how long `openbookqa-probe`'s questions are.
    """
    from cotdistill.arms import label_text, prompt_text
    from cotdistill.encode import encode_all
    from cotdistill.files import read_json
    from cotdistill.paths import artifacts
    from cotdistill.runs.results import completed_stages, load_stage
    from cotdistill.study import Study

    def lengths(study):
        student, data, setting = study.student, study.data, study.setting
        some = study.train_questions(setting.seeds[0])
        sequences = lambda arm: encode_all(
            student, some, data.rationales, arm, setting.label_format, 0
        )[0]
        size = lambda arm: mean(sum(kind > 0 for kind in e.kinds) for e in sequences(arm))
        tokens = lambda text: len(student.encode(text))
        label = size(Arm("label_only"))
        return {
            "prompt": mean(
                tokens(prompt_text(e, "label_only", setting.label_format)) for e in some
            ),
            "label": label,
            "rationale": size(Arm("post_cot")) - label,
            "options": mean(
                sum(tokens(label_text(e, o, setting.label_format)) for o in range(len(e.choices)))
                for e in some
            ),
        }, size

    study, probe, made = Study.load("quick"), Study.load("openbookqa-probe"), {}
    model, train, (world, size) = study.student.model, study.setting.train, lengths(study)
    head, layers = model.get_output_embeddings().weight.numel(), model.config.num_hidden_layers
    body = model.num_parameters() - head
    for row in (row for stage in completed_stages("quick") for row in load_stage("quick", stage)):
        m, arm = row["metrics"], Arm(**row["arm"])
        # Which were kept: not needed
        learnt = (
            target(arm, world)
            if arm.placement == "zero_shot" or arm.corruption == "kept"
            else size(arm)
        )
        made[row["key"]] = {
            "arm": row["label"],
            "seed": row["seed"],
            "supervised": round(learnt * m["train_questions"] * train.epochs),
            **{k: m[k] for k in ("train_tokens", "train_seconds", "evaluate_seconds")},
        }
    key = next(iter(made))
    about = read_json(artifacts() / "runs" / key / "provenance.json", "`make train STUDY=quick`")
    return {
        "machine": {k: about[k] for k in ("processor", "cores", "threads", "torch")},
        "shared": train.frozen_layers > 0,
        "microworld": world,
        "openbookqa": lengths(probe)[0],
        "student": {
            "body": body,
            "head": head,
            "trained": round(body * (1 - train.frozen_layers / layers)),
        },
        "test": len(study.test_questions()),
        "validation": len(study.data.validation),
        "runs": list(made.values()),
        "values": {
            "eval_batch_size": study.setting.eval_batch_size,
            "max_new_tokens": study.setting.max_new_tokens,
            "max_label_tokens": study.setting.max_label_tokens,
            "epochs": train.epochs,
        },
    }


def page(costs: dict) -> str:
    """Write the prediction as Markdown.

    Makespans on this machine and on 1, 8 and 64 GPUs, and everything that was assumed.
    """
    values = {k: v for stage in all_parameters().values() for k, v in stage.items()} | load_study(
        "openbookqa-gpt2"
    )
    arms, seeds = len(grid(values)), len(values["seeds"])
    lines = [
        f"The paper's grid is {9 * ((arms - 1) * seeds + 1):,} runs: nine studies of {arms} arms, "
        f"{seeds} seeds each (the undistilled student once). **These times are predicted; no GPU "
        "has been used.**",
        "",
        f"| | {costs['machine']['cores']} CPU cores, as here | 1 A100 | 8 A100 | 64 A100 |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {' | '.join(_show_time(seconds) for seconds in cells)} |"
        for name, cells in _makespans(fit(costs)[0], costs["openbookqa"])
    ]
    return "\n".join([*lines, "", _describe_measurements(costs), "", _describe_assumptions(values)])


def _show_time(seconds: float) -> str:
    """Write seconds in the largest unit of which there are two at least."""
    for unit, name in ((365 * 86400, "years"), (86400, "days"), (3600, "h")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.0f} s"


def _makespans(here: Machine, questions: dict) -> list[tuple[str, list[float]]]:
    """Predict the seconds of each row of the table on this machine and on 1, 8 and 64 A100."""
    devices = [(here, 1), (A100, 1), (A100, 8), (A100, 64)]

    def run_lists(change=lambda machine: machine, lengths=questions, **values):
        return {m: paper(change(m), lengths, **values) for m in (here, A100)}

    def on_devices(runs, names=tuple(STUDENTS)):
        joined = {m: [s for name in names for s in runs[m][name]] for m in runs}
        return [makespan(joined[m], k) for m, k in devices]

    runs = run_lists()
    names = {"gpt2": "GPT-2", "phi-1.5": "Phi-1.5", "gemma-2b": "Gemma-2B"}
    rows = [(f"{names[name]}, 3 studies", on_devices(runs, [name])) for name in STUDENTS]
    total = {m: sum(sum(runs[m].values(), [])) for m in runs}
    return [
        *rows,
        ("all nine studies", on_devices(runs)),
        ("… if work could be cut at will", [total[m] / k for m, k in devices]),
        ("… if patience ended every run after 11 epochs", on_devices(run_lists(epochs=11))),
        (
            "… if only FLOPs and memory counted, without the least times below",
            on_devices(run_lists(lambda machine: replace(machine, batch=0.0, step=0.0))),
        ),
        (
            "… if rationales were 128 tokens long",
            on_devices(run_lists(lengths=questions | {"rationale": 128.0})),
        ),
    ]


def _describe_measurements(costs: dict) -> str:
    """Write what the prediction rests on that was measured."""
    here, training, inference = fit(costs)
    real, m = costs["openbookqa"], costs["machine"]
    off = [
        abs(rate / getattr(here, name) - 1)
        for name, rates in (("train", training), ("infer", inference))
        for rate in rates
    ]
    return (
        f"*Measured*: {len(costs['runs'])} runs of `quick` ({costs['test']} questions) on "
        f"{m['processor']}, {m['threads']} threads, {here.train / 1e9:.0f} GFLOP/s in training and "
        f"{here.infer / 1e9:.0f} in inference (effective rates: answers count to "
        f"their limits, as predicted ones do; medians; single runs are up to "
        f"{100 * max(off):.0f} % away, half of them within "
        f"{100 * median(off):.0f} %, for the machine's speed varies). Lengths: "
        f"`openbookqa-probe`, {real['prompt']:.0f} tokens of prompt, {real['label']:.0f} of label "
        f"and {real['rationale']:.0f} of rationale, taken for all three datasets. Both stand in "
        f"[costs.json](../{COSTS})."
    )


def _describe_assumptions(values: dict) -> str:
    """Write what the prediction assumes."""
    gpu, weights = A100, 16 * sum(STUDENTS["gemma-2b"]) / 1e9
    return (
        f"*Assumed*: an A100 computes at {gpu.train / 1e12:.0f} TFLOP/s (35 % of 312) and reads "
        f"{gpu.bandwidth / 1e12:.1f} TB/s; a training batch takes at least "
        f"{1000 * gpu.batch:.0f} ms and a decoding step {1000 * gpu.step:.0f} ms, whatever the "
        "student. 6 FLOPs per weight and token, 8 with gradient checkpointing, the head at "
        "supervised positions only, attention's own products left out. All "
        f"{values['epochs']} epochs are run and every answer is written to its limit, which is the "
        "longest case on a GPU. Attributions count as one job per selector and study; the "
        "teacher's rationales do not count. All jobs stand in one queue, longest first, each whole "
        "on one device, stages not waiting for each other. A device must hold its student "
        f"(Gemma-2B in float32 with gradients and Adam: {weights:.0f} GB)."
    )


def render(text: str, costs: dict) -> str:
    """Replace the part of the document between its two markers by `page`.

    Raises DataError where the markers are missing.
    """
    pattern = r"(<!-- scale -->\n).*?(<!-- /scale -->)"
    if not re.search(pattern, text, re.S):
        raise DataError(f"{PAGE}: no <!-- scale --> … <!-- /scale -->; expected both markers")
    return re.sub(pattern, lambda m: f"{m[1]}{page(costs)}\n{m[2]}", text, flags=re.S)


def main(arguments: list[str] | None = None) -> int:
    """Render the prediction or gather the costs behind it.

    Returns 0, or 1 after one line that says what is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grid_cost", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", nargs="?", choices=["page", "costs"], default="page")
    try:
        if parser.parse_args(arguments).what == "costs":
            found = json.dumps(gather(), indent=1) + "\n"
            path = artifacts() / "executed" / "quick" / "costs.json"
        else:
            path = root() / PAGE
            costs = json.loads((root() / COSTS).read_text(encoding="utf-8"))
            found = render(path.read_text(encoding="utf-8"), costs)
        with atomic_write(path) as part:
            part.write_text(found, encoding="utf-8")
        return 0
    except (DataError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
