"""Execute the benchmark notebook: `python -m benchmarks.run [values.yaml]`."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import yaml

from benchmarks.trainers import serve_trainer
from cotdistill.errors import DataError, one_line
from cotdistill.execute import execute_notebook
from cotdistill.parameters import check_value, notebook_parameters
from cotdistill.paths import artifacts, root
from cotdistill.tidy import tidy_notebook


def execute_benchmark(values: dict, out: Path) -> Path:
    """Execute benchmarks/benchmark.ipynb with `values`; return the path of the result.

    The result replaces an older one only once it is complete.

    Raises DataError for an unknown parameter, for a value of the wrong type, and for the error that
    the notebook ended with.
    """
    source = root() / "benchmarks" / "benchmark.ipynb"
    defaults = notebook_parameters(source)
    for key, value in values.items():
        if key not in defaults:
            raise DataError(f"unknown parameter '{key}'; expected one of {', '.join(defaults)}")
        check_value(key, value, defaults[key], "benchmark")
    out.mkdir(parents=True, exist_ok=True)
    part, started = out / ".benchmark.part.ipynb", time.time()
    try:
        execute_notebook(source, part, values)
    except Exception as error:
        # A kernel's error has the name and the text of the one in the cell
        name = getattr(error, "ename", type(error).__name__)
        line = f"{name}: {getattr(error, 'evalue', error)}".splitlines()[0]
        raise DataError(f"benchmark: {line} (the notebook up to the error: {part})") from None
    tidy_notebook(part, seconds=time.time() - started)
    os.replace(part, out / "benchmark.ipynb")
    return out / "benchmark.ipynb"


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse `[values.yaml] [--executed DIR]`, and the hidden option of a trainer's child."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Execute the benchmark notebook."
    )
    parser.add_argument(
        "values",
        nargs="?",
        help="a YAML file of parameters, as benchmarks/benchmark.yaml; without it, the notebook's "
        "defaults, a smoke size",
    )
    parser.add_argument(
        "--executed",
        metavar="DIR",
        help="where the executed notebook goes; the default is artifacts/executed/benchmark",
    )
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def read_values(path: Path) -> dict:
    """Read a YAML file of parameters; raise DataError where it holds anything else."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(
            f"{path}: not YAML: {one_line(error)}; expected `parameter: value`"
        ) from None
    if values is not None and not isinstance(values, dict):
        raise DataError(f"{path}: {type(values).__name__}; expected lines of `parameter: value`")
    return values or {}


def main(arguments: list[str] | None = None) -> int:
    """Execute the notebook, or serve as a child of `train_interleaved`.

    Returns 0, or 1 after one line that says what is wrong.
    """
    chosen = read_arguments(arguments)
    if chosen.side:
        serve_trainer()
        return 0
    try:
        values = read_values(Path(chosen.values)) if chosen.values else {}
        own = artifacts() / "executed" / "benchmark"
        out = root() / chosen.executed if chosen.executed else own
        path = execute_benchmark(values, out)
        minutes = json.loads(path.read_text())["metadata"]["cotdistill"]["seconds"] / 60
        print(f"benchmark: done in {minutes:.1f} minutes; {os.path.relpath(path)}")
        return 0
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
