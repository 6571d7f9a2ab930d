"""Where a result came from: versions, machine, threads, git state."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cotdistill.paths import root
from cotdistill.processes import rank_and_world_size


def provenance() -> dict:
    """Record where a result came from: versions, machine, threads, git state, time.

    No paths, no names of people.
    """
    packages = (
        "torch",
        "transformers",
        "datasets",
        "captum",
        "papermill",
        "accelerate",
        "numpy",
        "pandas",
        "scipy",
    )
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"

    commit, changed = git_state()
    return {
        "python": platform.python_version(),
        **found,
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        **({"processes": rank_and_world_size()[1]} if rank_and_world_size()[1] > 1 else {}),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "git": commit,
        "git_changes": changed,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def git_state() -> tuple[str, bool]:
    """Return the commit ("none" outside git) and whether files differ from it.

    The published notebooks don't count: no result depends on them. In a cluster's worker, whose
    code came from the driver, both are the driver's ($COTDISTILL_GIT).
    """
    driver = os.environ.get("COTDISTILL_GIT", "").split()
    if driver:
        return driver[0], driver[1:] == ["changed"]

    def git(*words):
        try:
            out = subprocess.run(["git", *words], cwd=root(), capture_output=True, text=True)
        except OSError:  # no git on this machine
            return ""
        return out.stdout.strip() if out.returncode == 0 else ""

    return git("rev-parse", "--short", "HEAD") or "none", bool(
        git("status", "--porcelain", "--", ".", ":!notebooks/executed")
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
