"""Get rationales out of a teacher: ask, record every answer once, and judge how good they are.

A teacher is a local model (`elicit_transformers`) or any server that speaks the OpenAI protocol
(`elicit_openai`: vLLM, llama.cpp, a hosted Mistral). Recorded sets are read by
`sources.load_rationales`; gold ones come with the dataset.

Demonstrations are plain text, `demonstrations/<dataset>.txt` or a file of your own. Lines that
start with `#` are skipped, an empty line separates blocks, and a block is

    Question: one line
    Options:
    (A) first option
    (B) second option
    Reason: one line, the rationale
    Answer: (B)

There are two modes. `blind`: question and options; the teacher reasons and then answers.
`label_conditioned`: a line "Correct answer: (B) ..." comes before the cue; the teacher explains it
and closes with the answer that it has reached. A completion is the same in both: "
<rationale>\\nAnswer: (B)", ended by "\\nQuestion:", by the end token, or cut off.

Answers go to an append-only JSONL, one record a line, and are never asked again at the same
settings. Beside it, `<name>.prefixes.json` holds the few-shot prefixes by hash, so that
`rebuild_prompt(record, path)` gives the exact prompt.
"""

from pathlib import Path

from cotdistill.elicit.local import elicit_transformers
from cotdistill.elicit.prompts import MODES, Demonstration
from cotdistill.elicit.quality import choose_rationales
from cotdistill.elicit.server import elicit_openai
from cotdistill.elicit.settings import (
    DEFAULT_SETTINGS,
    DEFAULT_SOURCE,
    TeacherSettings,
    TeacherSource,
)
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.sources import load_rationales


def from_teacher(
    teacher: str,
    examples: list[Example],
    data,
    out_path: str | Path,
    *,
    demonstrations: list[Demonstration],
    source: TeacherSource = DEFAULT_SOURCE,
    settings: TeacherSettings = DEFAULT_SETTINGS,
) -> tuple[dict[str, Rationale], list[dict]]:
    """Get one rationale per question from any teacher, as (rationales by id, records).

    gold: what the data bring along (`data.rationales`). recorded: a JSONL file. transformers: a
    local model, asked; it may be a Student already. openai: a model at the server `base_url`,
    asked. There are no records where nothing was asked. Raises DataError for an unknown teacher and
    for one that lacks its file, model or address.
    """
    if settings.mode not in MODES:
        raise DataError(f"mode '{settings.mode}'; expected one of {', '.join(MODES)}")
    _check_source(teacher, data, source)
    if teacher == "gold":
        return dict(data.rationales), []
    if teacher == "recorded":
        return load_rationales(source.recorded, data.explained), []
    if any(e.is_free for e in examples):
        raise DataError(
            f"teacher '{teacher}' is asked about options, and question '{examples[0].id}' has a "
            "free answer; expected teacher gold or recorded, or questions with `choices`"
        )
    how = {"demonstrations": demonstrations, "settings": settings}
    if teacher == "transformers":
        records = elicit_transformers(
            examples, source.model, out_path, batch_size=source.batch_size, **how
        )
    else:
        name, _, revision = source.model.partition("@")
        records = elicit_openai(
            examples,
            out_path,
            model=name,
            revision=revision,
            base_url=source.base_url,
            connection=source.connection,
            **how,
        )
    return choose_rationales(records, examples), records


def _check_source(teacher: str, data, source: TeacherSource) -> None:
    """Raise DataError unless `source` names all that the teacher needs, and no more."""
    needs = {
        "gold": data.rationales,
        "recorded": source.recorded,
        "transformers": source.model,
        "openai": source.model and source.base_url,
    }
    names = {
        "gold": "rationales in the data (microworld, or a `rationale` field)",
        "recorded": "`rationales`, a JSONL file",
        "transformers": "`teacher_model`",
        "openai": "`teacher_model` and `base_url`",
    }
    if teacher not in needs:
        raise DataError(f"teacher '{teacher}'; expected one of {', '.join(needs)}")
    if not needs[teacher]:
        raise DataError(f"teacher '{teacher}' has nothing to go by; expected {names[teacher]}")
    uses = {
        "gold": (),
        "recorded": ("rationales",),
        "transformers": ("teacher_model",),
        "openai": ("teacher_model", "base_url"),
    }
    given = {
        "rationales": source.recorded,
        "teacher_model": source.model,
        "base_url": source.base_url,
    }
    for name, value in given.items():
        if value and name not in uses[teacher]:
            readers = " or ".join(t for t in uses if name in uses[t])
            raise DataError(
                f"{name} is '{value}', but teacher is '{teacher}', which does not read it; "
                f"expected teacher {readers}, or {name} left empty"
            )
