"""The committed evidence: whole, without paths, and made by the notebooks that it names."""

import subprocess
from pathlib import Path

import nbformat
import pytest
from test_notebooks import EXECUTED, check_executed

from cotdistill.tidy import INJECTED

ROOT = Path(__file__).resolve().parents[1]


def show_file(commit: str, path: str) -> str:
    """A file as it was at a commit; skips where the clone holds no history."""
    done = subprocess.run(
        ["git", "show", f"{commit}:{path}"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no history here to read {path} at {commit[:7]} from: {done.stderr.strip()}")
    return done.stdout


def source_of(executed: Path) -> str:
    """The notebook that an executed one was made from, as JSON.

    commit.txt beside it names the commit whose notebooks were executed; `make publish` leaves
    none, for what it publishes has the cells of today.
    """
    named = executed.with_name("commit.txt")
    if named.is_file():
        return show_file(named.read_text().strip(), f"notebooks/{executed.name}")
    folder = "benchmarks" if executed.stem == "benchmark" else "notebooks"
    return (ROOT / folder / executed.name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_committed_evidence(path):
    """Committed notebooks are whole, small and without paths, and have their source's cells."""
    check_executed(path)
    source = nbformat.reads(source_of(path), 4)
    ran = [
        cell.source
        for cell in nbformat.read(path, 4).cells
        if INJECTED not in cell.metadata.get("tags", [])
    ]
    assert ran == [cell.source for cell in source.cells]
