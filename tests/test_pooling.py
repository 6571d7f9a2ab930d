"""Pooling over studies: the random-effects mean, who may be pooled with whom, and its verdicts."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as sps
from statsmodels.stats.meta_analysis import combine_effects

from cotdistill import plots, pooling, readings, report, study_site
from cotdistill.errors import DataError
from cotdistill.inference import Effect, adjust_families, confidence_interval
from cotdistill.verdicts import load_claims

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = load_claims(ROOT / "params" / "claims.yaml")


@pytest.fixture
def rng():
    return np.random.default_rng(5)


# --- the mean ---


def test_pooling_is_statsmodels_paule_mandel_and_dersimonian_laird():
    estimates, errors = np.array([0.10, 0.02, 0.05, -0.01]), np.array([0.02, 0.01, 0.03, 0.02])
    for ours, theirs in (("paule_mandel", "iterated"), ("dersimonian_laird", "dl")):
        fit = combine_effects(estimates, errors**2, method_re=theirs)
        assert pooling.study_variance(estimates, errors**2, ours) == pytest.approx(
            fit.tau2, rel=1e-4
        )
        effects = [Effect(e, s, 1e9) for e, s in zip(estimates, errors, strict=True)]
        pooled = pooling.pool_effects(effects, method=ours)
        assert pooled.estimate == pytest.approx(fit.mean_effect_re, rel=1e-4)
        knapp = max(fit.sd_eff_w_re, fit.sd_eff_w_re_hksj)
        assert pooled.high - pooled.estimate == pytest.approx(sps.t.ppf(0.975, 3) * knapp, rel=1e-4)
        assert pooled.i2 == pytest.approx(fit.i2) and "hardly known" in pooled.note
        assert pooled.predicted_low < pooled.low
    with pytest.raises(DataError, match="method is 'reml'"):
        pooling.study_variance(estimates, errors**2, "reml")


def test_few_studies_are_pooled_without_pretence():
    one = pooling.pool_effects([Effect(0.1, 0.02, 8.0)])
    low, high = confidence_interval(Effect(0.1, 0.02, 8.0))
    assert (one.low, one.high, one.note) == (low, high, "one study: not pooled")
    two = pooling.pool_effects([Effect(0.1, 0.02, 8.0), Effect(0.1, 0.02, 8.0)])
    assert two.tau == 0 and two.high - 0.1 > 12 * 0.02 / np.sqrt(2) and np.isnan(two.predicted_low)
    many = pooling.pool_effects([Effect(0.1, 0.02, 8.0)] * 8)
    assert many.high - 0.1 < 0.025 and many.note == ""
    with pytest.raises(DataError, match="study 2: standard error is 0"):
        pooling.pool_effects([Effect(0.1, 0.02, 8.0), Effect(0.1, 0.0, 8.0)])
    with pytest.raises(DataError, match="no study to pool"):
        pooling.pool_effects([])


def test_pooled_intervals_cover(rng):
    covered = []
    for _ in range(600):
        errors = rng.uniform(0.01, 0.05, 4)
        found = rng.normal(0.05, np.hypot(0.03, errors))
        pooled = pooling.pool_effects(
            [Effect(e, s, 1e9) for e, s in zip(found, errors, strict=True)]
        )
        covered.append(pooled.low <= 0.05 <= pooled.high)
    assert np.mean(covered) >= sps.binom.ppf(0.001, 600, 0.95) / 600


def test_paule_mandel_and_hartung_knapp_by_the_textbook(rng):
    """The same numbers by another way: tau^2 by a grid of the generalised Q, the rest by sums."""
    for _ in range(20):
        count = int(rng.integers(3, 9))
        errors = rng.uniform(0.005, 0.03, count)
        found = rng.normal(0.01, np.hypot(0.02, errors))

        def excess(tau2, errors=errors, found=found):
            w = 1 / (errors**2 + tau2)
            return float(w @ (found - w @ found / w.sum()) ** 2 - (len(found) - 1))

        tau2 = 0.0 if excess(0) <= 0 else optimize.bisect(excess, 0, 1, xtol=1e-14)
        w = 1 / (errors**2 + tau2)
        mean = w @ found / w.sum()
        spread = w @ (found - mean) ** 2 / (count - 1) / w.sum()
        half = sps.t.ppf(0.975, count - 1) * np.sqrt(max(spread, 1 / w.sum()))
        pooled = pooling.pool_effects(
            [Effect(e, s, 1e12) for e, s in zip(found, errors, strict=True)]
        )
        assert pooled.tau**2 == pytest.approx(tau2, abs=1e-9)
        assert (pooled.low, pooled.high) == pytest.approx((mean - half, mean + half), abs=1e-7)
        assert pooled.se == pytest.approx(half / sps.t.ppf(0.975, count - 1))


# --- who is pooled with whom ---


def judge(claim, estimate, se, **more):
    """A row of verdicts.json."""
    row = next(c for c in CLAIMS if c["id"] == claim)
    ends = confidence_interval(Effect(estimate, se, 20.0))
    about = {k: row[k] for k in ("family", "section", "words", "measure", "rule", "margin")}
    numbers = dict(estimate=estimate, se=se, df=20.0, low=ends[0], high=ends[1], seeds=5)
    seeds = [estimate + shift * se for shift in (-1, 0, 1)]
    given = dict(claim=claim, contrast="post_cot − label_only", stratum="", verdict="inconclusive")
    last = dict(by_seed=seeds, n=500, as_intact=0.0, reason="The study's own reason.")
    return about | given | numbers | last | more


def record(study, rows, dataset="openbookqa", student="smollm2-135m", seeds=5, loss="balanced"):
    """A verdicts.json."""
    rows = [row | {"study": study} for row in rows]
    about = dict(study=study, dataset=dataset, student=student, student_name=student, loss=loss)
    return about | dict(verdicts=rows, accuracy=[dict(arm="label_only", seeds=seeds)])


FIRST = record(
    "one", [judge("post_beats_label_only", 0.03, 0.004), judge("post_beats_pre", -0.05, 0.004)]
)
SECOND = record("two", [judge("post_beats_label_only", 0.032, 0.004)], "quarel")
THIRD = record(
    "three",
    [judge("post_beats_label_only", 0.028, 0.004), judge("post_beats_pre", -0.051, 0.004)],
    "commonsense_qa",
)
WORLD = record("world", [judge("post_beats_label_only", 0.2, 0.01)], "microworld/everyday")


def test_arms_at_chance_in_every_study_have_nothing_to_lose_together():
    """Without a gate two studies that show equal arms would support it; not where both guess."""
    claim = dict(judge("shuffle_spares_post", 0.001, 0.002), rule="equivalence", margin=0.03)
    claim |= dict(verdict="inconclusive", measure="p_gold", at_chance=True)
    for guesses, verdict in (((True, True), "inconclusive"), ((True, False), "supported")):
        studies = [
            record(name, [claim | {"at_chance": guess}], dataset)
            for name, dataset, guess in zip("ab", ("openbookqa", "quarel"), guesses, strict=True)
        ]
        table = pooling.make_pools(studies)[0].table.set_index("claim")
        row = table.loc["shuffle_spares_post"]
        assert row["verdict"] == verdict
        assert ("shown to be above chance: what is not there" in row["reason"]) == all(guesses)


def test_worlds_and_losses_are_never_pooled_with_real_questions():
    other = record("other", [judge("post_beats_label_only", 0.0, 0.01)], loss="token_mean")
    pools = pooling.make_pools([WORLD, FIRST, SECOND, other])
    assert [(p.kind, p.loss, list(p.studies)) for p in pools] == [
        ("real", "balanced", ["one", "two"]),
        ("real", "token_mean", ["other"]),
        ("embedded", "balanced", ["world"]),
    ]
    alone = pools[2].table.iloc[0]
    own = confidence_interval(Effect(0.2, 0.01, 20.0))
    assert (alone["low"], alone["high"]) == pytest.approx(own)
    assert (alone["studies"], alone["note"]) == (1, "one study: not pooled")
    # far from 0, and yet what the study itself says: its gates are its own
    assert (alone["verdict"], alone["reason"]) == ("inconclusive", "The study's own reason.")


def test_a_cell_counts_once_and_few_seeds_not_at_all():
    again = record("again", FIRST["verdicts"], seeds=3)
    few = record("few", FIRST["verdicts"], "quarel", seeds=2)
    old = {k: v for k, v in record("old", FIRST["verdicts"], "svamp").items() if k != "loss"}
    assert [r["study"] for r in pooling.choose_records([few, again, FIRST, old])] == ["one"]
    assert pooling.choose_records([WORLD]) == []


def test_only_the_same_measure_rule_and_margin_are_pooled():
    odd_ones = [{"measure": "p_gold"}, {"margin": 0.02}, {"stratum": "label"}]
    rows = [judge("post_beats_label_only", 0.1, 0.01, **one) for one in odd_ones]
    rows.append(judge("post_beats_label_only", 0.1, 0.0))
    odd = record("odd", rows, "quarel")
    table = pooling.pool_claims(CLAIMS, [FIRST, odd]).set_index("claim")
    assert table.loc["post_beats_label_only", "studies"] == 1
    assert set(pooling.make_pools([FIRST, odd])[0].effects["study"]) == {"one"}


def test_verdicts_are_those_of_the_rule_after_holm():
    table = pooling.pool_claims(CLAIMS, [FIRST, SECOND, THIRD]).set_index("claim")
    assert table["studies"].to_dict() == {"post_beats_label_only": 3, "post_beats_pre": 2}
    assert table["p_holm"].to_numpy() == pytest.approx(adjust_families(table["p"], ["paper"] * 2))
    assert table.loc["post_beats_label_only", "verdict"] == "supported"
    # two studies have one degree of freedom
    assert table.loc["post_beats_pre", "verdict"] == "contradicted" or (
        table.loc["post_beats_pre", "p_holm"] >= 0.05
    )
    assert "points, 95 % interval" in table.loc["post_beats_label_only", "reason"]
    few = [record("few", [judge("post_beats_label_only", 0.03, 1e-4, seeds=1)]), SECOND, THIRD]
    assert pooling.pool_claims(CLAIMS, few)["verdict"][0] == "inconclusive"


def test_the_gate_is_looked_at_over_the_studies_too():
    def study(name, dataset, gate, alike=0.0):
        shuffle = judge("shuffle_spares_post", 0.001, 0.002, as_intact=alike)
        return record(name, [shuffle, judge("own_rationale_beats_swapped", gate, 0.003)], dataset)

    names = ("openbookqa", "quarel", "commonsense_qa", "svamp")
    cases = [(0.05, 0.0, "supported"), (0.0, 0.0, "inconclusive"), (0.05, 0.5, "inconclusive")]
    for gate, alike, verdict in cases:
        records = [study(name, name, gate, alike) for name in names]
        table = pooling.pool_claims(CLAIMS, records).set_index("claim")
        assert table.loc["shuffle_spares_post", "verdict"] == verdict
    assert "intact ones" in table.loc["shuffle_spares_post", "reason"]


def write(folder, one):
    (folder / one["study"]).mkdir(parents=True, exist_ok=True)
    (folder / one["study"] / "verdicts.json").write_text(json.dumps(one))


def test_a_study_is_pooled_with_the_published_ones_once_it_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pooling, "evidence_folder", lambda name: tmp_path / name)
    write(tmp_path, SECOND)
    write(tmp_path, WORLD)
    assert pooling.pool_study(FIRST, [""], 0.05) is None
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "runs.parquet").touch()
    pool = pooling.pool_study(FIRST, [""], 0.05)
    assert list(pool.studies) == ["one", "two"] or list(pool.studies) == ["two", "one"]
    assert ("openbookqa", "gemma-3-270m") in pool.missing and len(pool.missing) == 4
    (tmp_path / "world" / "runs.parquet").touch()
    assert pooling.pool_study(WORLD, [], 0.05) is None


def test_named_studies_must_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(pooling, "study_dir", lambda name: tmp_path / name)
    for one in (SECOND, WORLD, {k: v for k, v in THIRD.items() if k != "loss"}):
        one = one | {"seal": ""}
        write(tmp_path, one)
    load = lambda name: json.loads((tmp_path / name / "verdicts.json").read_text())
    monkeypatch.setattr(pooling, "load_verdicts", load)
    assert len(pooling.pool_study(FIRST, ["two"], 0.05).studies) == 2
    with pytest.raises(DataError, match="world is of embedded worlds under balanced"):
        pooling.pool_study(FIRST, ["world"], 0.05)
    with pytest.raises(DataError, match="older version, without its loss"):
        pooling.pool_study(FIRST, ["three"], 0.05)
    with pytest.raises(DataError, match="pooled_studies: two has the questions and student of two"):
        pooling.pool_study(FIRST, ["two", "two"], 0.05)


# --- what is shown ---


@pytest.fixture
def pool():
    return pooling.make_pools([FIRST, SECOND, THIRD])[0]


def test_readings_name_the_studies_and_what_is_missing(pool):
    said = readings.figures.pooled(pool)
    assert "one (openbookqa, smollm2-135m)" in said and "1 supported" in said
    assert "Not there yet: commonsense_qa, gemma-3-270m" in said
    assert readings.figures.missing_cells(pool) in said
    assert readings.figures.missing_cells(pooling.make_pools([WORLD])[0]) == ""
    assert readings.figures.pooled_head(None) == ""
    assert "3 studies of real questions" in readings.figures.pooled_head(pool)
    twin = pooling.make_pools([FIRST, record("x", FIRST["verdicts"], student="gemma-3-270m")])[0]
    assert "not independent" in readings.figures.pooled(twin)
    shown = pooling.pooled_table(pool)
    assert shown["studies"].tolist() == [3, 2]
    assert shown["where a further study would lie"].tolist()[1] == "–"


def test_the_forest_has_a_line_per_study_and_a_diamond(pool, tmp_path):
    ax = plots.forest(pool.shown, pool.table)
    texts = [t.get_text() for t in ax.texts]
    assert sum("pooled (" in text for text in texts) == 2
    diamonds = [line for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
    colours = {line.get_color() for line in diamonds}
    assert len(diamonds) == 2 and colours <= {c for c, _ in plots.VERDICTS.values()}
    shown = study_site.show_pool(pool, tmp_path)
    assert 'alt="Forest plot over studies.' in shown["figure"]["markup"]
    assert "pooled over 3 studies +3.0 points" in shown["figure"]["markup"]
    assert (tmp_path / "pooled-real-balanced-phone.svg").is_file()


def test_the_readme_shows_the_pool_once_there_are_two_real_studies():
    records = {r["study"]: r for r in (FIRST, SECOND, WORLD)}
    text = report.render_readme_verdicts(records)
    assert "| claim | pooled | studies |" in text and "one +3.0, two +3.2" in text
    assert "Not there yet: commonsense_qa, smollm2-135m" in text
    alone = report.render_readme_verdicts({"world": WORLD})
    picture, _, table = alone.partition("\n\n")
    assert "docs/figures/claims.svg" in picture and table.startswith("| claim | world |")
    mechanism = judge("rationale_beats_filler", 0.01, 0.01)
    assert "dots" not in report.render_readme_verdicts({"w": record("w", [mechanism])})
