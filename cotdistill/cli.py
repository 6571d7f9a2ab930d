"""The command line: run a study's stages, show its status."""

import argparse
import os
import sys

from cotdistill.errors import DataError, disk_error, one_line
from cotdistill.execute import run_study, show_status
from cotdistill.kernel import interrupt_once
from cotdistill.parameters import DEFAULT_STUDENT
from cotdistill.paths import NOTEBOOKS, artifacts, root
from cotdistill.publish import publish


def main(arguments: list[str] | None = None) -> int:
    """Run a study's stages, show their status, or publish them.

    Returns 0; 1 after one line that says what went wrong; 130 after Ctrl-C and one line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cotdistill.cli", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run, asked = commands.add_parser("run"), commands.add_parser("publish")
    for command in (run, asked):
        command.add_argument("study")
        command.add_argument("--stages", nargs="+", choices=list(NOTEBOOKS), default=None)
    run.add_argument(
        "--executed",
        default=None,
        help="folder of the executed notebooks, from the repository's root on",
    )
    commands.add_parser("status").add_argument("study")
    new = commands.add_parser("new")
    new.add_argument("study")
    new.add_argument("--data", required=True)
    new.add_argument("--student", default=DEFAULT_STUDENT)
    chosen = parser.parse_args(arguments)
    try:
        with interrupt_once():
            if chosen.command == "status":
                show_status(chosen.study)
            elif chosen.command == "publish":
                made = os.path.relpath(publish(chosen.study, chosen.stages))
                print(f"published in {made}; `git status` shows what changed")
            elif chosen.command == "new":
                from cotdistill.new_study import new_study  # which imports this module, and torch

                path = os.path.relpath(new_study(chosen.study, chosen.data, chosen.student))
                print(f"{path}: written; read it, then run `make reproduce STUDY={chosen.study}`")
            else:
                run_study(
                    chosen.study,
                    chosen.stages,
                    root() / chosen.executed if chosen.executed else artifacts() / "executed",
                )
        return 0
    except KeyboardInterrupt:
        print(
            "stopped: finished notebooks, runs and answers are kept, "
            "and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except (DataError, OSError) as error:
        print(f"error: {disk_error(error, artifacts()) or one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
