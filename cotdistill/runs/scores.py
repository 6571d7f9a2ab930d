"""Attribution scores of a study's training questions, computed once and kept."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from cotdistill.errors import DataError
from cotdistill.files import file_lock, fingerprint, read_json, write_json
from cotdistill.paths import study_dir
from cotdistill.students import Student
from cotdistill.study import Study, study_name


def attribution_file(
    study: Study,
    attributor: Student,
    attributor_fingerprint: str,
    method: str,
    examples: list,
    *,
    selections=None,
    **options,
) -> Path:
    """Find or make the file with the attributions of these questions' rationales by one method.

    It is found where it was made from the same rationales, attributor and options; else it is made,
    with progress lines.
    """
    from cotdistill.attribution.methods import METHODS

    rationales = study.data.rationales
    selections = selections if method == "human" else None
    # No weight and no step is part of it
    if method in METHODS and METHODS[method].reads == "words":
        attributor_fingerprint, options = attributor.fingerprint, {}
    made_from = {
        "method": method,
        "judge": attributor_fingerprint,  # the key's old name, which is part of the file's name
        # The question too: its label is what tokens are attributed to
        "rationales": fingerprint([[e, rationales[e.id].text] for e in examples]),
        "dtype": str(attributor.model.dtype),
        "options": options,
        "selections": fingerprint(selections or {}),
    }
    path = study.folder / "scores" / f"{method}-{fingerprint(made_from)}.jsonl"
    if _has_scores(path, print):
        return path
    base = _scores_of_base(
        study, attributor, made_from["judge"], method, examples, **made_from["options"]
    )
    with file_lock(path.with_name(f"{path.name}.lock"), f"the scores of {method}"):
        if not _has_scores(path):  # else another process made them meanwhile
            _make_scores(path, made_from, attributor, rationales, examples, selections, base)
    return path


def _scores_of_base(
    study: Study, attributor: Student, fingerprint_of: str, method: str, examples: list, **options
) -> list | None:
    """Load or make the scores that a method `..._without_label` takes its own from.

    They cost as much and are often wanted too. None for every other method.
    """
    from cotdistill.attribution.methods import WITHOUT_LABEL

    if not method.endswith(WITHOUT_LABEL):
        return None
    base = method.removesuffix(WITHOUT_LABEL)
    return attributions(study, attributor, fingerprint_of, base, examples, **options)


def _has_scores(path: Path, say=lambda *a, **k: None) -> bool:
    """Say whether the score file is whole; `say` gets a line where it is damaged."""
    from cotdistill.attribution.score_files import read_scores

    try:
        return path.is_file() and bool(read_scores(path))
    except DataError as error:
        say(f"{error}; the scores are made again", flush=True)
        return False


def _make_scores(
    path: Path,
    made_from: dict,
    attributor: Student,
    rationales: dict,
    examples: list,
    selections,
    base: list | None,
) -> None:
    """Attribute with the method and options that `made_from` names, and write the file.

    base: the scores of the same method with the label's words, where it is one without.
    """
    from cotdistill.attribution.methods import attribute_all
    from cotdistill.attribution.score_files import write_scores

    method = made_from["method"]

    def progress(done):
        if done % 25 == 0 or done == len(examples):
            print(f"    {method}: {done}/{len(examples)} rationales scored", flush=True)

    if base is not None:
        write_scores(
            path, _drop_label_words(attributor, examples, rationales, method, base), made_from
        )
        return
    scores = attribute_all(
        attributor,
        examples,
        rationales,
        method,
        selections=selections,
        progress=progress,
        **made_from["options"],
    )
    write_scores(path, scores, made_from)


def _drop_label_words(
    attributor: Student, examples: list, rationales: dict, method: str, base: list
) -> list:
    """Turn scores of a method into those of its variant without the label's words."""
    from cotdistill.attribution.methods import leave_out_label

    return [
        replace(
            one,
            method=method,
            scores=leave_out_label(attributor, e, rationales[e.id].text, one.scores),
            delta=float("nan"),
        )
        for e, one in zip(examples, base, strict=True)
    ]


def load_or_make_scores(
    study: Study,
    attributor: Student,
    attributor_fingerprint: str,
    method: str,
    examples: list,
    *,
    selections=None,
    **options,
) -> tuple[dict, str]:
    """Load or make the scores of every training rationale by one method.

    Returns (scores by id, their fingerprint), from `attribution_file`.
    `human` scores cover the selected questions only: the arms need all, and say which are missing.
    """
    from cotdistill.attribution.score_files import read_scores

    chosen = dict(selections=selections, **options)
    return read_scores(
        attribution_file(study, attributor, attributor_fingerprint, method, examples, **chosen)
    )


def attributions(
    study: Study,
    attributor: Student,
    attributor_fingerprint: str,
    method: str,
    examples: list,
    *,
    selections=None,
    **options,
) -> list:
    """Load or make the attributions of these questions' rationales by one method.

    Returns them in the questions' order, from `attribution_file`.
    """
    from cotdistill.attribution.score_files import read_attributions

    chosen = dict(selections=selections, **options)
    return read_attributions(
        attribution_file(study, attributor, attributor_fingerprint, method, examples, **chosen)
    )[0]


def load_or_make_table(
    study: Study | str, name: str, about: list, function, *given, **named
) -> pd.DataFrame:
    """Load or make the table function(*given, **named).

    It is computed once for all that it depends on (`about`, as `fingerprint` takes it), then read.
    """
    path = study_dir(study_name(study)) / "tables" / f"{name}-{fingerprint(about)}.json"
    if not path.is_file():
        write_json(path, function(*given, **named).to_dict("list"))
    return pd.DataFrame(read_json(path, "notebook 05"))
