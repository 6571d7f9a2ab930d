"""Published runs: what the file holds, and that it comes back as it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies import make_study

from cotdistill import cli, summaries
from cotdistill.arms import Arm
from cotdistill.errors import DataError
from cotdistill.paths import artifacts, evidence_folder
from cotdistill.rationale_quality import RationaleSet
from cotdistill.runs import published, record
from cotdistill.runs.grid import run_grid
from cotdistill.runs.published import (
    fetch_study,
    pack_predictions,
    publish_runs,
    read_published,
    seal_row,
    write_published,
)
from cotdistill.runs.results import load_history, load_predictions
from cotdistill.runs.set_runs import run_sets
from cotdistill.runs.store import load_metrics
from cotdistill.runs.verify import compare_run, judge_rounding, verify
from cotdistill.study import Study

ARMS = [Arm("zero_shot"), Arm("label_only"), Arm("pre_cot"), Arm("post_cot")]


@pytest.fixture
def study(store, tmp_path, monkeypatch):
    """A study in a store and a repository of its own, so that no test publishes here."""
    monkeypatch.setenv("COTDISTILL_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("COTDISTILL_FROM_SCRATCH", raising=False)
    return make_study(seeds=[0, 1])


@pytest.fixture(scope="module")
def whole_grid(tmp_path_factory):
    """The runs of the study's whole first stage, made once."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTDISTILL_ARTIFACTS", str(place / "artifacts"))
        patch.setenv("COTDISTILL_ROOT", str(place / "root"))
        run_grid(make_study(seeds=[0, 1]), ARMS, "train")
    return place / "artifacts"


@pytest.fixture
def file(study, whole_grid):
    """The published file of the study's whole first stage."""
    shutil.copytree(whole_grid, artifacts(), dirs_exist_ok=True)
    return publish_runs("t")


def clear_store():
    shutil.rmtree(artifacts() / "runs")


def read_run(folder: Path) -> tuple:
    """A run's config, metrics, history, provenance, and predictions without texts."""
    texts = {name: (folder / name).read_text() for name in ("history.csv",)}
    parts = {n: json.loads((folder / f"{n}.json").read_text()) for n in ("config", "provenance")}
    metrics = load_metrics(folder.name)
    numbers = {k: v for k, v in metrics.items() if k not in ("files", "seal")}
    lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    told = [{k: v for k, v in p.items() if k not in ("text", "rationale")} for p in lines]
    return texts, parts, numbers, told


def test_runs_come_back_as_they_were(study, file, capsys):
    folders = [p for p in (artifacts() / "runs").iterdir() if p.is_dir()]
    before = {folder.name: read_run(folder) for folder in folders}
    table, history = load_predictions(study, ["train"]), load_history(study, ["train"])
    clear_store()
    capsys.readouterr()
    results = run_grid(study, ARMS, "train")
    said = capsys.readouterr().out
    assert "7 of 7 runs come from the published file t/runs.parquet" in said
    assert said.count("from the store") == 7 and "epoch" not in said
    assert {name: read_run(artifacts() / "runs" / name) for name in before} == before
    assert len(results) == 7 and not list((artifacts() / "runs").glob("*.work"))
    again = load_predictions(study, ["train"])
    assert again["text"].isna().all() and again["rationale"].isna().all()
    assert table["text"].notna().all()
    texts = ["text", "rationale"]
    pd.testing.assert_frame_equal(
        again.drop(columns=texts).sort_index(axis=1), table.drop(columns=texts).sort_index(axis=1)
    )
    pd.testing.assert_frame_equal(load_history(study, ["train"]), history)


