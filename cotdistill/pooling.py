"""Pool one claim's effect over studies: a random-effects mean, and its verdict.

A study is a dataset answered by a student, its cell. What each says of a claim, an estimate with
its standard error and degrees of freedom, comes from its verdicts.json alone, so that published
studies can be pooled without their runs. Each cell counts once, with its study's own loss. Pooled
are studies of one kind (real questions, or embedded worlds, which are made to show an effect) and
of one main loss, on the same claim, measure, rule, margin and stratum.

tau^2 by Paule and Mandel (1982); the interval by Hartung and Knapp (2001); the prediction interval
by Higgins, Thompson and Spiegelhalter (2009, doi:10.1111/j.1467-985X.2008.00552.x). The verdict has
the rule of `verdicts.py`: Holm within each family, gates, margins.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats as sps
from scipy.optimize import brentq

from cotdistill.errors import DataError
from cotdistill.examples import is_embedded
from cotdistill.files import read_text
from cotdistill.inference import Effect, confidence_interval, two_sided_p
from cotdistill.paths import evidence_folder, root, study_dir
from cotdistill.rules import RULES
from cotdistill.runs.published import FILE
from cotdistill.sources import SOURCES
from cotdistill.stats import MIN_SEEDS
from cotdistill.students import BUNDLED
from cotdistill.verdicts import conclude, estimate_text, load_claims, load_verdicts, write_p

KINDS = {"real": "real questions", "embedded": "embedded worlds"}
SAME = ("measure", "rule", "margin", "stratum")  # of a claim, equal in all studies that are pooled


@dataclass(frozen=True)
class Pooled:
    """A mean effect over studies, how far studies differ (tau, a standard deviation), a note.

    se and df: of the mean, which its interval and p come from. predicted_low, predicted_high: where
    a further study's true effect would lie (95 %).
    """

    estimate: float
    se: float
    df: float
    low: float
    high: float
    p: float
    tau: float
    i2: float
    studies: int
    predicted_low: float
    predicted_high: float
    note: str


def study_variance(
    estimates: np.ndarray, variances: np.ndarray, method: str = "paule_mandel"
) -> float:
    """Return tau^2, the variance of true effects between studies, never below 0.

    "paule_mandel" (Paule and Mandel 1982; advised by Veroniki et al. 2016, doi:10.1002/jrsm.1164):
    the tau^2 at which the weighted squares are what they should be. "dersimonian_laird" (1986): its
    first step, by moments.
    """

    def squares(tau2: float) -> float:
        w = 1 / (variances + tau2)
        return float((w * (estimates - np.average(estimates, weights=w)) ** 2).sum())

    wanted = len(estimates) - 1
    excess = squares(0.0) - wanted
    if method not in ("paule_mandel", "dersimonian_laird"):
        raise DataError(f"method is {method!r}; expected paule_mandel or dersimonian_laird")
    if excess <= 0:
        return 0.0
    if method == "dersimonian_laird":
        w = 1 / variances
        return float(excess / (w.sum() - (w**2).sum() / w.sum()))
    high = float(estimates.var(ddof=1) * len(estimates) + variances.max())
    while squares(high) > wanted:
        high *= 2
    return float(brentq(lambda tau2: squares(tau2) - wanted, 0.0, high))


def pool_effects(
    effects: Sequence[Effect], *, method: str = "paule_mandel", alpha: float = 0.05
) -> Pooled:
    """Return the random-effects mean of one contrast over studies, one effect a study.

    The interval is Hartung and Knapp's (2001; t with k - 1 degrees of freedom) and never narrower
    than the plain one (Röver et al. 2015, doi:10.1186/s12874-015-0091-1), which matters for few
    studies that agree by luck. A study's variance is that of its interval, so that its own few
    degrees of freedom count. One study is returned as it is, with a note; two give an interval with
    1 degree of freedom, which is as wide as it ought to be: two studies cannot say how much a third
    would differ. The prediction interval (Higgins et al. 2009; t with k - 2) needs three. Studies
    with the same test questions are not independent. Raises DataError for no study and for an
    effect without a standard error above 0.
    """
    if not effects:
        raise DataError("no study to pool; expected at least one effect")
    estimates = np.array([float(e.estimate) for e in effects])
    z = sps.norm.ppf(1 - alpha / 2)
    errors = np.array([float(e.se) * sps.t.ppf(1 - alpha / 2, float(e.df)) / z for e in effects])
    if not (errors > 0).all():
        raise DataError(
            f"study {int(np.argmin(errors > 0)) + 1}: standard error is 0 or missing; "
            "expected one above 0 (a study in which nothing varied cannot be pooled)"
        )
    count = len(effects)
    if count == 1:
        low, high = (float(end) for end in confidence_interval(effects[0], alpha))
        unknown, p = (np.nan, np.nan), float(two_sided_p(effects[0]))
        own = (estimates[0], float(effects[0].se), float(effects[0].df), low, high, p)
        return Pooled(*own, *unknown, 1, *unknown, "one study: not pooled")
    tau2 = study_variance(estimates, errors**2, method)
    weights = 1 / (errors**2 + tau2)
    mean = float(np.average(estimates, weights=weights))
    plain = 1 / weights.sum()
    spread = float((weights * (estimates - mean) ** 2).sum() / (count - 1))
    se = float(np.sqrt(plain * max(spread, 1.0)))
    half = sps.t.ppf(1 - alpha / 2, count - 1) * se
    ahead = np.nan
    if count > 2:
        ahead = sps.t.ppf(1 - alpha / 2, count - 2) * np.sqrt(tau2 + se**2)
    fixed = 1 / errors**2
    q = float((fixed * (estimates - np.average(estimates, weights=fixed)) ** 2).sum())
    note = f"{count} studies: how much studies differ is hardly known" if count < 5 else ""
    return Pooled(
        mean,
        se,
        count - 1.0,
        mean - half,
        mean + half,
        float(2 * sps.t.sf(abs(mean) / se, count - 1)),
        float(np.sqrt(tau2)),
        max(1 - (count - 1) / q, 0.0) if q > 0 else 0.0,
        count,
        mean - ahead,
        mean + ahead,
        note,
    )


@dataclass(frozen=True)
class Pool:
    """Studies of one kind and one main loss, and what they say together.

    studies: name -> its cell (dataset, student). effects: the studies' own verdicts, a row per
    study and claim. table: a row per claim (`pool_claims`).
    """

    kind: str
    loss: str
    studies: dict[str, tuple[str, str]]
    effects: pd.DataFrame
    table: pd.DataFrame

    @property
    def shown(self) -> pd.DataFrame:
        """Select the effects that the figure shows: those of the claims of the paper's abstract."""
        if self.effects.empty:
            return self.effects
        return self.effects[self.effects["section"].str.startswith("abstract")]

    @property
    def missing(self) -> list[tuple[str, str]]:
        """List the cells that are not there, of the paper's datasets and the bundled students."""
        if self.kind != "real":
            return []
        datasets = [name for name, source in SOURCES.items() if source["hub"]]
        cells = [(dataset, student) for dataset in datasets for student in BUNDLED]
        return [cell for cell in cells if cell not in self.studies.values()]


