"""Made-up studies that check the statistics: family-wise error, coverage and power.

`python -m cotdistill.calibration docs/calibration` makes the table and the figure of
docs/judging.md (two minutes of one core).
"""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cotdistill.inference import (
    Effect,
    SeedPrior,
    confidence_interval,
    equivalence_p,
    fit_seed_prior,
    join_variances,
    split_variance,
    two_sided_p,
)

CLAIMED = ((1, 0), (2, 0), (1, 2), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1))
MARGIN = 0.03  # within which claims.yaml calls a difference negligible
# With these effects, in margins, every claimed contrast lies at the margin or beyond
AT_MARGIN = (0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)


@dataclass(frozen=True)
class Design:
    """A made-up study whose truth is known.

    seed_sd: one per arm, of an arm's mean over questions; random_spread deals them out afresh in
    each study, so that no contrast always has the noisy arm. seed_correlation: how alike the arms
    are moved by one seed. question_sd: how differently arms fare on a question, on the logit scale;
    difficulty_sd: how questions differ for all arms; both with the tails of a t distribution with
    `tail` (above 2) degrees of freedom. cluster_sizes are repeated until the questions are used up;
    cluster_share is the share of question_sd squared that a cluster has in common. effects are
    added to an arm's chance. measure: "accuracy" (right or wrong) or "p_gold" (the chance itself,
    with noise_sd from seed to seed). Chances lie within base ± room before seeds move them.
    """

    seeds: int = 5
    questions: int = 500
    seed_sd: tuple[float, ...] = (0.02,) * 8
    effects: tuple[float, ...] = (0.0,) * 8
    contrasts: tuple[tuple[int, int], ...] = CLAIMED
    seed_correlation: float = 0.3
    random_spread: bool = True
    question_sd: float = 1.0
    difficulty_sd: float = 1.5
    tail: float = 3.0
    cluster_sizes: tuple[int, ...] = (1,)
    cluster_share: float = 0.0
    measure: str = "accuracy"
    noise_sd: float = 0.08
    worlds: str = "shared"
    base: float = 0.45
    room: float = 0.35

    def clusters(self) -> np.ndarray | None:
        """Return the label of each question's cluster; None where all are single."""
        if max(self.cluster_sizes) == 1:
            return None
        repeats = np.resize(self.cluster_sizes, self.questions)
        return np.repeat(np.arange(self.questions), repeats)[: self.questions]


def simulate_study(rng: np.random.Generator, design: Design, studies: int = 1) -> np.ndarray:
    """Return made-up values (studies, A arms, S seeds, N questions) of a known truth.

    The chance of an arm on a question is base + a bounded function of heavy-tailed difficulty (all
    arms) and of the arm's own luck with the question and its fact, + the arm's effect + the seed's.
    An arm's mean is base + effect in expectation, whatever its spread.
    """
    arms, clusters = len(design.seed_sd), design.clusters()
    rows = design.seeds if design.worlds == "per_seed" else 1
    shape = (studies, arms, rows, design.questions)

    def draw(size: tuple[int, ...]) -> np.ndarray:
        # tails of t, scaled to a standard deviation of 1; cut off by nothing
        return rng.standard_t(design.tail, size) / np.sqrt(design.tail / (design.tail - 2))

    lucky = draw(shape)
    if clusters is not None:
        shared = draw((*shape[:3], int(clusters.max()) + 1))[..., clusters]
        share = design.cluster_share
        lucky = np.sqrt(1 - share) * lucky + np.sqrt(share) * shared
    logit = design.difficulty_sd * draw((studies, 1, rows, design.questions))
    chance = design.base + design.room * np.tanh((logit + design.question_sd * lucky) / 2)
    spread = np.broadcast_to(design.seed_sd, (studies, arms))
    if design.random_spread:
        spread = rng.permuted(spread, axis=1)
    common = rng.normal(size=(studies, 1, design.seeds))
    own = rng.normal(size=(studies, arms, design.seeds))
    r = design.seed_correlation
    moved = spread[..., None] * (np.sqrt(r) * common + np.sqrt(1 - r) * own)
    moved = moved + np.asarray(design.effects)[:, None]
    chance = chance + moved[..., None]
    if design.measure == "p_gold":
        return chance + design.noise_sd * rng.standard_normal(chance.shape)
    return (rng.random(chance.shape) < chance).astype(float)


