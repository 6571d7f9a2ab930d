"""Execute the benchmark notebook: `python -m benchmarks.run`."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.trainers import serve_trainer
from cotdistill.errors import DataError
from cotdistill.execute import execute_notebook
from cotdistill.parameters import check_value, notebook_parameters
from cotdistill.paths import artifacts, root
from cotdistill.tidy import tidy_notebook


def run(values: dict, out: Path) -> Path:
    """Execute benchmarks/benchmark.ipynb with `values`.

    The result replaces an older one only when it is whole.

    Raises DataError for an unknown parameter, a value of the wrong type, and for what the notebook
    ended with.
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
        said = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}".splitlines()[
            0
        ]
        raise DataError(f"benchmark: {said} (the notebook up to the error: {part})") from None
    tidy_notebook(part, seconds=time.time() - started)
    os.replace(part, out / "benchmark.ipynb")
    return out / "benchmark.ipynb"


def main(arguments: list[str] | None = None) -> int:
    """`run [values.yaml] [--executed DIR]` executes the notebook.

    `side` is a child of `train_interleaved`.
    """
    import yaml

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("run")
    asked.add_argument("values", nargs="?", default=None)
    asked.add_argument("--executed", default=None)
    commands.add_parser("side")
    chosen = parser.parse_args(arguments)
    if chosen.command == "side":
        serve_trainer()
        return 0
    try:
        values = (
            yaml.safe_load(Path(chosen.values).read_text(encoding="utf-8")) if chosen.values else {}
        )
        own = artifacts() / "executed" / "benchmark"
        made = run(values or {}, root() / chosen.executed if chosen.executed else own)
        print(
            "benchmark: done in "
            f"{json.loads(made.read_text())['metadata']['cotdistill']['seconds'] / 60:.1f} "
            f"minutes; {os.path.relpath(made)}"
        )
        return 0
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
