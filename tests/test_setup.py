"""Pins, Makefile and repository: what the README promises about setting up."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_and_pyproject_carry_the_same_pins():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(d["pip"] for d in conda if isinstance(d, dict))
    assert pip == PROJECT["dependencies"] and all(re.fullmatch(r"[\w.-]+==[\w.]+", d) for d in pip)
    assert f"python{PROJECT['requires-python']}" in conda


def test_installed_versions_are_the_pinned_ones():
    from importlib.metadata import version

    wrong = {
        d: version(d.split("==")[0])
        for d in PROJECT["dependencies"]
        if version(d.split("==")[0]).split("+")[0] != d.split("==")[1]
    }
    assert not wrong


@pytest.mark.xdist_group("pins")
def test_tests_of_one_group_share_a_worker(request):
    """pytest 9.2.0 makes xdist 3.8.0 forget its groups (pytest-dev/pytest-xdist#1386).

    The smoke study was made once per worker.
    """
    assert request.node.nodeid.endswith("@pins") or not getattr(
        request.config.option, "loadgroup", False
    )


def test_the_cluster_extra_is_pinned_and_make_installs_it_where_it_is_needed():
    extra = PROJECT["optional-dependencies"]["cluster"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", d) for d in extra) and not set(extra) & set(
        PROJECT["dependencies"]
    )

    def steps(*words):
        return subprocess.run(
            ["make", "-n", "VENV=/nowhere", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert all(
        "/nowhere/cluster.txt" in steps(*w)
        for w in (["test"], ["reproduce", "BACKEND=ray"], ["train", "BACKEND=ray"])
    )
    assert not any(
        "/nowhere/cluster.txt" in steps(*w) for w in (["reproduce"], ["smoke"], ["train"])
    )


def test_only_publish_writes_where_the_evidence_lies():
    def steps(*words):
        dry = ["make", "-n", "VENV=/nowhere", *words]
        return subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "cotdistill.cli publish invented" in steps("publish", "STUDY=invented")
    targets = ("smoke", "reproduce", "train", "bench")
    assert not any("notebooks/executed" in steps(target) for target in targets)
    made = ["artifacts/executed/quick/01_elicit.ipynb", ".venv/bin", ".venv.lock"]
    ignored = subprocess.run(
        ["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True
    )
    if (ROOT / ".git").exists():
        assert len(ignored.stdout.split()) == 3


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = (
        re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1]
        .replace("$(STAGES)", "elicit train evaluate shuffle attribute figures")
        .split()
    )
    shown = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [t for t in phony if not re.search(rf"^  make {t}\b.*\w", shown, re.M)] == []
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert {"Begin", "Run a study", "Settings"} <= set(shown.splitlines())


def test_nothing_of_the_local_data_is_committed():
    """No question and no rationale of ../shared/data is in a tracked file."""
    import json

    shared = ROOT.parent / "shared" / "data"
    if not shared.is_dir() or not (ROOT / ".git").exists():
        pytest.skip("no ../shared/data or no git here")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    everything = "\n".join(
        re.sub(r'"image/png": "[^"]*"', "", (ROOT / f).read_text(errors="ignore"))
        for f in tracked
        if (ROOT / f).is_file()
    )
    sample = [
        json.loads(line)
        for path in sorted(shared.rglob("*.jsonl"))
        for line in path.read_text().splitlines()[::25]
    ]
    texts = [
        t
        for row in sample
        for t in (row.get("question"), row.get("question_stem"), row.get("rationale"))
        if t and len(t) > 40
    ]
    # The first 30 characters at every place, so that only what begins alike is searched in full.
    starts = {hash(everything[i : i + 30]) for i in range(len(everything))}
    forms = {form for t in texts for form in (t, json.dumps(t)[1:-1])}
    likely = [form for form in forms if hash(form[:30]) in starts]
    assert len(texts) > 1000 and [form for form in likely if form in everything] == []
