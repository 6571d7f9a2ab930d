"""Open the study whose student and questions the lab uses, whether or not it has been run."""

from pathlib import Path

from cotdistill.elicit.stage import Elicitation
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.parameters import load_study, notebook_parameters
from cotdistill.paths import enter_study, root, study_dir
from cotdistill.readings import lab as readings
from cotdistill.study import Study, read_data

FALLBACK = "smoke"


def open_study(name: str) -> tuple[Study, str]:
    """Open a study, and say in one sentence where its student and questions come from.

    A study that was run is loaded as it was. One that was not is set up from its YAML, as notebooks
    01 and 02 would: its runs get the same keys. Where that is impossible (no package, no network)
    the smoke study serves, if it was run. Raises DataError where it was not.
    """
    try:
        study, was_run = load_or_plan(name)
        _ = study.student, study.data
        return study, readings.study_opened(name, was_run)
    except DataError as error:
        if name == FALLBACK or not (study_dir(FALLBACK) / "base.json").is_file():
            raise
        return Study.load(FALLBACK), readings.study_replaced(name, FALLBACK, str(error))


def load_or_plan(name: str) -> tuple[Study, bool]:
    """Load a study that was run, or plan it from its YAML; also say whether it was run.

    name: of a study in params/ or in artifacts/, or the path of a YAML.
    """
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    if (study_dir(stem) / "base.json").is_file():
        return Study.load(stem), True
    if not (study_dir(stem) / "data.json").is_file():
        plan_data(name, stem)
    return Study.from_yaml(name), False


def plan_data(name: str, stem: str) -> None:
    """Write a study's data.json, as notebook 01 does, where its rationales need no teacher.

    Raises DataError where a teacher would have to be asked.
    """
    enter_study(name)
    defaults = notebook_parameters(root() / "notebooks" / "01_elicit.ipynb")
    values = defaults | load_study(name) | {"study": stem}
    if values["teacher"] not in ("gold", "recorded"):
        raise DataError(
            f"study '{stem}': its rationales come from teacher '{values['teacher']}' and were not "
            f"asked for yet; expected `make elicit STUDY={name}` first"
        )
    Elicitation.from_parameters(values).save()


def list_rationales(study: Study) -> dict[str, Rationale]:
    """Return the study's rationales, and those that the data bring along for other questions."""
    own = read_data(study.setting.data | {"rationales": ""}).rationales
    return own | study.data.rationales


def list_questions(
    study: Study, rationales: dict[str, Rationale], limit: int = 200
) -> dict[str, Example]:
    """Return the questions that have a rationale, by id: test questions first, then training ones.

    At most `limit` of each. Test questions come first because no student was trained on them.
    Raises DataError where no question has a rationale.
    """
    usable, _ = study.usable_questions()
    test = [e for e in study.test_questions() if has_text(rationales, e)]
    found = {e.id: e for e in [*test[:limit], *usable[:limit]]}
    if not found:
        raise DataError(
            f"none of the {len(study.data.train)} training questions has a rationale; "
            "expected `rationales`, a JSONL file of them"
        )
    return found


def has_text(rationales: dict[str, Rationale], example: Example) -> bool:
    """Say whether a question has a rationale that is not empty."""
    return example.id in rationales and bool(rationales[example.id].text.strip())


def find_questions(questions: dict[str, Example], words: str) -> list[str]:
    """Return the ids of the questions that hold all of the words, in any order, upper case or not.

    Looked for in the question, its options and its id; no word finds all.
    """
    wanted = words.casefold().split()
    return [
        example.id
        for example in questions.values()
        if all(
            word in " ".join((example.question, *example.choices, example.id)).casefold()
            for word in wanted
        )
    ]
