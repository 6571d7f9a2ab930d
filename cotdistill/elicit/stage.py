"""What notebook 01 does: read the questions, ask the teacher, judge and filter its rationales."""

import functools
import json
from dataclasses import dataclass, field

import pandas as pd

from cotdistill.elicit.local import time_shared_prefix
from cotdistill.elicit.prompts import Demonstration, demonstrations_path, load_demonstrations
from cotdistill.elicit.quality import compare_teachers, filter_rationales, quality_card
from cotdistill.elicit.records import count_usable
from cotdistill.elicit.settings import (
    Connection,
    Sampling,
    TeacherSettings,
    TeacherSource,
    parse_extra_body,
)
from cotdistill.elicit.teacher import from_teacher
from cotdistill.errors import DataError
from cotdistill.examples import Dataset, Example, Rationale, repeats_note
from cotdistill.files import sha256, write_json
from cotdistill.parameters import check_worlds
from cotdistill.paths import study_dir
from cotdistill.sources import data_card, load_rationales, write_rationales
from cotdistill.study import content_fingerprints, read_data, resolve, teacher_student

WORLD = ("n_train", "n_test", "rationale_only", "label_seen", "two_step", "n_options")
WHERE_SET = ("n_core", "mentions", "concepts")  # of a world; 0: the world's own default


