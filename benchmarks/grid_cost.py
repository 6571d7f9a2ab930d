"""What the paper's grid would take.

A prediction from a measured law of cost, for GPUs that nobody here has.

    python -m benchmarks.grid_cost           render the table into docs/grid-cost.md (`make scale`)
    python -m benchmarks.grid_cost costs     gather artifacts/executed/quick/costs.json from the runs of
                                         `quick` and `openbookqa-probe`; `make publish STUDY=quick`
                                         publishes it; the table is rendered from the published one

A run's cost is counted in FLOPs (6 N per token trained, the head at supervised positions only) and
turned into seconds by a
`Machine`: this one's rates are fitted to `quick`, an A100's are assumptions, each a named field. Whole runs are then packed on k devices.
"""

import argparse
import heapq
import json
import re
import sys
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import mean, median

from cotdistill.arms import CORRUPTIONS, Arm, arm_from_name
from cotdistill.errors import DataError
from cotdistill.files import atomic_write
from cotdistill.parameters import all_parameters, load_study
from cotdistill.paths import artifacts, root

COSTS = "notebooks/executed/quick/costs.json"
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
    """FLOP/s in training and in inference, bytes/s of memory, and the least that a training batch
    and a decoding step take, in seconds.
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
    """Forward 2, backward 4 per weight and token, the head at supervised tokens only.

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
    """Answer n questions: prompts and options in one pass each, then decoding, every batch up to
    its limits (the longest case).
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
    """Supervised tokens of one question in an arm."""
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
    """One run: all its epochs, each with its validation, and the test questions."""
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
    """The arms of notebooks 02, 04 and 05 for a study's parameters, each once."""
    v = values
    arms = [arm_from_name(name) for name in v["arms"]] + [
        arm_from_name("post_cot", label_weight=w) for w in v["label_weights"] if w != 1
    ]
    arms += [
        arm_from_name(name, loss=o)
        for o in v["also_losses"]
        for name in ("label_only", "pre_cot", "post_cot")
        if name in v["arms"]
    ]
    arms += [
        arm_from_name(f"{p}_shuffled", unit=u, fresh=v["fresh_shuffle"])
        for p in v["shuffle_placements"]
        for u in v["shuffle_units"]
    ]
    arms += [arm_from_name(f"{p}_{c}") for p in v["control_placements"] for c in v["controls"] if c]
    arms += [
        arm_from_name("post_cot_kept", amount=k, selector=s)
        for k in v["keep_amounts"]
        for s in v["selectors"]
    ]
    arms += [
        arm_from_name(
            f"{p}_masked",
            amount=a,
            order=o,
            fill=v["mask_fill"],
            selector="random" if o == "random" else v["mask_selector"],
        )
        for p in v["mask_placements"]
        for o in v["mask_orders"]
        for a in v["mask_amounts"]
    ]
    return list(dict.fromkeys(arms))


