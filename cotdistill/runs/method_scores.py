"""Several attribution methods on the same questions: their scores, and the checks of them."""

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from cotdistill.arms import LEFT_OUT
from cotdistill.attribution import checks, curves, movement
from cotdistill.attribution.methods import METHODS
from cotdistill.attribution.score import Attribution
from cotdistill.attribution.words import selected_words, selection_table
from cotdistill.examples import Example
from cotdistill.files import fingerprint
from cotdistill.runs.attributors import Attributor
from cotdistill.runs.scores import attributions, load_or_make_scores, load_or_make_table
from cotdistill.students import Student
from cotdistill.study import Study

HELD_OUT = 100  # held-out questions, at most, in the check of what is known by heart


@dataclass(frozen=True)
class MethodScores:
    """What attribution methods say of the rationales of some questions.

    attributors the students that attribute, of `load_attributors`; each covers its own questions
    examples    the questions
    methods     names of attribution methods; without one, every table is empty
    options     of every method: n_steps, baseline, seed
    selections  tokens chosen by hand, for the method "human"

    Scores and slow tables are kept in the study's folder. Intervals are bootstrapped in the order
    in which tables are asked for, from one seed.
    """

    study: Study
    attributors: list[Attributor]
    examples: list[Example]
    methods: list[str]
    options: dict
    selections: dict | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def student(self) -> Student:
        """A student that attributes, for its tokenizer."""
        return self.attributors[0].student

    @property
    def _options(self) -> dict:
        return {"label_format": self.study.setting.label_format} | self.options

    def _parts(self, method: str) -> list[tuple[Attributor, list[Example]]]:
        """Pair attributors with the questions that they attribute by a method.

        A method that reads no weights takes all questions at once: it counts words over them.
        """
        if METHODS[method].reads != "model":
            return [(self.attributors[0], self.examples)]
        pairs = [(one, one.choose(self.examples)) for one in self.attributors]
        return [(one, chosen) for one, chosen in pairs if chosen]

    def _load(self, load, method: str) -> list:
        """Call `load` (of scores or attributions) for each attributor, with its weights."""
        chosen = {"selections": self.selections} if method == "human" else {}
        return [
            load(
                self.study,
                one.load(),
                one.fingerprint,
                method,
                examples,
                **chosen,
                **self._options,
            )
            for one, examples in self._parts(method)
        ]

    def _attributions(self, method: str) -> list[Attribution]:
        found = {a.id: a for part in self._load(attributions, method) for a in part}
        return [found[e.id] for e in self.examples]

    @functools.cached_property
    def by_method(self) -> dict[str, list[Attribution]]:
        """Method -> its attributions, in the order of the examples."""
        return {method: self._attributions(method) for method in self.methods}

    def scores(self) -> dict[tuple[str, int], tuple]:
        """Load or make all scores, as `run_grid` takes them.

        (method, seed) -> (scores by id, their fingerprint).
        """
        found = {}
        for method in self.methods:
            parts = self._load(load_or_make_scores, method)
            prints = [print_of for _, print_of in parts]
            found[method] = (
                {name: values for scores, _ in parts for name, values in scores.items()},
                prints[0] if len(prints) == 1 else fingerprint(prints),
            )
        return {(m, seed): found[m] for m in self.methods for seed in self.study.setting.seeds}

    def gaps(self) -> pd.DataFrame:
        """Measure how far integrated gradients are from adding up (`checks.completeness`).

        Empty where they are not among the methods.
        """
        if "integrated_gradients" not in self.methods:
            return pd.DataFrame()
        return checks.completeness(self._attributions("integrated_gradients"))

    def _table(self, name: str, function, *, of=None, **named) -> pd.DataFrame:
        """Load or make a slow table, kept under a fingerprint of all that it depends on.

        One part per attributor: function(student, its examples, rationales, **named), and `of` its
        examples, (examples) -> further named arguments, where some depend on them.
        """
        rationales, tables = self.study.data.rationales, []
        for one in self.attributors:
            examples = one.choose(self.examples)
            about = [
                one.fingerprint,
                str(self.student.model.dtype),
                [[e, rationales[e.id].text] for e in examples],
                self.methods,
                self.selections if "human" in self.methods else None,
                self._options,
                named,
            ]
            given = dict(label_format=self.study.setting.label_format)
            given |= dict(baseline=self.options["baseline"]) | named
            if examples:
                given |= of(examples) if of else {}
                call = (one.load(), examples, rationales)
                tables.append(load_or_make_table(self.study, name, about, function, *call, **given))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    @functools.cached_property
    def _curves(self) -> pd.DataFrame:
        if not self.methods:
            return pd.DataFrame()
        found, place = self.by_method, {e.id: i for i, e in enumerate(self.examples)}

        def choose(examples):
            rows = [place[e.id] for e in examples]
            return {"by_method": {m: [scores[i] for i in rows] for m, scores in found.items()}}

        return self._table("curves", curves.faithfulness_all, of=choose, seed=self.options["seed"])

    def _label_logps(self, student: Student, print_of: str, asked: list) -> dict[str, float]:
        """Load or make log p(label) with no rationale, question id -> nats."""
        label_format = self.study.setting.label_format
        about = [print_of, str(student.model.dtype), asked, label_format]
        table = load_or_make_table(
            self.study, "no_rationale", about, _label_table, student, asked, label_format
        )
        return dict(zip(table["id"], table["logp"], strict=True))

    @functools.cached_property
    def _without_rationale(self) -> list[dict[str, dict[str, float]]]:
        """For each attributor: group -> question id -> log p(label) with no rationale.

        Groups: "attributed", "trained on" (by this attributor) and "held out": validation and test
        questions, the first `HELD_OUT`; and "before", all of them by the undistilled student.
        """
        held, found = [*self.study.data.validation, *self.study.test_questions()][:HELD_OUT], []
        undistilled = self.study.student
        for one in self.attributors:
            seen = [e for e in self.examples if e.id in one.trained_on]
            groups = {"attributed": one.choose(self.examples), "trained on": seen, "held out": held}
            asked = list({e.id: e for group in groups.values() for e in group}.values())
            logps = self._label_logps(one.load(), one.fingerprint, asked)
            chosen = {n: {e.id: logps[e.id] for e in group} for n, group in groups.items()}
            before = self._label_logps(undistilled, undistilled.fingerprint, asked)
            found.append(chosen | {"before": before})
        return found

    def known_by_heart(self) -> pd.DataFrame:
        """Compare log p(label) without a rationale: attributed, trained on, and held out.

        See `movement.known_by_heart`. A held-out question counts once, with the mean over
        attributors. "trained on" is left out where it is what is attributed. The undistilled
        student is compared as it is: nothing was before it.
        """
        joined: dict[str, dict[str, list[float]]] = {}
        for groups in self._without_rationale:
            for name, logps in groups.items():
                for question, logp in logps.items():
                    joined.setdefault(name, {}).setdefault(question, []).append(logp)
        means = {n: {q: float(np.mean(v)) for q, v in g.items()} for n, g in joined.items()}
        before = means.pop("before")
        if len(self.attributors) == 1:
            means.pop("trained on", None)
        if self.attributors[0].fingerprint == self.study.student.fingerprint:
            before = dict.fromkeys(before, 0.0)
        return movement.known_by_heart(means, before, self.rng)

    def movement(self) -> pd.DataFrame:
        """Measure how far each rationale moves log p(label) (`movement.movement`)."""
        without = {}
        for groups in self._without_rationale:
            without |= groups["attributed"]
        return movement.movement(self._curves, without)

    def quartiles(self, moved: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
        """Show `movement` and `gaps` as quartiles (`movement.movement_quartiles`)."""
        return movement.movement_quartiles(moved, gaps) if len(moved) else pd.DataFrame()

    def comparison(self, amount: float) -> pd.DataFrame:
        """Compare the methods in one table of means over questions, with intervals.

        In the columns of `checks.mean_intervals`. Measures: comprehensiveness and sufficiency
        (nats), area (mean height of the deletion curve, nats), below_random (random's area minus
        it, on the same questions), and label_share and all_share (`checks.label_word_share`; the
        share of the top `amount` tokens that are words of the label).
        """
        if not self.methods:
            return pd.DataFrame()
        rationales, rows = self.study.data.rationales, []
        shares = [
            checks.label_word_share(self.student, self.examples, rationales, found, amount)
            for found in self.by_method.values()
        ]
        areas = curves.curve_areas(self._curves)
        for table, measures in (
            (self._curves, curves.MEASURES),
            (areas, ["area", "below_random"]),
            (pd.concat(shares), ["label_share", "all_share"]),
        ):
            rows.append(checks.mean_intervals(table, ["method"], measures, self.rng))
        return pd.concat(rows, ignore_index=True)

    def comparison_table(self, means: pd.DataFrame) -> pd.DataFrame:
        """Write `comparison` as a table of texts: a row per method, a column per measure."""
        names = {
            "comprehensiveness": "comprehensiveness (nats)",
            "sufficiency": "sufficiency (nats)",
            "area": "area (nats)",
            "below_random": "below random (nats)",
            "label_share": "label words in the top (%)",
        }
        rows = means[means["measure"].isin(names) & (means["n"] > 0)] if len(means) else means
        if rows.empty:
            return rows
        texts = [
            f"{100 * r.value:.0f} [{100 * r.low:.0f}, {100 * r.high:.0f}]"
            if r.measure == "label_share"
            else f"{r.value:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"
            for r in rows.itertuples()
        ]
        table = rows.assign(text=texts).pivot(index="method", columns="measure", values="text")
        order = [name for name in names if name in table.columns]
        return table.reindex(self.methods)[order].rename(columns=names)

    def deletion(self) -> pd.DataFrame:
        """Average log p(label) after erasing a method's first tokens, by share of the tokens.

        With intervals over questions; on a common grid from 0 to 1 (`curves.curves_on_grid`).
        """
        if not self.methods:
            return pd.DataFrame()
        by = ["method", "fraction"]
        grid = curves.curves_on_grid(self._curves)
        return checks.mean_intervals(grid, by, ["deletion"], self.rng)

    def agreement(self, amount: float) -> pd.DataFrame:
        """Measure how alike each two methods rank tokens; `amount`: the size of the top."""
        return checks.agreement(self.by_method, amount, self.rng)

    def randomised(self, count: int) -> pd.DataFrame:
        """Correlate the ranks of integrated gradients with those of redrawn weights.

        count: on the first so many questions.
        """
        if "integrated_gradients" not in self.methods:
            return pd.DataFrame()
        first = replace(self, examples=self.examples[:count])
        table = first._table(
            "randomised",
            checks.randomisation_check,
            method="integrated_gradients",
            n_steps=self.options["n_steps"],
        )
        return table[["id", "rho"]]

    def key_tokens(self) -> pd.DataFrame:
        """Measure how well each method finds the known key tokens, a row per method and question.

        Empty where the data know none.
        """
        data = self.study.data
        rows = [
            {"method": method}
            | checks.key_token_precision_recall(self.student, data.rationales[one.id], one.scores)
            for method in self.methods
            for one in self.by_method[method]
            if data.meta
        ]
        return pd.DataFrame(rows)

    def key_token_means(self, hits: pd.DataFrame) -> pd.DataFrame:
        """Average `key_tokens` with intervals, as `checks.mean_intervals` gives them."""
        if hits.empty:
            return pd.DataFrame(columns=["method", "measure", "value", "low", "high"])
        measures = ["precision", "average_precision"]
        return checks.mean_intervals(hits, ["method"], measures, self.rng)

    def word_classes(self, amount: float) -> pd.DataFrame:
        """Count shares of word classes among the words that each method selects, and all words."""
        if not self.methods:
            return pd.DataFrame()
        rationales = self.study.data.rationales
        words = pd.concat(
            [
                selected_words(e, rationales[e.id].text, one, amount)
                for method in self.methods
                for e, one in zip(self.examples, self.by_method[method], strict=True)
            ]
        )
        classes = selection_table(words)
        shares = classes.pivot(index="property", columns="method", values="selected")
        shares["all words"] = classes.groupby("property")["all"].first()
        return shares

    def first_tokens(self) -> list[str]:
        """List the tokens of the first question's rationale."""
        return [self.student.decode([i]) for i in self.by_method[self.methods[0]][0].ids]

    def first_scores(self, count: int | None = None) -> dict[str, np.ndarray]:
        """Give the first question's scores by each of the first `count` methods.

        A token that a method leaves out has 0.
        """
        found = {method: self.by_method[method][0].scores for method in self.methods[:count]}
        return {method: np.where(s > LEFT_OUT, s, 0) for method, s in found.items()}

    def top_tokens(self) -> dict[str, str]:
        """Find the first question's token that speaks most for the label, by method."""
        tokens = self.first_tokens()
        return {m: tokens[int(np.argmax(s))].strip() for m, s in self.first_scores().items()}


def _label_table(student: Student, examples: list[Example], label_format: str) -> pd.DataFrame:
    """Tabulate log p(label) with no rationale: columns id, logp (nats)."""
    logps = movement.label_logps(student, examples, label_format)
    return pd.DataFrame({"id": [e.id for e in examples], "logp": logps})