def test_a_grid_trains_only_what_is_not_published(study, capsys):
    run_grid(study, ARMS[:2], "train", seeds=[0])
    publish_runs("t")
    clear_store()
    capsys.readouterr()
    run_grid(study, ARMS, "train", keep_weights=[("label_only", 0)])
    said = capsys.readouterr().out
    # zero_shot came; label_only of seed 0 must keep its weights, which no published file holds
    assert "1 of 6 runs come from" in said and said.count("from the store") == 1
    assert "label_only seed 0, epoch 1/1" in said
    publish_runs("t")
    assert "7 runs, 5 of them new" in capsys.readouterr().out


def test_a_changed_setting_finds_no_published_run(study, file, capsys):
    clear_store()
    capsys.readouterr()
    run_grid(study.replace(train={"lr": 0.5}), [Arm("label_only")], "train")
    assert "published" not in capsys.readouterr().out


def test_from_scratch_takes_no_published_run(study, file, monkeypatch, capsys):
    clear_store()
    monkeypatch.setenv("COTDISTILL_FROM_SCRATCH", "1")
    capsys.readouterr()
    run_grid(study, ARMS[:2], "train", seeds=[0])
    said = capsys.readouterr().out
    assert "published" not in said and "from the store" not in said
    monkeypatch.setenv("COTDISTILL_FROM_SCRATCH", "yes")
    with pytest.raises(DataError, match="FROM_SCRATCH is 'yes'; expected 0, 1 or nothing"):
        run_grid(study, ARMS, "train")


def test_nothing_published_is_lost_and_an_unchanged_file_stays(study, file, capsys):
    before, written = read_published(file), file.stat().st_mtime_ns
    clear_store()
    publish_runs("t")
    assert read_published(file) == before and file.stat().st_mtime_ns == written
    run_grid(study, ARMS[:1], "train")  # a plan of one arm
    publish_runs("t")
    assert {r["key"] for r in read_published(file)} == {r["key"] for r in before}


def test_runs_of_open_questions_are_published_too(study, file, capsys):
    """A run on another set of rationales is in the plan of stage quality alone."""
    questions = study.data.train
    own = RationaleSet("own", study.data.rationales)
    texts = {name: replace(one, text=one.text.upper()) for name, one in own.rationales.items()}
    wrong = RationaleSet("wrong", texts)
    before = run_sets(study, [own, wrong], questions, ["post_cot"])
    capsys.readouterr()
    publish_runs("t")
    assert "9 runs, 2 of them new" in capsys.readouterr().out
    used = {use["label"] for row in read_published(file) for use in row["rows"]}
    assert {"post_cot: own", "post_cot: wrong", "post_cot"} <= used
    clear_store()
    again = run_sets(study, [own, wrong], questions, ["post_cot"])
    assert "6 of 6 runs come from the published file" in capsys.readouterr().out
    pd.testing.assert_series_equal(again["choice"], before["choice"])


def test_a_run_in_work_is_left_out_and_said(study, capsys):
    run_grid(study, ARMS[:2], "train")
    key = json.loads((study.folder / "train.json").read_text())[1]["key"]
    run = artifacts() / "runs" / key
    run.rename(run.with_name(f"{key}.work"))
    (run.with_name(f"{key}.work") / "metrics.json").unlink()
    capsys.readouterr()
    publish_runs("t")
    said = capsys.readouterr().out
    assert "2 runs" in said and "1 planned runs are not whole yet and left out" in said
    assert run.with_name(f"{key}.work").is_dir()


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "another file", "altered"])
def test_a_damaged_file_is_named_in_one_line(study, file, how):
    content = file.read_bytes()
    if how == "altered":
        rows = read_published(file)
        rows[0]["scores"][0][0] += 1
        write_published(file, rows)
    else:
        at = len(content) // 3
        file.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "flipped": content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :],
                "empty": b"",
                "another file": b"PAR1 and no more than this PAR1",
            }[how]
        )
    spoilt = file.read_bytes()
    clear_store()
    for use in (lambda: run_grid(study, ARMS, "train"), lambda: publish_runs("t")):
        with pytest.raises(DataError, match=r"t/runs\.parquet: damaged \(.*FROM_SCRATCH=1") as e:
            use()
        assert "\n" not in str(e.value)
    assert file.read_bytes() == spoilt


