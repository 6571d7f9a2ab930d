"""Check whether attributions mean something.

Completeness, randomised weights, agreement, known key tokens, words of the label. Faithfulness
stands in curves.py.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy import stats as sps
from sklearn.metrics import average_precision_score

from cotdistill import corrupt
from cotdistill.arms import n_kept
from cotdistill.attribution.methods import aggregate_to_words, attribute_all, top_k
from cotdistill.attribution.score import Attribution
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.kernels.blocks import blocks_of
from cotdistill.students import Student


def completeness(attributions: list[Attribution]) -> pd.DataFrame:
    """Compare the sum of each question's scores with the difference that it should equal.

    Columns id, sum, difference, delta (sum - difference), relative (|delta| / |difference|).
    """
    table = pd.DataFrame(
        {
            "id": [a.id for a in attributions],
            "sum": [a.scores.sum() for a in attributions],
            "difference": [a.logp_full - a.logp_baseline for a in attributions],
        }
    )
    table["delta"] = table["sum"] - table["difference"]
    table["relative"] = (table["delta"] / table["difference"]).abs()
    return table


def randomise_weights(student: Student, layers: int | None, seed: int) -> Student:
    """Copy the student with its `layers` highest blocks drawn again.

    None: every parameter, embeddings too. Each parameter becomes normal numbers with its own mean
    and standard deviation, so activations keep their scale. A head that is tied to the embeddings
    changes only with None.
    """
    model = copy.deepcopy(student.model)
    blocks = list(blocks_of(model))
    chosen = [model] if layers is None else blocks[len(blocks) - layers :]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for module in chosen for p in module.parameters()):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(
                parameter.mean() + noise * (parameter.std() if parameter.numel() > 1 else 0)
            )
    note = (
        f"{'everything' if layers is None else f'the top {layers} blocks'} re-drawn with seed "
        f"{seed}"
    )
    return replace(
        student, model=model, name=f"{student.name} (randomised)", fingerprint="", note=note
    )


def randomisation_check(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    method: str,
    *,
    layers: Sequence[int | None] = (None,),
    seed: int = 0,
    **settings,
) -> pd.DataFrame:
    """Measure whether an attribution depends on what the student learnt.

    Adebayo et al. 2018, arXiv 1810.03292. Spearman's rank correlation of each question's scores
    with those of a student whose highest blocks are drawn again, one row per question and entry of
    `layers` (several: a cascade). Near 0 is right; near 1: it shows the text, not the student.
    Columns id, method, layers ("all" for None), rho.
    """
    own, rows = attribute_all(student, examples, rationales, method, seed=seed, **settings), []
    for n in layers:
        other = attribute_all(
            randomise_weights(student, n, seed), examples, rationales, method, seed=seed, **settings
        )
        rows += [
            {
                "id": a.id,
                "method": method,
                "layers": "all" if n is None else n,
                "rho": _correlate(sps.spearmanr, a.scores, b.scores),
            }
            for a, b in zip(own, other, strict=False)
        ]
    return pd.DataFrame(rows)


def _correlate(function, a: np.ndarray, b: np.ndarray) -> float:
    """Correlate two score lists; NaN where one is constant: there is no order to compare."""
    return (
        float("nan")
        if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0
        else float(function(a, b).statistic)
    )


def mean_intervals(
    table: pd.DataFrame,
    by: list[str],
    measures: list[str],
    rng: np.random.Generator,
    n_boot: int = 1000,
) -> pd.DataFrame:
    """Average over questions, with 95 % percentile bootstrap intervals.

    A row per group of `by` and measure, with columns *by, measure, value, low, high, n (questions
    with a value; the bootstrap draws those). Several rows of a question in a group are averaged
    first.
    """
    rows = []
    for key, group in table.groupby(by, sort=False, dropna=False):
        for measure in measures:
            values = group.groupby("id")[measure].mean().dropna().to_numpy(float)
            value = low = high = float("nan")
            if len(values):
                draws = values[rng.integers(len(values), size=(n_boot, len(values)))].mean(1)
                value, (low, high) = values.mean(), np.percentile(draws, [2.5, 97.5])
            rows.append(
                {
                    **dict(zip(by, key, strict=False)),
                    "measure": measure,
                    "value": value,
                    "low": low,
                    "high": high,
                    "n": len(values),
                }
            )
    return pd.DataFrame(rows)


def agreement(
    by_method: dict[str, list[Attribution]],
    k: float,
    rng: np.random.Generator,
    *,
    level: str = "token",
    n_boot: int = 1000,
) -> pd.DataFrame:
    """Measure how alike methods rank the tokens of the same rationales, for every pair.

    level="word" ranks the summed words. tau is Kendall's tau-b over all tokens; overlap the share
    of the top k they have in common; chance the overlap that two random choices have. Means over
    questions with bootstrap intervals, in the columns of `mean_intervals` with method_a and
    method_b. Raises DataError where methods scored different tokens.
    """
    rows = []
    for a, b in combinations(by_method, 2):
        others = {x.id: x for x in by_method[b]}
        for x in by_method[a]:
            if x.id not in others:
                continue
            y = others[x.id]
            if x.ids != y.ids:
                raise DataError(
                    f"question '{x.id}': {a} and {b} scored different tokens; expected one "
                    "rationale and one student's tokens"
                )
            s, t = (
                z.scores if level == "token" else aggregate_to_words(z.scores, z.words)
                for z in (x, y)
            )
            if not len(s):
                continue
            size = n_kept(k, len(s))
            common = len(set(top_k(s, k)) & set(top_k(t, k)))
            rows.append(
                {
                    "id": x.id,
                    "method_a": a,
                    "method_b": b,
                    "tau": _correlate(sps.kendalltau, s, t),
                    "overlap": common / size if size else float("nan"),
                    "chance": size / len(s),
                }
            )
    if not rows:
        return pd.DataFrame(
            columns=["method_a", "method_b", "measure", "value", "low", "high", "n"]
        )
    return mean_intervals(
        pd.DataFrame(rows), ["method_a", "method_b"], ["tau", "overlap", "chance"], rng, n_boot
    )


def agreement_square(table: pd.DataFrame, measure: str = "tau") -> pd.DataFrame:
    """Lay one measure of `agreement` out as a symmetric methods x methods table, for plots.

    The diagonal is 1.
    """
    rows = table[table["measure"] == measure]
    names = list(dict.fromkeys([*rows["method_a"], *rows["method_b"]]))
    square = pd.DataFrame(np.eye(len(names)), names, names)
    for row in rows.itertuples():
        square.loc[row.method_a, row.method_b] = square.loc[row.method_b, row.method_a] = row.value
    return square


def key_tokens(student: Student, rationale: Rationale) -> np.ndarray:
    """Mark the tokens of " <rationale>" that reach into one of its key spans, [R] bool."""
    text = f" {rationale.text}" if rationale.text else ""
    spans = [(start + 1, end + 1) for start, end in rationale.key_spans]
    return np.array(
        [
            any(a < end and start < b for start, end in spans)
            for a, b in corrupt.offsets(student, text)
        ],
        dtype=bool,
    )


def key_token_precision_recall(
    student: Student, rationale: Rationale, scores: Sequence[float], k: float = 0
) -> dict:
    """Measure how well the top k tokens match the known key tokens.

    k = 0: as many as there are key tokens. Returns precision, recall, average_precision (over all
    k), and what a random order is expected to reach: chance, the share of tokens that are key, for
    the precision, and chance_average_precision (`random_average_precision`), which is higher. NaN
    where there is no key token. Raises DataError without key spans.
    """
    if not rationale.key_spans:
        raise DataError(
            f"rationale '{rationale.id}': no key_spans; expected a microworld rationale"
        )
    key = key_tokens(student, rationale)
    if len(scores) != len(key):
        raise DataError(
            f"rationale '{rationale.id}': {len(scores)} scores for {len(key)} "
            "tokens; expected as many"
        )
    chosen = top_k(scores, k or max(1, key.sum()))
    hits = int(key[chosen].sum())
    return {
        "id": rationale.id,
        "tokens": len(key),
        "key_tokens": int(key.sum()),
        "k": len(chosen),
        "precision": hits / len(chosen),
        "recall": hits / key.sum() if key.any() else float("nan"),
        "average_precision": float(average_precision_score(key, scores))
        if key.any()
        else float("nan"),
        "chance": float(key.mean()),
        "chance_average_precision": random_average_precision(len(key), int(key.sum())),
    }


def random_average_precision(n: int, relevant: int) -> float:
    """Return the expected average precision of a random order of n items.

    `relevant` of them are relevant (NaN where none is). In closed form: item i of the order is
    relevant with probability relevant / n, and then so are (i - 1)(relevant - 1) / (n - 1) of those
    before it (Bestgen 2015, Prague Bulletin of Mathematical Linguistics 103).
    """
    if not relevant:
        return float("nan")
    rank = np.arange(1, n + 1)
    return float(((1 + (rank - 1) * (relevant - 1) / max(n - 1, 1)) / rank).mean())


def label_word_share(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    found: list[Attribution],
    k: float,
) -> pd.DataFrame:
    """Measure which share of a method's top k tokens belong to words of the label.

    found: attributions in the order of `examples`. Columns id, method, label_share, and all_share:
    the share among all tokens of the rationale, which is what random tokens are expected to reach.
    Questions without a token are left out. Which words count, `corrupt.label_tokens` says.
    """
    rows = []
    for example, one in zip(examples, found, strict=True):
        text = rationales[example.id].text
        named = corrupt.label_tokens(student, f" {text}" if text else "", example.label)
        chosen = [named[i] for i in top_k(one.scores, k)]
        if named:
            share = float(np.mean(chosen)) if chosen else 0.0
            rows.append((example.id, one.method, share, float(np.mean(named))))
    return pd.DataFrame(rows, columns=["id", "method", "label_share", "all_share"])
