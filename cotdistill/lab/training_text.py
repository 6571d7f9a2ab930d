"""Show one training sequence of an arm, and how a selection by hand agrees with methods."""

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from cotdistill import corrupt
from cotdistill.arms import Arm
from cotdistill.attribution import methods as methods_module
from cotdistill.attribution.methods import top_k
from cotdistill.attribution.score import Attribution
from cotdistill.encode import encode, example_rng
from cotdistill.examples import Example
from cotdistill.lab.markup import TOKEN_KINDS
from cotdistill.students import Student


def training_tokens(
    student: Student,
    example: Example,
    rationale: str,
    arm: Arm,
    seed: int = 0,
    label_format: str = "text",
    scores=None,
    corpus: corrupt.Corpus | None = None,
) -> pd.DataFrame:
    """Return one training sequence, token by token as an epoch of the arm sees it.

    Columns id, text, kind (prompt, label, rationale, frame).

    corpus: what the training rationales have in common (None: this one is all there is).
    """
    corpus = corpus or corrupt.collect_corpus(student, [rationale])
    one = encode(
        student,
        example,
        rationale,
        arm,
        label_format,
        example_rng(example.id, seed, 0),
        scores,
        corpus,
    )
    return pd.DataFrame(
        {
            "id": one.ids,
            "text": [student.tokenizer.decode([i]) for i in one.ids],
            "kind": [TOKEN_KINDS[k][0] for k in one.kinds],
        }
    )


def agreement_with(selected: list[int], attributions: dict[str, Attribution]) -> pd.DataFrame:
    """Measure how a selection agrees with each method on one rationale.

    `overlap`, the share of the k selected tokens among the method's top k; `chance`, that of k
    random ones; `average_precision` of the method's order for the selected tokens.
    """
    rows = []
    for method, one in attributions.items():
        n, k = len(one.scores), len(selected)
        picked = np.isin(np.arange(n), selected)
        rows.append(
            {
                "method": method,
                "k": k,
                "overlap": len(set(top_k(one.scores, k)) & set(selected)) / k
                if k
                else float("nan"),
                "chance": k / n if n else float("nan"),
                "average_precision": average_precision_score(picked, one.scores)
                if k
                else float("nan"),
            }
        )
    return pd.DataFrame(rows).set_index("method")


def scores_of(
    student: Student, example: Example, rationale: str, methods: list[str], **options
) -> dict[str, Attribution]:
    """Score a rationale by several methods, `random` from the question's own generator."""
    return {
        m: methods_module.attribute_rationale(
            student, example, rationale, m, rng=example_rng(example.id, 0, 4), **options
        )
        for m in methods
    }