def judge_simulated(
    values: np.ndarray, design: Design, *, shrink: bool = True, use_clusters: bool = True
) -> tuple[Effect, np.ndarray]:
    """Estimate all contrasts of simulated studies: effects (studies, claims) and design effects."""
    prior = fit_seed_prior(values.mean(-1)) if shrink else SeedPrior()
    clusters = design.clusters() if use_clusters else None
    guard = (1.0, -1.0) if design.measure == "accuracy" else ()
    found, design_effects = [], []
    for a, b in design.contrasts:
        parts = split_variance(
            values[:, a] - values[:, b], clusters, nested=design.worlds == "per_seed", guard=guard
        )
        found.append(join_variances(parts, prior))
        design_effects.append(parts.design_effect)
    estimate, se, df = (
        np.stack([getattr(e, name) for e in found], -1) for name in ("estimate", "se", "df")
    )
    return Effect(estimate, se, df), np.stack(design_effects, -1)


def _apply_holm(p: np.ndarray, alpha: float) -> np.ndarray:
    """Say which claims (studies, k) Holm finds at alpha: smallest first, until one is not found."""
    count = p.shape[-1]
    order = np.argsort(p, -1)
    steps = np.take_along_axis(p, order, -1) <= alpha / np.arange(count, 0, -1)
    passed = np.logical_and.accumulate(steps, -1)
    found = np.zeros_like(passed)
    np.put_along_axis(found, order, passed, -1)
    return found


def calibration_designs(measure: str = "p_gold") -> list[Design]:
    """List the 36 designs on which the promises are checked.

    3, 5 and 10 seeds; 100, 400 and 1,200 questions; seed spreads equal (.02) or sixfold (.01 to
    .06); single questions, or one to five about a fact (design effect 1.3 to 1.7, more with more
    seeds). Arms share .3 of a seed's luck; difficulty has the tails of t with 3 degrees of freedom.
    """
    share = 0.3 if measure == "p_gold" else 0.8  # single answers hide what facts share
    spreads = ((0.02,) * 8, tuple(np.geomspace(0.01, 0.06, 8)))
    groups = (dict(), dict(cluster_sizes=(1, 2, 3, 4, 5), cluster_share=share))
    return [
        Design(seeds=seeds, questions=questions, seed_sd=spread, measure=measure, **group)
        for seeds in (3, 5, 10)
        for questions in (100, 400, 1200)
        for spread in spreads
        for group in groups
    ]