def study_kind(record: dict) -> str:
    """Say of a verdicts.json whether its questions are "real" or of an "embedded" world."""
    return "embedded" if is_embedded(record["dataset"]) else "real"


def study_cell(record: dict) -> tuple[str, str]:
    """Return dataset and student of a verdicts.json."""
    return record["dataset"], record["student_name"]


def count_seeds(record: dict) -> int:
    """Count the seeds of a verdicts.json: the most that an arm has."""
    return max(row["seeds"] for row in record["accuracy"])


def can_be_pooled(record: dict) -> bool:
    """Tell whether a verdicts.json says its loss and student, as those of older versions do not."""
    return "loss" in record and "student_name" in record and has_families(record)


def has_families(record: dict) -> bool:
    """Tell whether a verdicts.json was judged as this version judges: claims have families."""
    return all("family" in row for row in record["verdicts"])


def choose_records(records: Sequence[dict]) -> list[dict]:
    """Choose one study per cell, so that none counts twice: the one with most seeds.

    Of equal ones the first by name. Left out are studies with fewer than `MIN_SEEDS` seeds, those
    of older versions, and embedded worlds: these are made to show different effects, and a mean
    over them says nothing.
    """
    chosen = {}
    known = [
        r
        for r in records
        if can_be_pooled(r) and count_seeds(r) >= MIN_SEEDS and study_kind(r) == "real"
    ]
    for record in sorted(known, key=lambda r: (-count_seeds(r), r["study"])):
        chosen.setdefault((study_cell(record), record["loss"]), record)
    return sorted(chosen.values(), key=lambda r: (study_cell(r), r["study"]))