def paper(machine: Machine, questions: dict, **change) -> dict[str, list[float]]:
    """Student -> seconds of each of its runs, and of each attribution of all training questions,
    over the three datasets.
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
    """When the last of the runs ends on so many devices.

    The longest first, each on the device that is free first.
    """
    free = [0.0] * devices
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def own_body(costs: dict, run: dict) -> int:
    """The weights of the blocks that a measured run passed its prompts through itself."""
    shares = costs.get("shared") and run["train_tokens"] and not run["arm"].startswith("pre_cot")
    return costs["student"]["trained" if shares else "body"]


def fit(costs: dict) -> tuple[Machine, list[float], list[float]]:
    """This machine's rates from the measured runs.

    Their medians, and every run's own (training, inference) rate in FLOP/s.

    "shared" costs come from runs that took what frozen blocks make of training sequences, and of
    the prompts of students that answer first, from other runs: their own work is that of the other
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
    """The measured side, from the store.

    The runs of `quick` with their times, and how long `openbookqa-probe`'s questions are.
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
    """The prediction as Markdown.

    Makespans on this machine and on 1, 8 and 64 GPUs, and everything that was assumed.
    """
    here, training, inference = fit(costs)
    machines, real, m = (
        [(here, 1), (A100, 1), (A100, 8), (A100, 64)],
        costs["openbookqa"],
        costs["machine"],
    )
    both = {machine: paper(machine, real) for machine in (here, A100)}
    every = lambda machine, **change: sum(paper(machine, real, **change).values(), [])

    def time(seconds):
        unit, name = next(
            (u, n)
            for u, n in ((365 * 86400, "years"), (86400, "days"), (3600, "h"), (0, "s"))
            if seconds >= 2 * u
        )
        return f"{seconds / unit:,.1f} {name}" if unit else f"{seconds:.0f} s"

    names = {"gpt2": "GPT-2", "phi-1.5": "Phi-1.5", "gemma-2b": "Gemma-2B"}
    rows = [
        (f"{names[name]}, 3 studies", [makespan(both[machine][name], k) for machine, k in machines])
        for name in STUDENTS
    ]
    whole = {machine: sum(both[machine].values(), []) for machine in both}
    rows.append(("all nine studies", [makespan(whole[machine], k) for machine, k in machines]))
    rows.append(
        ("… if work could be cut at will", [sum(whole[machine]) / k for machine, k in machines])
    )
    rows.append(
        (
            "… if patience ended every run after 11 epochs",
            [makespan(every(machine, epochs=11), k) for machine, k in machines],
        )
    )
    bare = {machine: replace(machine, batch=0.0, step=0.0) for machine in both}
    rows.append(
        (
            "… if only FLOPs and memory counted, without the least times below",
            [makespan(every(bare[machine]), k) for machine, k in machines],
        )
    )
    long = real | {"rationale": 128.0}
    rows.append(
        (
            "… if rationales were 128 tokens long",
            [makespan(sum(paper(machine, long).values(), []), k) for machine, k in machines],
        )
    )
    values = {k: v for stage in all_parameters().values() for k, v in stage.items()} | load_study(
        "openbookqa-gpt2"
    )
    arms, seeds = len(grid(values)), len(values["seeds"])
    off = [
        abs(rate / getattr(here, name) - 1)
        for name, rates in (("train", training), ("infer", inference))
        for rate in rates
    ]
    lines = [
        f"The paper's grid is {9 * ((arms - 1) * seeds + 1):,} runs: nine studies of {arms} "
        f"arms, {seeds} seeds each (the undistilled "
        "student once). "
        "**These times are predicted; no GPU has been used.**",
        "",
        f"| | {m['cores']} CPU cores, as here | 1 A100 | 8 A100 | 64 A100 |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {name} | " + " | ".join(map(time, cells)) + " |" for name, cells in rows]
    gpu, weights = A100, 16 * sum(STUDENTS["gemma-2b"]) / 1e9
    lines += [
        "",
        f"*Measured*: the {len(costs['runs'])} runs of `quick` on {m['processor']}, "
        f"{m['threads']} threads, {here.train / 1e9:.0f} GFLOP/s in "
        f"training and {here.infer / 1e9:.0f} in inference (effective rates: answers count to "
        "their limits, as predicted ones do; medians; single runs are up to "
        f"{100 * max(off):.0f} % away, half of them within "
        f"{100 * median(off):.0f} %, for the machine's speed varies). Lengths: "
        f"`openbookqa-probe`, {real['prompt']:.0f} tokens of prompt, "
        f"{real['label']:.0f} of label and {real['rationale']:.0f} of rationale, taken for all "
        "three datasets. Both stand in "
        "[costs.json](../notebooks/executed/quick/costs.json).",
        "",
        f"*Assumed*: an A100 computes at {gpu.train / 1e12:.0f} TFLOP/s (35 % of 312) and "
        f"reads {gpu.bandwidth / 1e12:.1f} TB/s; a training batch "
        f"takes at least {1000 * gpu.batch:.0f} ms and a decoding step {1000 * gpu.step:.0f} ms, "
        "whatever the student. 6 FLOPs per weight and "
        "token, 8 with gradient checkpointing, the head at supervised positions only, "
        "attention's own products left out. All "
        f"{values['epochs']} epochs are run and every answer is written to its limit, which is "
        "the longest case on a GPU. Attributions count as one "
        "job per selector and study; the teacher's rationales do not count. All jobs stand in "
        "one queue, longest first, each whole on one "
        "device, stages not waiting for each other. "
        "A device must hold its student (Gemma-2B in float32 with gradients and Adam: "
        f"{weights:.0f} GB).",
    ]
    return "\n".join(lines)


def render(text: str, costs: dict) -> str:
    """docs/grid-cost.md with the part between its two markers replaced by `page`.

    Raises DataError where the markers are missing.
    """
    pattern = r"(<!-- scale -->\n).*?(<!-- /scale -->)"
    if not re.search(pattern, text, re.S):
        raise DataError(
            "docs/grid-cost.md: no <!-- scale --> … <!-- /scale -->; expected both markers"
        )
    return re.sub(pattern, lambda m: f"{m[1]}{page(costs)}\n{m[2]}", text, flags=re.S)


def main(arguments: list[str] | None = None) -> int:
    """Render the prediction or gather the costs behind it.

    0, or 1 after one line that says what is missing.
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
            path, costs = (
                root() / "docs" / "grid-cost.md",
                json.loads((root() / COSTS).read_text(encoding="utf-8")),
            )
            found = render(path.read_text(encoding="utf-8"), costs)
        with atomic_write(path) as part:
            part.write_text(found, encoding="utf-8")
        return 0
    except (DataError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