def calibrate(
    rng: np.random.Generator,
    designs: Sequence[Design],
    *,
    studies: int = 1000,
    effect: float = 0.05,
    alpha: float = 0.05,
    shrink: bool = True,
    use_clusters: bool = True,
    cells: float = 4e6,
) -> pd.DataFrame:
    """Measure family-wise error, coverage and power on made-up studies: a row per design.

    Columns: seeds, questions, spread (largest seed_sd over smallest), measure, worlds, fwer (any
    claim found by Holm where all arms are equal), per_claim (false positives of one claim by
    itself), coverage (of 1 - alpha intervals, where arm 1 is better by `effect`), power (the first
    contrast is found after Holm), alone (before Holm), half_width (median), design_effect (mean),
    studies, and those of `calibrate_negligible`. A rate p is known to ± 2 sqrt(p (1 - p) /
    studies). `cells` bounds what is in memory at once.
    """
    rows, apart = [], rng.spawn(1)[0]  # draws of its own: the others stay as they were
    for design in designs:
        batch = max(1, int(cells // (len(design.seed_sd) * design.seeds * design.questions)))
        better = replace(design, effects=(0.0, effect, *[0.0] * (len(design.seed_sd) - 2)))
        truth = np.array([better.effects[a] - better.effects[b] for a, b in design.contrasts])
        null_p, p, covered, widths, clustered = [], [], [], [], []
        for start in range(0, studies, batch):
            count = min(batch, studies - start)
            for made, keep in ((design, null_p), (better, p)):
                values = simulate_study(rng, made, count)
                judged, effects = judge_simulated(
                    values, made, shrink=shrink, use_clusters=use_clusters
                )
                keep.append(two_sided_p(judged))
            low, high = confidence_interval(judged, alpha)
            covered.append((low <= truth) & (truth <= high))
            widths.append((high - low) / 2)
            clustered.append(effects)
        null_p, p, covered, widths, clustered = (
            np.concatenate(x) for x in (null_p, p, covered, widths, clustered)
        )
        rows.append(
            dict(
                seeds=design.seeds,
                questions=design.questions,
                spread=max(design.seed_sd) / max(min(design.seed_sd), 1e-12),
                measure=design.measure,
                worlds=design.worlds,
                fwer=float(_apply_holm(null_p, alpha).any(-1).mean()),
                per_claim=float((null_p < alpha).mean()),
                coverage=float(covered.mean()),
                power=float(_apply_holm(p, alpha)[:, 0].mean()),
                alone=float((p[:, 0] < alpha).mean()),
                half_width=float(np.median(widths)),
                design_effect=float(clustered.mean()),
                studies=studies,
            )
            | calibrate_negligible(apart, design, studies, alpha, batch)
        )
    return pd.DataFrame(rows)


def calibrate_negligible(
    rng: np.random.Generator, design: Design, studies: int, alpha: float, batch: int
) -> dict[str, float]:
    """Measure how often a claim is called negligible: rightly, and falsely.

    negligible: share of claims so called where all arms are equal; false_negligible: share of
    studies with any such claim where every claim lies at the margin or beyond. batch: studies in
    memory at once. The design has at most as many arms as AT_MARGIN.
    """
    effects = tuple(MARGIN * x for x in AT_MARGIN[: len(design.seed_sd)])
    called = {"negligible": [], "false_negligible": []}
    for start in range(0, studies, batch):
        designs = (design, replace(design, effects=effects))
        for made, keep in zip(designs, called.values(), strict=True):
            values = simulate_study(rng, made, min(batch, studies - start))
            found = _apply_holm(equivalence_p(judge_simulated(values, made)[0], MARGIN), alpha)
            keep.append(found)
    right, wrong = (np.concatenate(found) for found in called.values())
    return {"negligible": float(right.mean()), "false_negligible": float(wrong.any(-1).mean())}


def save_calibration(folder: Path, studies: int = 500, most_questions: int = 400) -> pd.DataFrame:
    """Write calibration.csv and calibration.png: the designs of up to `most_questions` questions.

    By p(gold), with a generator of fixed seed, so that two calls write the same bytes.
    """
    designs = [d for d in calibration_designs() if d.questions <= most_questions]
    table = calibrate(np.random.default_rng(26), designs, studies=studies)
    table["clusters"] = [max(design.cluster_sizes) > 1 for design in designs]
    folder.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(folder / "calibration.csv", index=False)
    draw_calibration(table, folder / "calibration.png")
    return table


def render_calibration(table: pd.DataFrame) -> str:
    """Write the calibration by p(gold) as Markdown: a row per design, and what it shows in words.

    table: of `save_calibration`.
    """
    rows = table[table["measure"] == "p_gold"]
    lines = [
        "| seeds | questions | seed spreads | family-wise error | coverage | power "
        "| called negligible | falsely |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.itertuples():
        lines.append(
            f"| {row.seeds} | {row.questions} | {_spreads(row)} | {row.fwer:.3f} "
            f"| {row.coverage:.3f} | {row.power:.2f} | {row.negligible:.3f} "
            f"| {row.false_negligible:.3f} |"
        )
    most, *others = rows.sort_values("negligible", ascending=False).itertuples()
    next_most = max((row.negligible for row in others), default=0.0)
    said = (
        f"Family-wise error lies between {rows['fwer'].min():.3f} and {rows['fwer'].max():.3f}, "
        f"coverage between {rows['coverage'].min():.3f} and {rows['coverage'].max():.3f}. The "
        f"verdict *negligible* is rare in these designs: {100 * most.negligible:.0f} % of claims "
        f"with {most.seeds} seeds and {most.questions} questions (seed spreads: {_spreads(most)}), "
        f"at most {100 * next_most:.1f} % elsewhere. So only that row tests its promise."
    )
    return "\n".join([*lines, "", textwrap.fill(said, 100)]) + "\n"


def _spreads(row) -> str:
    """Name a design's seed spreads, and whether its questions share facts."""
    spread = {1: "equal", 6: "sixfold"}.get(row.spread, f"{row.spread:g}fold")
    return spread + (", shared facts" if row.clusters else "")


def draw_calibration(table: pd.DataFrame, path: Path) -> None:
    """Draw family-wise error, coverage and power against the number of seeds, a line per design."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    shown = (
        ("fwer", "Family-wise error (no arm differs)", 0.05),
        ("coverage", "Coverage of 95 % intervals", 0.95),
        ("power", "Power for 5 points, after Holm", 0.8),
    )
    for ax, (column, title, promised) in zip(axes, shown, strict=True):
        for (questions, spread, clusters), rows in table.groupby(
            ["questions", "spread", "clusters"]
        ):
            sixfold = "sixfold" if spread > 1.5 else "equal"
            shared = ", shared facts" if clusters else ""
            ax.plot(
                rows["seeds"],
                rows[column],
                marker="o" if clusters else "s",
                linestyle="--" if spread > 1.5 else "-",
                color="#2B7FB5" if questions > 200 else "#D95F02",
                label=f"{questions} questions, {sixfold} spreads{shared}",
            )
        ax.axhline(promised, color="#444444", linewidth=1, linestyle=":")
        ax.set(title=title, xlabel="Seeds", xticks=sorted(set(table["seeds"])))
        ax.set_ylim(*{"fwer": (0, 0.12), "coverage": (0.9, 1.0), "power": (0, 1.02)}[column])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    save_calibration(Path(sys.argv[1]))
