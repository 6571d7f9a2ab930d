"""Several runs side by side on one GPU: the same runs as the sequential path's."""

from pathlib import Path

import pytest
from test_golden import write_data_json

from cotdistill import cli
from cotdistill.errors import DataError
from cotdistill.files import read_json
from cotdistill.parameters import all_values, load_study
from cotdistill.runs import side_by_side
from cotdistill.runs.grid import plan_rows
from cotdistill.study import Study

PUBLISHED = Path(__file__).resolve().parents[1] / "notebooks" / "executed" / "quick"


def test_its_runs_have_the_keys_of_the_sequential_path(store):
    """The plans of the published study were made by the notebooks, one run after the other."""
    write_data_json("quick")
    study = side_by_side.gpu_study("quick")
    plans = read_json(PUBLISHED / "study.json", "git")["stages"]
    for stage, arms in side_by_side.grid_arms(all_values(load_study("quick"))).items():
        rows = plan_rows(study, arms)
        found = [(row["label"], row["seed"], row["key"]) for row in rows]
        assert found == [(row["label"], row["seed"], row["key"]) for row in plans[stage]]
    same = Study.from_yaml("quick").replace(device=study.setting.device)
    assert study.setting == same.setting


def test_every_arm_comes_with_its_loss_and_stage(monkeypatch):
    arms = side_by_side.grid_arms(all_values(load_study("openbookqa")))
    labels = {stage: [arm.label for arm in made] for stage, made in arms.items()}
    assert labels["train"][:4] == ["label_only", "post_cot", "pre_cot", "zero_shot"]
    assert "pre_cot[loss=token_mean]" in labels["train"]
    assert labels["shuffle"][-2:] == ["post_cot_swapped", "post_cot_filler"]


def test_runs_at_once_share_the_gpu(monkeypatch, store):
    """What is asked of Ray, without Ray: its part of a GPU, and the two stages in their order."""
    asked = []

    class Stub:
        setting = type("S", (), {"device": "cuda", "seeds": [0]})()
        check = save = lambda self, *_: None

    def run_grid(study, arms, stage, **options):
        asked.append((stage, options["backend"], options["keep_weights"]))

    monkeypatch.setattr(side_by_side, "gpu_study", lambda name: Stub())
    monkeypatch.setattr(side_by_side, "run_grid", run_grid)
    for name in ("COTDISTILL_GPUS_PER_RUN", "COTDISTILL_CPUS_PER_RUN"):
        monkeypatch.setenv(name, "")
    said = []
    side_by_side.run_side_by_side("quick", 4, say=lambda line, **_: said.append(line))
    assert asked == [("train", "ray", (("pre_cot", 0),)), ("shuffle", "ray", ())]
    assert side_by_side.os.environ["COTDISTILL_GPUS_PER_RUN"] == "0.2500"
    assert "make reproduce STUDY=quick" in said[-1]
    with pytest.raises(DataError, match="AT_ONCE is 0"):
        side_by_side.run_side_by_side("quick", 0)


def test_the_command(monkeypatch, capsys):
    assert cli.main(["grid", "quick", "--at-once", "0"]) == 1
    assert "error: AT_ONCE is 0; expected" in capsys.readouterr().err
