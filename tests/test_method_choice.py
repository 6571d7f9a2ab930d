"""Which attribution method to use: retraining beside what was measured of each method."""

import numpy as np
import pandas as pd
import pytest

from cotdistill import method_choice
from cotdistill.errors import DataError
from cotdistill.readings import methods as texts


def simulate(means: dict[str, float], *, seeds: int = 3, questions: int = 60) -> pd.DataFrame:
    """Make predictions of two options whose log odds have these means, by arm."""
    rng, rows = np.random.default_rng(0), []
    hard = rng.normal(0, 1, questions)
    for arm, mean in means.items():
        for seed in range(seeds):
            odds = mean + hard + rng.normal(0, 0.3, questions)
            right = odds > 0
            rows.append(
                pd.DataFrame(
                    {
                        "arm": arm,
                        "seed": seed,
                        "id": [f"q{i}" for i in range(questions)],
                        "gold": 0,
                        "scores": [[value, 0.0] for value in odds],
                        "correct_choice": right,
                        "correct_generated": right,
                        "cut_off": False,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


MEANS = {"label_only": 0.0, "post_cot": 1.0, "post_cot_kept[15,random]": 0.0}
MEANS |= {"post_cot_kept[5,random]": 0.0, "post_cot_kept[5,occlusion]": 1.0}
MEANS |= {"post_cot_kept[15,occlusion]": 1.0, "post_cot_kept[5,tfidf]": 0.0}


@pytest.fixture(scope="module")
def retrained():
    return method_choice.retrained_methods(simulate(MEANS))


@pytest.fixture(scope="module")
def compared():
    shown = {
        "tau": [0.4, 0.2, np.nan],
        "below_random": [0.3, 0.5, 0.0],
        "average_precision": [0.7, 0.6, 0.3],
        "label_share": [30.0, 80.0, 10.0],
        "passes": [20.0, 0.0, 0.0],
    }
    index = pd.Index(["occlusion", "tfidf", "random"], name="method")
    return pd.DataFrame(shown, index)


def test_retraining_is_compared_with_random_tokens(retrained):
    pairs = list(zip(retrained["method"], retrained["amount"], strict=True))
    assert pairs == [
        ("occlusion", 5),
        ("occlusion", 15),
        ("random", 5),
        ("random", 15),
        ("tfidf", 5),
    ]
    by = retrained.set_index(["method", "amount"])
    assert by.loc[("occlusion", 5), "gain_low"] > 0 > by.loc[("tfidf", 5), "gain_low"]
    assert by.loc["random", "gain"].isna().all()
    gap = by.loc[("occlusion", 5), "estimate"] - by.loc[("random", 5), "estimate"]
    assert by.loc[("occlusion", 5), "gain"] == pytest.approx(gap)
    told = texts.retrained_methods(retrained)
    assert told.startswith("In 2 of 3 cases a method's tokens beat as many random ones: occlusion")
    none = method_choice.retrained_methods(simulate({"label_only": 0.0}))
    assert none.empty and texts.retrained_methods(none).startswith("Not part of this study")
    assert list(method_choice.amount_lines(retrained)["x"]) == [5, 15, 5, 15, 5]


def test_one_table_joins_what_is_known_of_each_method(compared, retrained):
    shown = texts.choice_table(compared, retrained)
    assert list(shown.index) == ["occlusion", "random", "tfidf"]
    names = [*method_choice.MEASURES_SHOWN.values()]
    names += [f"retrained on {k}: {x}" for k in (5, 15) for x in ("p(gold)", "− random (points)")]
    assert list(shown.columns) == names
    assert shown.loc["random", "retrained on 5: − random (points)"] == "–"
    alone = texts.choice_table(compared.assign(average_precision=np.nan), retrained[:0])
    assert "truth: key tokens found (average precision)" not in alone.columns


def test_a_method_is_recommended_only_by_every_number(compared, retrained):
    told = texts.findings(compared, retrained, "x")
    assert (
        "The most faithful method is **tfidf**. Most key tokens are found by **occlusion**" in told
    )
    assert "Use **occlusion**: retrained" in told and told.endswith("with another study.")
    few = texts.findings(compared, retrained.assign(seeds=2), "x")
    assert "Use **" not in few
    worse = retrained.assign(gain_low=np.where(retrained["amount"] == 15, -0.1, 0.1))
    worse = worse[worse["method"] != "tfidf"]
    told = texts.findings(compared, worse, "x")
    most = (
        "no method's tokens beat random ones with every number tried; those of **occlusion** do in"
    )
    assert f"{most} 1 of 2." in told
    assert "Nothing was retrained" in texts.findings(compared, retrained[:0], "x")


def test_cost_is_counted_in_forward_passes():
    cost = lambda name: method_choice.count_passes(name, 20.0, 15.0, 8)
    assert cost("integrated_gradients") == cost("integrated_gradients_without_label") == 24
    assert cost("occlusion") == 20 and cost("occlusion_word") == 15 and cost("tfidf") == 0


def test_stage_attribute_must_have_run(store):
    study = type("Named", (), {"name": "t"})()
    with pytest.raises(DataError, match="stage attribute has not been run; expected it: run `make"):
        method_choice.attribute_settings(study)
