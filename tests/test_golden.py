"""The run keys of the embedded studies, as they were when their published runs were made.

A key names a run in the store: a key that changes makes every stored run of its study unreachable,
and its published results no longer those of this code. So golden/run_keys.json may change only
together with `runs.one.STORE_VERSION`, or where a study's questions, student or setting were
changed on purpose; the commit then says which keys changed and why. `python tests/test_golden.py`
writes the file again. Arms that need attribution scores are left out: these depend on trained
weights.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from cotdistill.arms import Arm
from cotdistill.elicit.quality import filter_rationales
from cotdistill.elicit.stage import WHERE_SET
from cotdistill.files import sha256, write_json
from cotdistill.parameters import all_parameters, load_study
from cotdistill.paths import study_dir
from cotdistill.runs.one import make_config, run_key
from cotdistill.sources import write_rationales
from cotdistill.study import Study, content_fingerprints, read_data

FILE = Path(__file__).parent / "golden" / "run_keys.json"
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
WORLD = ("n_train", "n_test", "rationale_only", "label_seen", "two_step", "n_options")


def write_data_json(name: str) -> None:
    """Write the data.json of a study of microworld with its own rationales, as notebook 01 does."""
    values = {k: v for stage in all_parameters().values() for k, v in stage.items()}
    values |= load_study(name)
    shared = ("dataset", "data_dir", "validation_size", "data_seed")
    chosen = {key: values[key] for key in WORLD} | {k: values[k] for k in WHERE_SET if values[k]}
    spec = {key: values[key] for key in shared} | {
        "microworld": chosen,
        "rationales": "",
        "rationales_print": "",
    }
    data, path = read_data(spec), study_dir(name) / "rationales.jsonl"
    pool = [*data.train, *data.validation]
    rationales = {e.id: data.rationales[e.id] for e in pool if e.id in data.rationales}
    kept, _ = filter_rationales(
        rationales, pool, keep_agreeing=False, scrub_label=False, max_tokens=None
    )
    write_rationales(kept, path, pool)
    spec |= {
        "rationales": f"studies/{name}/rationales.jsonl",
        "rationales_print": sha256(path)[:16],
        "content": content_fingerprints(data, [""]),
    }
    write_json(study_dir(name) / "data.json", spec)


def compute_keys(name: str, labels: list[str]) -> dict[str, dict[str, str]]:
    """Arm label -> seed -> run key, of one study."""
    write_data_json(name)
    study = Study.from_yaml(name)
    return {
        label: {
            str(seed): run_key(make_config(study, Arm(**GOLDEN["arms"][label]), seed))
            for seed in study.setting.seeds
        }
        for label in labels
    }


@pytest.mark.parametrize("name", GOLDEN["keys"])
def test_run_keys_are_those_of_the_stored_runs(name, store):
    assert compute_keys(name, list(GOLDEN["keys"][name])) == GOLDEN["keys"][name]


def test_an_arm_of_the_golden_file_is_the_arm_of_its_label():
    for label, values in GOLDEN["arms"].items():
        assert Arm(**values).label == label and asdict(Arm(**values)).items() >= values.items()


if __name__ == "__main__":
    os.environ["COTDISTILL_ARTIFACTS"] = "/tmp/cotdistill-golden"
    keys = {name: compute_keys(name, list(rows)) for name, rows in GOLDEN["keys"].items()}
    text = json.dumps(GOLDEN | {"keys": keys}, indent=1, sort_keys=True)
    FILE.write_text(text + "\n", encoding="utf-8")
