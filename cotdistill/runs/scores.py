"""Attribution scores of a study's training questions, computed once and kept."""

from pathlib import Path

import pandas as pd
from safetensors.torch import load_file

from cotdistill.checkpoints import restore_parameters
from cotdistill.errors import DataError
from cotdistill.files import file_lock, fingerprint, read_json, write_json
from cotdistill.paths import artifacts, study_dir
from cotdistill.runs.results import load_stage
from cotdistill.students import Student
from cotdistill.study import _student, study_data, study_student


def attributing_student(base: dict, model: str, seed: int) -> tuple[Student, str]:
    """The student that judges rationale tokens, and the fingerprint of its weights.

    "pre_cot" (that arm's run of `seed`, in a copy of its own, so that nothing trained later starts
    from them) or "undistilled".
    """
    if model == "undistilled":
        student = study_student(base)
        return student, student.fingerprint
    if model != "pre_cot":
        raise DataError(f"attribution_model '{model}'; expected pre_cot or undistilled")
    plan = load_stage(base["study"], "train")
    key = next(
        (row["key"] for row in plan if (row["label"], row["seed"]) == ("pre_cot", seed)), None
    )
    path = artifacts() / "runs" / (key or "none") / "weights.safetensors"
    if key is None or not path.is_file():
        raise DataError(
            f"study '{base['study']}': no weights of pre_cot, seed {seed}; expected "
            "them from `make train` with "
            "pre_cot among the arms and keep_weights true (or attribution_model: "
            "undistilled)"
        )
    student = _student.__wrapped__(base["student"], base["device"], base["dtype"])
    restore_parameters(student.model, load_file(path))
    return student, key


def attribution_file(
    base: dict,
    judge: Student,
    judge_print: str,
    method: str,
    examples: list,
    *,
    selections=None,
    **options,
) -> Path:
    """The file with the attributions of these questions' rationales by one method.

    Found, where it was made from the same rationales, judge and options; made, with progress lines,
    where not.
    """
    from cotdistill.attribution.methods import METHODS, attribute_all
    from cotdistill.attribution.score_files import read_scores, write_scores

    data = study_data(base)
    # The question too: its label is what tokens are attributed to
    texts = fingerprint([[e, data.rationales[e.id].text] for e in examples])
    selections = selections if method == "human" else None
    # No weight and no step is part of it
    if method in METHODS and METHODS[method].reads == "words":
        judge_print, options = judge.fingerprint, {}
    made_from = {
        "method": method,
        "judge": judge_print,
        "rationales": texts,
        "dtype": str(judge.model.dtype),
        "options": options,
        "selections": fingerprint(selections or {}),
    }
    path = study_dir(base["study"]) / "scores" / f"{method}-{fingerprint(made_from)}.jsonl"

    def whole_one(say=lambda *a, **k: None):
        try:
            return path.is_file() and bool(read_scores(path))
        except DataError as error:
            say(f"{error}; the scores are made again", flush=True)
            return False

    if whole_one(print):
        return path

    def progress(done):
        if done % 25 == 0 or done == len(examples):
            print(f"    {method}: {done}/{len(examples)} rationales scored", flush=True)

    with file_lock(path.with_name(f"{path.name}.lock"), f"the scores of {method}"):
        if not whole_one():  # else another process made them meanwhile
            found = attribute_all(
                judge,
                examples,
                data.rationales,
                method,
                selections=selections,
                progress=progress,
                **options,
            )
            write_scores(path, found, made_from)
    return path


def load_or_make_scores(
    base: dict,
    judge: Student,
    judge_print: str,
    method: str,
    examples: list,
    *,
    selections=None,
    **options,
):
    """Scores of every training rationale by one method.

    (scores by id, their fingerprint), from `attribution_file`.

    `human` scores cover the selected questions only: the arms need all, and say which are missing.
    """
    from cotdistill.attribution.score_files import read_scores

    return read_scores(
        attribution_file(
            base, judge, judge_print, method, examples, selections=selections, **options
        )
    )


def attributions(
    base: dict,
    judge: Student,
    judge_print: str,
    method: str,
    examples: list,
    *,
    selections=None,
    **options,
) -> list:
    """The attributions of these questions' rationales by one method, in their order, from
    `attribution_file`.
    """
    from cotdistill.attribution.score_files import read_attributions

    return read_attributions(
        attribution_file(
            base, judge, judge_print, method, examples, selections=selections, **options
        )
    )[0]


def load_or_make_table(
    study: str, name: str, about: list, function, *given, **named
) -> pd.DataFrame:
    """function(*given, **named), a table, computed once for all that it depends on (`about`, what
    `fingerprint` takes) and then read.
    """
    path = study_dir(study) / "tables" / f"{name}-{fingerprint(about)}.json"
    if not path.is_file():
        write_json(path, function(*given, **named).to_dict("list"))
    return pd.DataFrame(read_json(path, "notebook 05"))