def test_the_file_holds_no_text(study, file):
    """No question, option, rationale or answer is in it, neither as stored nor unpacked."""
    import pyarrow.parquet as pq

    held = json.dumps(pq.read_table(file).to_pylist())
    data = study.data
    texts = [t for e in [*data.train, *data.test] for t in (e.question, *e.choices)]
    texts += [r.text for r in data.rationales.values()]
    lines = (artifacts() / "runs").glob("*/predictions.jsonl")
    told = [json.loads(line) for path in lines for line in path.read_text().splitlines()]
    texts += [t for p in told for t in (p["text"], p["rationale"])]
    names = {e.id for e in data.test} | set(pq.read_schema(file).names)  # "gold" is an option too
    found = [t for t in texts if len(t) > 3 and t in held and not any(t in name for name in names)]
    assert len(texts) > 100 and not found


def test_later_fields_are_kept_and_unknown_ones_refused(tmp_path):
    plain = dict(id="a", gold=0, generated=None, scores=[-1.5, -2.000001], choice=0, tokens=3)
    plain |= dict(cut_off=False, text="t", rationale="r")
    later = plain | dict(rationale_cut_off=True, scores_direct=[-0.25, -3.0])
    for one in (plain, later):
        packed = pack_predictions([one, one], tmp_path)
        back = published.unpack_predictions(packed)
        assert back == [{k: v for k, v in one.items() if k not in ("text", "rationale")}] * 2
    with pytest.raises(DataError, match="field 'words'; expected fields"):
        pack_predictions([plain | {"words": "x"}], tmp_path)
    with pytest.raises(DataError, match="no finite number"):
        pack_predictions([plain | {"scores": [float("-inf"), 0.0]}], tmp_path)


def test_a_hundred_runs_are_under_ten_megabytes(study, file):
    """1,221 questions with five options, as CommonsenseQA has; half of the runs are pre_cot."""
    rng, rows = np.random.default_rng(0), []
    n, base = 1221, read_published(file)[0]
    ids = [f"{value:032x}" for value in rng.integers(0, 2**62, n)]
    micro = lambda: (-rng.gamma(2.0, 5e6, (n, 5))).astype(int).tolist()
    whole = lambda high: rng.integers(0, high, n).tolist()
    for number in range(100):
        direct = dict(scores_direct=micro()) if number % 2 else {}
        rows.append(
            base
            | dict(id=ids, gold=whole(5), generated=whole(5), choice=whole(5), tokens=whole(128))
            | dict(cut_off=[v == 0 for v in whole(9)], scores=micro(), key=f"{number:064x}")
            | direct
        )
    write_published(file.with_name("big.parquet"), [seal_row(row) for row in rows])
    assert file.with_name("big.parquet").stat().st_size < 10e6


def test_fetching_a_whole_study(study, file, capsys):
    clear_store()
    assert fetch_study("t", lambda *a, **k: None) == 7
    assert cli.main(["fetch-runs", "t"]) == 0
    assert "0 of 7 published runs of t came into the store" in capsys.readouterr().out
    assert cli.main(["fetch-runs", "other"]) == 1
    assert "study 'other': no published runs" in capsys.readouterr().err
    assert cli.main(["publish-runs", "other"]) == 1
    assert "no run is whole yet" in capsys.readouterr().err
    assert not evidence_folder("other").exists()


def publish_with_record(study):
    study.save()
    publish_runs("t")
    record.write_record("t", evidence_folder("t"))


