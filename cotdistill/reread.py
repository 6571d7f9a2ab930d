"""Execute notebooks 03, 04 and 06 of a published study from its published runs alone."""

import os
import tempfile
from pathlib import Path

from cotdistill.execute import run_stages
from cotdistill.runs.published import FILE
from cotdistill.runs.record import lay_out, read_record

STAGES = ("evaluate", "shuffle", "figures")  # stage attribute needs the student and rationales


def reread(values: dict, executed: Path) -> list[str]:
    """Execute the notebooks of a published study from its published runs alone.

    values: the study's parameters. Notebook 05 is left out: attribution needs the student and its
    rationales; the accuracies of its arms are in notebook 06. Returns the stages executed.
    """
    name, before = values["study"], os.environ.get("COTDISTILL_ARTIFACTS")
    read_record(name)
    with tempfile.TemporaryDirectory() as store:
        os.environ["COTDISTILL_ARTIFACTS"] = store
        try:
            made = lay_out(name, values.get("pooled_studies", []))
            needs = {"evaluate": "train", "shuffle": "shuffle", "figures": "train"}
            stages = [stage for stage in STAGES if needs[stage] in made]
            run_stages(stages, values, executed)
        finally:
            del os.environ["COTDISTILL_ARTIFACTS"]
            if before is not None:
                os.environ["COTDISTILL_ARTIFACTS"] = before
    print(
        f"{', '.join(stages)}: executed from {name}/{FILE} alone, into "
        f"{os.path.relpath(executed / name)}. Notebook 05 is left out: "
        "attribution needs the student and the rationales; its arms are judged in notebook 06"
    )
    return stages