def pool_claims(claims: list[dict], records: Sequence[dict], alpha: float = 0.05) -> pd.DataFrame:
    """Pool each claim over the studies that measured it, and judge it.

    claims: of `verdicts.load_claims`; records: verdicts.json of studies that may be pooled. A study
    in which nothing varied says nothing of its error and is left out. Studies on the same test
    questions are not independent: their spread is a little too small.

    Columns: those of `Pooled`, claim, family, words, section, contrast (of the first study), p of
    the claim's own rule, p_holm, detectable, verdict and reason as in `verdicts.verdicts`, seeds
    (the fewest of a study). A claim that one study measured has that study's own verdict, which its
    own gates decided. Claims that no study measured are left out.
    """
    rows, asked, alone = [], [], {}
    for claim in claims:
        found = [row for record in records for row in record["verdicts"] if _fits(row, claim)]
        if found:
            rows.append(_pool_claim(claim, found))
            asked.append(claim)
        if len(found) == 1:
            own = ("verdict", "reason", "registered")
            alone[claim["id"]] = {name: found[0].get(name, "") for name in own}
    # A mean near zero may hide studies that differ, so none is called negligible
    conclude([{k: v for k, v in c.items() if k != "negligible"} for c in asked], rows, alpha)
    for row in rows:
        if row["seeds"] < MIN_SEEDS:
            row["reason"] = f"A study has fewer than {MIN_SEEDS} seeds, so nothing is claimed."
        row |= alone.get(row["claim"], {})
    return pd.DataFrame(rows).drop(columns=["effect", "arms"], errors="ignore")


def _fits(row: dict, claim: dict) -> bool:
    """Tell whether a study's row measured a claim as the claim is now, with an error above 0."""
    same = all((row.get(name) or "") == (claim.get(name) or "") for name in SAME)
    return row["claim"] == claim["id"] and same and row["estimate"] is not None and row["se"] > 0


def _pool_claim(claim: dict, found: list[dict]) -> dict:
    """Pool the rows of one claim, and say which verdict a small p would bring."""
    pooled = pool_effects([Effect(row["estimate"], row["se"], row["df"]) for row in found])
    effect = Effect(pooled.estimate, pooled.se, pooled.df)
    p, verdict = RULES[claim["rule"]].judge(effect, claim["margin"], claim["direction"])
    names = ("family", "section", "measure", "rule", "margin")
    about = dict(claim=claim["id"], words=" ".join(claim["words"].split()), effect=effect)
    first = found[0]["contrast"]
    return (
        asdict(pooled)
        | about
        | {name: claim[name] for name in names}
        | dict(
            stratum=claim.get("stratum", ""),
            contrast=first,
            arms={"a": first.partition(" − ")[0]},
            as_intact=max(row.get("as_intact") or 0.0 for row in found),
            at_chance=all(row.get("at_chance", False) for row in found),
            seeds=min(row["seeds"] for row in found),
            p=p,
            verdict=verdict,
        )
    )


