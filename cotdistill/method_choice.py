"""Say which attribution method to use: agreement, faithfulness, truth, cost and retraining.

A ranking can be faithful to the student that attributes and of no use to the student that learns.
So what counts most here is retraining (Hooker et al. 2019, arXiv:1806.10758, for a task in which
tokens are kept): post_cot trained on the top k tokens of each method, for each k that stage
attribute was given, beside as many tokens chosen at random.
"""

import json
import re

import numpy as np
import pandas as pd

from cotdistill.attribution.score_files import read_selections
from cotdistill.errors import DataError
from cotdistill.parameters import parameters_path
from cotdistill.runs.attributors import load_attributors
from cotdistill.runs.method_scores import MethodScores
from cotdistill.stats import estimate_measure
from cotdistill.study import Study, resolve

KEPT = re.compile(r"post_cot_kept\[([\d.]+),(\w+)\]")
MEASURES_SHOWN = {
    "tau": "agreement with the others (mean τ)",
    "below_random": "faithfulness: below random (nats)",
    "average_precision": "truth: key tokens found (average precision)",
    "label_share": "label's words in the top (%)",
    "passes": "cost: forward passes per rationale",
}


def attribute_settings(study: Study) -> dict:
    """Load the parameters with which stage attribute was last run; raises DataError without it."""
    path = parameters_path(study.name, "attribute")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(
            f"study '{study.name}': stage attribute has not been run; expected it: run `make "
            f"attribute STUDY={study.name}` first"
        ) from None


def load_checked(study: Study, settings: dict) -> MethodScores:
    """Load the methods that notebook 05 compared, on its questions: all is found in the store."""
    seeds = study.setting.seeds
    questions = {e.id: e for seed in seeds for e in study.train_questions(seed)}
    sample = list(questions.values())[: settings["check_questions"]]
    options = {name: settings[name] for name in ("n_steps", "baseline")} | {"seed": seeds[0]}
    human = settings["human_selections"]
    chosen = read_selections(resolve(human)) if human else None
    attributors = load_attributors(study, settings["attribution_model"], seeds[0])
    return MethodScores(study, attributors, sample, settings["check_methods"], options, chosen)


def count_passes(method: str, tokens: float, words: float, n_steps: int) -> float:
    """Count the forward passes that a method takes for one rationale; a backward pass counts two.

    tokens, words: of a rationale. A method that reads no weights takes none.
    """
    costs = {
        "integrated_gradients": 3 * n_steps,
        "input_x_gradient": 3,
        "saliency": 3,
        "occlusion": tokens,
        "occlusion_word": words,
        "attention": 1,
        "rollout": 1,
    }
    return float(costs.get(method.removesuffix("_without_label"), 0))


def compare_methods(checked: MethodScores, amount: float) -> pd.DataFrame:
    """Measure each method as MEASURES_SHOWN names it: a row per method; NaN where not known.

    amount: the size of the top whose words are counted.
    """
    means, agree = checked.comparison(amount), checked.agreement(amount)
    hits = checked.key_token_means(checked.key_tokens())
    rows = pd.concat([part for part in (means, hits) if len(part)] or [means])
    table = pd.DataFrame(index=pd.Index(checked.methods, name="method"))
    for measure in ("below_random", "average_precision", "label_share"):
        part = rows[rows["measure"] == measure] if len(rows) else rows
        table[measure] = part.set_index("method")["value"] if len(part) else np.nan
    table["label_share"] *= 100
    taus = agree[agree["measure"] == "tau"]
    for method in checked.methods:
        own = taus[(taus["method_a"] == method) | (taus["method_b"] == method)]
        table.loc[method, "tau"] = own["value"].mean()
    texts = [checked.study.data.rationales[e.id].text for e in checked.examples]
    tokens = float(np.mean([len(checked.student.encode(f" {text}")) for text in texts]))
    words = float(np.mean([len(text.split()) for text in texts]))
    steps = checked.options["n_steps"]
    table["passes"] = [count_passes(method, tokens, words, steps) for method in checked.methods]
    return table[list(MEASURES_SHOWN)]


def retrained_methods(predictions: pd.DataFrame) -> pd.DataFrame:
    """Estimate p(gold) of post_cot on each method's top k tokens, and what it has over random ones.

    Columns: method, amount, estimate, low, high (a share), gain, gain_low, gain_high (over random
    tokens, as fractions; NaN for random itself or where it was not run), seeds, questions.
    """
    found = {arm: KEPT.fullmatch(arm) for arm in predictions["arm"].unique()}
    arms = {arm: (match[2], float(match[1])) for arm, match in found.items() if match}
    columns = ["estimate", "low", "high", "seeds", "questions"]
    gains = ["gain", "gain_low", "gain_high"]
    if not arms:
        return pd.DataFrame(columns=["method", "amount", *columns, *gains])
    alone = estimate_measure(predictions, {arm: {arm: 1.0} for arm in arms}, "p_gold")
    table = alone.set_index("contrast")[columns]
    random = {amount: arm for arm, (method, amount) in arms.items() if method == "random"}
    rivals = {
        arm: {arm: 1.0, random[amount]: -1.0}
        for arm, (method, amount) in arms.items()
        if method != "random" and amount in random
    }
    table[gains] = np.nan
    if rivals:
        apart = estimate_measure(predictions, rivals, "p_gold").set_index("contrast")
        table.loc[list(rivals), gains] = apart[["estimate", "low", "high"]].to_numpy()
    table.insert(0, "method", [arms[arm][0] for arm in table.index])
    table.insert(1, "amount", [arms[arm][1] for arm in table.index])
    return table.sort_values(["method", "amount"], kind="stable").reset_index(drop=True)


def amount_lines(retrained: pd.DataFrame) -> pd.DataFrame:
    """Return p(gold) in percent by the number of tokens kept, for `plots.interval_lines`."""
    values = {name: 100 * retrained[name] for name in ("estimate", "low", "high")}
    lines = pd.DataFrame({"line": retrained["method"], "x": retrained["amount"], **values})
    return lines.rename(columns={"estimate": "value"})