@dataclass(frozen=True)
class Elicitation:
    """Notebook 01's parameters, and what follows from them, each read or asked once.

    study           name of the study
    spec            what data.json says of the questions; rationales are added by `save`
    teacher         gold, recorded, transformers or openai
    source          where rationales come from, with paths and models as the study names them
    modes           how the teacher is asked; the first one's rationales go on
    settings        of the first mode
    demonstrations  path of the few-shot file; empty: that of the dataset
    size            ask about the first so many training questions (0: all)
    filters         arguments of `filter_rationales`
    compare         paths of further recorded sets
    """

    study: str
    spec: dict
    teacher: str
    source: TeacherSource
    modes: tuple[str, ...]
    settings: TeacherSettings
    demonstrations: str = ""
    size: int = 0
    filters: dict = field(default_factory=dict)
    compare: tuple[str, ...] = ()

    @classmethod
    def from_parameters(cls, values: dict) -> "Elicitation":
        """Make the elicitation that notebook 01's parameters describe.

        values: parameters by name; other names, as in a notebook's globals(), are not looked at.
        Raises DataError for settings of a server that are out of range.
        """
        connection = Connection(
            values["concurrency"],
            values["request_timeout"],
            max_failed=values["max_failed"],
            extra_body=parse_extra_body(_without_empty(values["extra_body"])),
            leave_out=_without_empty(values["leave_out"]),
            token_limit=values["token_limit"],
        )
        sampling = Sampling(
            values["samples"],
            values["temperature"],
            values["top_p"],
            values["top_k"],
            values["max_teacher_tokens"],
            values["teacher_seed"],
        )
        return cls(
            study=values["study"],
            spec=_describe_data(values),
            teacher=values["teacher"],
            source=TeacherSource(
                values["rationales"],
                values["teacher_model"],
                values["base_url"],
                values["teacher_batch_size"],
                connection,
            ),
            modes=(values["mode"], *_without_empty(values["also_modes"])),
            settings=TeacherSettings(
                values["mode"],
                sampling=sampling,
                ask_again=_without_empty(values["ask_again"]),
            ),
            demonstrations=values["demonstrations"],
            size=values["elicit_size"],
            filters={
                "keep_agreeing": values["keep_agreeing"],
                "scrub_label": values["scrub_label"],
                "max_tokens": values["max_rationale_words"] or None,
            },
            compare=_without_empty(values["compare"]),
        )

    @functools.cached_property
    def data(self) -> Dataset:
        """The questions, with the rationales that come along with them."""
        return read_data(self.spec)

    @functools.cached_property
    def card(self) -> pd.DataFrame:
        """The data card: a row per split."""
        return data_card(self.data)

    @property
    def repeats(self) -> str:
        """One line on the questions that were left out because a later split has them too."""
        return f"questions {repeats_note(self.data) or 'in two splits: none'}"

    @property
    def questions(self) -> list[Example]:
        """The training questions that the teacher is asked about."""
        return self.data.train[: self.size or None]

    @functools.cached_property
    def shots(self) -> list[Demonstration]:
        """The demonstrations above every question."""
        default = demonstrations_path(self.spec["dataset"])
        return load_demonstrations(resolve(self.demonstrations) or default)

    @functools.cached_property
    def answers(self) -> dict[str, tuple[dict[str, Rationale], list[dict]]]:
        """Mode -> (rationales by id, records); asked for at the first look.

        Every record goes to teacher-<mode>.jsonl in the study's folder at once.
        """
        shots, model = self.shots, self.source.model
        if self.teacher == "transformers" and model:
            model = teacher_student(model)
        source = TeacherSource(
            resolve(self.source.recorded),
            model,
            self.source.base_url,
            self.source.batch_size,
            self.source.connection,
        )
        how = {"sampling": self.settings.sampling, "ask_again": self.settings.ask_again}
        return {
            mode: from_teacher(
                self.teacher,
                self.questions,
                self.data,
                study_dir(self.study) / f"teacher-{mode}.jsonl",
                demonstrations=shots,
                source=source,
                settings=TeacherSettings(mode, **how),
            )
            for mode in self.modes
        }

    @functools.cached_property
    def rationales(self) -> dict[str, Rationale]:
        """The first mode's rationales of training and validation questions, by id."""
        found, _ = self.answers[self.modes[0]]
        return {e.id: found[e.id] for e in self._pool if e.id in found}

    @property
    def _pool(self) -> list[Example]:
        return [*self.data.train, *self.data.validation]

    @property
    def usable(self) -> str:
        """One line: how many training questions have a usable rationale."""
        _, records = self.answers[self.modes[0]]
        return count_usable(self.rationales, records, self.data.train, self.questions)

    @property
    def example(self) -> tuple[Example, str] | None:
        """The first question with its rationale; None where the data are not embedded.

        Other datasets' texts stay out of executed notebooks.
        """
        if not self.spec["dataset"].startswith("microworld"):
            return None
        found = (e for e in self.data.train if e.id in self.rationales)
        return next(((e, self.rationales[e.id].text) for e in found), None)

    @functools.cached_property
    def cards(self) -> dict[str, pd.Series]:
        """Quality cards by name: the teacher's in each mode, then the sets it is compared with."""
        questions, recorded = self.questions, _stem(self.source.recorded)
        name = self.source.model or recorded or self.teacher
        own = self._of_questions(self.rationales)
        cards = {
            f"{name}, {mode}" if rows else name: quality_card(rows or own, questions, self.shots)
            for mode, (_, rows) in self.answers.items()
        }
        for path in self.compare:
            other = load_rationales(resolve(path), self.data.explained)
            cards[_stem(path)] = quality_card(self._of_questions(other), questions, self.shots)
        return cards

    def _of_questions(self, rationales: dict[str, Rationale]) -> dict[str, Rationale]:
        return {e.id: rationales[e.id] for e in self.questions if e.id in rationales}

    @property
    def card_table(self) -> pd.DataFrame:
        """The quality cards side by side, a column per teacher."""
        return compare_teachers(self.cards)

    def time_prefix(self, count: int) -> dict:
        """Seconds with and without the shared few-shot prefix, over `count` questions.

        Empty where count is 0 or no local model is the teacher.
        """
        if not count or self.teacher != "transformers":
            return {}
        return time_shared_prefix(
            self.questions[:count],
            teacher_student(self.source.model),
            self.shots,
            mode=self.modes[0],
            batch_size=self.source.batch_size,
        )

    @functools.cached_property
    def _filtered(self) -> tuple[dict[str, Rationale], pd.DataFrame]:
        return filter_rationales(self.rationales, self._pool, **self.filters)

    @property
    def removed(self) -> pd.DataFrame:
        """What each filter removed."""
        return self._filtered[1]

    @property
    def explained(self) -> list[Example]:
        """The training questions that keep a rationale."""
        return [e for e in self.data.train if e.id in self._filtered[0]]

    def save(self) -> None:
        """Write rationales.jsonl, data.json, quality.json and data_card.csv for notebook 02.

        Raises DataError where the filters left no training question a rationale.
        """
        folder, (kept, removed) = study_dir(self.study), self._filtered
        if not self.explained:
            counts = ", ".join(
                f"{r.filter} removed {r.removed} of {r.before}"
                for r in removed.reset_index().itertuples()
            )
            raise DataError(
                f"no training question has a rationale left: {len(self.rationales)} were there, "
                f"{counts}; expected a milder filter"
            )
        write_rationales(kept, folder / "rationales.jsonl", self._pool)
        spec = self.spec | {
            "rationales": f"studies/{self.study}/rationales.jsonl",
            "rationales_print": sha256(folder / "rationales.jsonl")[:16],
            "content": content_fingerprints(self.data, [self.source.recorded]),
        }
        write_json(folder / "data.json", spec)
        cards = {name: json.loads(card.to_json()) for name, card in self.cards.items()}
        write_json(folder / "quality.json", cards)
        self.card.to_csv(folder / "data_card.csv")


def _describe_data(values: dict) -> dict:
    """Say in data.json's terms which questions notebook 01's parameters name.

    Raises DataError where each seed is to have a world of its own and cannot.
    """
    check_worlds(values["worlds"], values["dataset"], values["seeds"], values["data_seed"])
    world = {name: values[name] for name in WORLD}
    world |= {name: values[name] for name in WHERE_SET if values[name]}
    spec = {
        name: values[name] for name in ("dataset", "data_dir", "validation_size", "data_seed")
    } | {
        "microworld": world if values["dataset"].startswith("microworld") else None,
        "rationales": "",
        "rationales_print": "",
    }
    if values["worlds"] == "shared":
        return spec
    if values["elicit_size"]:
        raise DataError(
            f"elicit_size is {values['elicit_size']} and worlds is per_seed; expected 0: each "
            "world's training questions are all asked"
        )
    return spec | {"worlds": list(values["seeds"])}


def _without_empty(items: list[str]) -> tuple[str, ...]:
    return tuple(filter(None, items))


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".jsonl")