def test_verify_passes_and_fails_where_a_score_was_altered(study, capsys):
    run_grid(study, ARMS[:2], "train")
    publish_with_record(study)
    verify(study, 3)
    said = capsys.readouterr().out
    assert said.count("passes, every answer and score equals the published one") == 3
    rows = read_published(evidence_folder("t") / published.FILE)
    for row in rows:
        row["scores"][0][0] += 1
    write_published(evidence_folder("t") / published.FILE, [seal_row(row) for row in rows])
    with pytest.raises(DataError, match="2 of 2 runs are not as published"):
        verify(study, 2)
    said = capsys.readouterr().out
    assert "FAILS (same hardware and versions): 100.0 % of choices agree" in said
    for row in rows:  # on another machine a last digit is rounding
        row["provenance"]["processor"] = "another"
    write_published(evidence_folder("t") / published.FILE, [seal_row(row) for row in rows])
    verify(study, 1)
    assert "passes (other processor): 100.0 % of choices agree" in capsys.readouterr().out
    with pytest.raises(DataError, match="published with other training than here"):
        verify(study.replace(train={"lr": 0.5}), 3)


def test_rounding_may_move_accuracy_by_chance_only():
    n = 100
    base = dict(id=[str(i) for i in range(n)], gold=[0] * n, scores=[[0, -1]] * n)
    right = base | dict(choice=[0] * n)
    few = base | dict(choice=[1] * 3 + [0] * (n - 3))
    many = base | dict(choice=[1] * 9 + [0] * (n - 9))
    found = compare_run(right, few)
    assert found["agreement"] == 0.97 and np.isclose(found["accuracy"], -0.03)
    assert np.isclose(found["limit"], 1.96 * 3**0.5 / n) and judge_rounding(found, False)
    assert not judge_rounding(found, True) and not judge_rounding(compare_run(right, many), False)


def test_verify_needs_published_runs(study, capsys):
    assert cli.main(["verify", "other"]) == 1
    assert "study 'other': no published runs" in capsys.readouterr().err


def test_a_record_serves_the_readers_without_data_or_student(study, monkeypatch):
    """Tables of notebooks 03, 04 and 06 from the published folder equal those from the data."""
    shuffled = [Arm("post_cot", "shuffled", unit="token")]
    run_grid(study, ARMS, "train")
    run_grid(study, shuffled, "shuffle")
    publish_with_record(study)

    def tables(this_study):
        predictions = load_predictions(this_study, ["train", "shuffle"])
        facts = summaries.accuracy_by_fact(this_study, predictions)
        texts = ["text", "rationale", "question", "options"]
        numbers = predictions.drop(columns=texts).sort_index(axis=1)
        return this_study.chance, this_study.note, facts.table, numbers

    whole, results = tables(study), run_grid(study, shuffled, "shuffle")
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(artifacts().with_name("elsewhere")))
    monkeypatch.setattr("cotdistill.study.read_data", None)
    monkeypatch.setattr("cotdistill.study.shared_student", None)
    assert record.lay_out("t") == ["train", "shuffle"]
    again = Study.load("t")
    read = tables(again)
    assert again.is_record and whole[:2] == read[:2]
    for one, other in zip(whole[2:], read[2:], strict=True):
        pd.testing.assert_frame_equal(one, other)
    again.check_offsets()
    assert summaries.corrupted_targets(again, shuffled).empty
    pd.testing.assert_frame_equal(run_grid(again, shuffled, "shuffle"), results)
    held = (evidence_folder("t") / record.RECORD).read_text()
    assert not any(e.question in held for e in study.data.test)


def test_verify_makes_the_questions_of_a_fresh_clone(store, monkeypatch):
    called = []
    monkeypatch.setattr("cotdistill.runs.record.read_record", lambda name: {})
    monkeypatch.setattr("cotdistill.execute.run_study", lambda *given: called.append(given[1]))
    monkeypatch.setattr("cotdistill.runs.verify.verify", lambda *given: called.append(given[1:]))
    monkeypatch.setattr(Study, "from_yaml", lambda name: name)
    assert cli.main(["verify", "smoke", "--runs", "1"]) == 0
    assert called == [["elicit"], (1, 0)]
