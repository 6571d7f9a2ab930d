"""Several attribution methods on the same questions: their scores, and the checks of them."""

import functools
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cotdistill.attribution import checks
from cotdistill.attribution.score import Attribution
from cotdistill.attribution.words import selected_words, selection_table
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.runs.scores import attributions, load_or_make_scores, load_or_make_table
from cotdistill.students import Student
from cotdistill.study import Study


@dataclass(frozen=True)
class MethodScores:
    """What attribution methods say of the rationales of some questions.

    attributor  the student that attributes, and the fingerprint of its weights
                (`attributing_student`)
    examples    the questions
    methods     names of attribution methods
    options     of every method: n_steps, baseline, seed
    selections  tokens chosen by hand, for the method "human"

    Scores and slow tables are kept in the study's folder. Intervals are bootstrapped in the order
    in which tables are asked for, from one seed.
    """

    study: Study
    attributor: tuple[Student, str]
    examples: list[Example]
    methods: list[str]
    options: dict
    selections: dict | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def student(self) -> Student:
        """The student that attributes."""
        return self.attributor[0]

    @property
    def _options(self) -> dict:
        return {"label_format": self.study.setting.label_format} | self.options

    def _attributions(self, method: str) -> list[Attribution]:
        chosen = {"selections": self.selections} if method == "human" else {}
        return attributions(
            self.study, *self.attributor, method, self.examples, **chosen, **self._options
        )

    @functools.cached_property
    def by_method(self) -> dict[str, list[Attribution]]:
        """Method -> its attributions, in the order of the examples."""
        if not self.methods:
            raise DataError("check_methods is empty; expected at least one method")
        return {method: self._attributions(method) for method in self.methods}

    def scores(self) -> dict[tuple[str, int], tuple]:
        """Load or make all scores, as `run_grid` takes them.

        (method, seed) -> (scores by id, their fingerprint).
        """
        found = {
            method: load_or_make_scores(
                self.study,
                *self.attributor,
                method,
                self.examples,
                selections=self.selections,
                **self._options,
            )
            for method in self.methods
        }
        return {(m, seed): found[m] for m in self.methods for seed in self.study.setting.seeds}

    def gaps(self) -> pd.DataFrame:
        """Measure how far integrated gradients are from adding up (`checks.completeness`).

        Empty where they are not among the methods.
        """
        if "integrated_gradients" not in self.methods:
            return pd.DataFrame()
        return checks.completeness(self._attributions("integrated_gradients"))

    def _table(self, name: str, function, *given, **named) -> pd.DataFrame:
        """Load or make a slow table, kept under a fingerprint of all that it depends on."""
        rationales = self.study.data.rationales
        about = [
            self.attributor[1],
            str(self.student.model.dtype),
            [[e, rationales[e.id].text] for e in self.examples],
            self.methods,
            self.selections if "human" in self.methods else None,
            self._options,
        ]
        named |= {"label_format": self.study.setting.label_format}
        named |= {"baseline": self.options["baseline"]}
        return load_or_make_table(self.study, name, about, function, self.student, *given, **named)

    @functools.cached_property
    def _faithfulness(self) -> pd.DataFrame:
        return self._table(
            "faithfulness",
            checks.faithfulness_all,
            self.examples,
            self.study.data.rationales,
            self.by_method,
        )

    def faithfulness(self) -> pd.DataFrame:
        """Average comprehensiveness and sufficiency of each method, in nats, with intervals."""
        measures = ["comprehensiveness", "sufficiency"]
        return checks.mean_intervals(self._faithfulness, ["method"], measures, self.rng)

    def deletion(self) -> pd.DataFrame:
        """Average log p(label) after erasing a method's first tokens, by fraction.

        With intervals.
        """
        by = ["method", "fraction"]
        return checks.mean_intervals(self._faithfulness, by, ["deletion"], self.rng)

    def agreement(self, amount: float) -> pd.DataFrame:
        """Measure how alike each two methods rank tokens; `amount`: the size of the top."""
        return checks.agreement(self.by_method, amount, self.rng)

    def randomised(self, count: int) -> pd.DataFrame:
        """Correlate the ranks of integrated gradients with those of redrawn weights.

        count: on the first so many questions.
        """
        return self._table(
            "randomised",
            checks.randomisation_check,
            self.examples[:count],
            self.study.data.rationales,
            "integrated_gradients",
            n_steps=self.options["n_steps"],
        )[["id", "rho"]]

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
        """Give the first question's scores by each of the first `count` methods."""
        return {method: self.by_method[method][0].scores for method in self.methods[:count]}

    def top_tokens(self) -> dict[str, str]:
        """Find the first question's token that speaks most for the label, by method."""
        tokens = self.first_tokens()
        return {m: tokens[int(np.argmax(s))].strip() for m, s in self.first_scores().items()}
