"""Read and write files of scores and of tokens selected by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cotdistill.attribution.score import Attribution
from cotdistill.errors import DataError
from cotdistill.files import atomic_write, fingerprint, read_jsonl


def write_scores(path: str | Path, attributions: list[Attribution], made_from: dict) -> str:
    """Write scores as JSONL: a head line, then {"id", "method", "scores", ...} per question.

    made_from: JSON values that settle the scores (student's fingerprint or run key, method, steps,
    data); the head line holds them. Returns their fingerprint, which is part of a training run's
    key. The file appears complete or not at all.
    """
    path, print_of, rows = Path(path), fingerprint(made_from), []
    for a in attributions:
        row = {
            "id": a.id,
            "method": a.method,
            "scores": a.scores.tolist(),
            "ids": a.ids,
            "words": a.words,
        }
        numbers = {"delta": a.delta, "logp_full": a.logp_full, "logp_baseline": a.logp_baseline}
        rows.append(
            row
            | {name: None if np.isnan(value) else float(value) for name, value in numbers.items()}
        )
    rows.insert(
        0,
        {
            "fingerprint": print_of,
            "made_from": made_from,
            "n": len(attributions),
            "seal": fingerprint(rows),
        },
    )
    with atomic_write(path) as part:
        part.write_text(
            "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8"
        )
    return print_of


def read_attributions(path: str | Path) -> tuple[list[Attribution], str]:
    """Read what `write_scores` wrote: attributions and their fingerprint.

    Raises DataError for a file that is not one, is cut short, was edited, or whose head does not
    belong to its fingerprint.
    """
    (line, head), *rows = read_jsonl(path) or [(1, {})]
    seal = head.pop("seal", None)
    if (
        set(head) != {"fingerprint", "made_from", "n"}
        or fingerprint(head["made_from"]) != head["fingerprint"]
    ):
        raise DataError(
            f"{path}:{line}: not the head of a score file; expected a fingerprint "
            "that fits made_from"
        )
    if len(rows) != head["n"]:
        raise DataError(
            f"{path}: {len(rows)} questions; expected {head['n']}: delete it and attribute again"
        )
    found = []
    for line, row in rows:
        try:
            a = Attribution(**{k: float("nan") if v is None else v for k, v in row.items()})
            a = replace(
                a, scores=np.array(a.scores, dtype=float), ids=tuple(a.ids), words=tuple(a.words)
            )
            if not isinstance(a.id, str) or a.scores.ndim != 1 or not np.isfinite(a.scores).all():
                raise ValueError("id is no text, or scores are no list of finite numbers")
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{line}: {error}; expected the fields of an Attribution"
            ) from None
        if not len(a.ids) == len(a.scores) == len(a.words):
            raise DataError(
                f"{path}:{line} (id {a.id}): {len(a.scores)} scores for "
                f"{len(a.ids)} tokens; expected as many"
            )
        found.append(a)
    if seal is not None and seal != fingerprint([row for _, row in rows]):
        raise DataError(
            f"{path}: a score was changed after it was written; expected the rows of "
            "its seal: delete it and attribute again"
        )
    return found, head["fingerprint"]


def read_scores(path: str | Path) -> tuple[dict[str, np.ndarray], str]:
    """Read id -> scores, and the file's fingerprint: what kept and masked arms train on."""
    attributions, print_of = read_attributions(path)
    return {a.id: a.scores for a in attributions}, print_of


def write_selection(path: str | Path, question: str, tokens: Sequence[int]) -> None:
    """Append one human selection to a JSONL file; the last line of an id counts."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(
            json.dumps(
                {"id": question, "tokens": sorted({int(t) for t in tokens})}, ensure_ascii=False
            )
            + "\n"
        )


def read_selections(path: str | Path) -> dict[str, list[int]]:
    """Read id -> selected token positions, from lines {"id": ..., "tokens": [0, 3]}.

    Later lines replace earlier ones. Raises DataError for a line without them.
    """
    found = {}
    for line, row in read_jsonl(path):
        question, tokens = row.get("id"), row.get("tokens")
        fits = (
            isinstance(question, str)
            and isinstance(tokens, list)
            and all(type(t) is int and t >= 0 for t in tokens)
        )
        if not fits:
            raise DataError(
                f'{path}:{line}: found {json.dumps(row)[:80]}; expected "id" (a text) '
                'and "tokens" (a list of positions from 0)'
            )
        found[question] = tokens
    return found