def make_pools(
    records: Sequence[dict], claims: list[dict] | None = None, alpha: float = 0.05
) -> list[Pool]:
    """Group studies by kind and main loss, real questions first, and pool each group.

    records: verdicts.json of studies, each of its own cell (`choose_records`). claims: those of
    params/claims.yaml unless given.
    """
    claims = load_claims(root() / "params" / "claims.yaml") if claims is None else claims
    groups = {}
    for kind in KINDS:
        for record in records:
            if study_kind(record) == kind:
                groups.setdefault((kind, record["loss"]), []).append(record)
    pools = []
    for (kind, loss), members in groups.items():
        table = pool_claims(claims, members, alpha)
        rows = [
            row
            for record in members
            for row in record["verdicts"]
            if any(_fits(row, claim) for claim in claims)
        ]
        cells = {record["study"]: study_cell(record) for record in members}
        pools.append(Pool(kind, loss, cells, pd.DataFrame(rows), table))
    return pools


def read_published_records() -> list[dict]:
    """Read the verdicts.json of every published study that has one."""
    paths = sorted(evidence_folder("x").parent.glob("*/verdicts.json"))
    return [json.loads(read_text(path, "verdicts")) for path in paths]


def pool_study(record: dict, named: Sequence[str], alpha: float) -> Pool | None:
    """Pool a study that was just judged with others of its kind and loss; None for it alone.

    record: its verdicts.json. named: studies that have run here, to pool with this one; without any
    the published studies are taken, if this one's runs are published too. Raises DataError for a
    named study that has not run, for one of another kind or loss, and for a cell named twice.
    """
    named = [name for name in named if name]
    if named:
        records = [record, *(_read_named(name, record) for name in named)]
        _check_cells(records)
    elif (evidence_folder(record["study"]) / FILE).is_file():
        others = [r for r in read_published_records() if r["study"] != record["study"]]
        records = choose_records([record, *others])
    else:
        records = []
    group = (study_kind(record), record["loss"])
    for pool in make_pools(records, alpha=alpha):
        if (pool.kind, pool.loss) == group and len(pool.studies) > 1:
            return pool
    return None


def _check_cells(records: list[dict]) -> None:
    """Check that no study and no cell of real questions counts twice. Raises DataError.

    Studies of one embedded world have questions of their own, drawn by their data_seed.
    """
    known = {}
    for record in records:
        name = record["study"]
        cell = study_cell(record) if study_kind(record) == "real" else (name,)
        if cell in known:
            raise DataError(
                f"pooled_studies: {name} has the questions and student of {known[cell]} "
                f"({', '.join(cell)}); expected each once"
            )
        known[cell] = name


def _read_named(name: str, record: dict) -> dict:
    """Read the verdicts.json of a study that has run, which must fit the one it is pooled with."""
    other = load_verdicts(name)
    if not can_be_pooled(other):
        raise DataError(
            f"{study_dir(name) / 'verdicts.json'}: written by an older version, without its loss; "
            f"expected what `make figures STUDY={name}` writes"
        )
    mine, its = ((KINDS[study_kind(r)], r["loss"]) for r in (record, other))
    if mine != its:
        raise DataError(
            f"pooled_studies: {name} is of {its[0]} under {its[1]}, and this study is of "
            f"{mine[0]} under {mine[1]}; expected studies of one kind and one main loss"
        )
    return other


def pooled_table(pool: Pool) -> pd.DataFrame:
    """List what studies say together of each claim, with numbers in points as text.

    where a further study would lie: the 95 % prediction interval, a dash for fewer than three
    studies. tau: how far studies differ, a standard deviation.
    """
    found = pool.table
    ends = found[["predicted_low", "predicted_high"]].to_numpy()
    ahead = [f"{100 * a:+.1f} to {100 * b:+.1f}" if a == a else "–" for a, b in ends]
    table = pd.DataFrame(
        {
            "claim": found["words"],
            "studies": found["studies"],
            "pooled estimate, 95 % interval": [estimate_text(row) for _, row in found.iterrows()],
            "where a further study would lie": ahead,
            "tau (points)": [f"{100 * tau:.1f}" if tau == tau else "–" for tau in found["tau"]],
            "p after Holm": [write_p(p) for p in found["p_holm"]],
            "verdict": found["verdict"],
        }
    )
    return table.set_index("claim")
