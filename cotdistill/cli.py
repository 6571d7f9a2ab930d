"""The command line: run a study, look at it, publish it, and render what is shown of it.

Each command imports what it needs itself: `status` must not wait for torch.
"""

import argparse
import os
import sys
from pathlib import Path

from cotdistill.errors import DataError, disk_error, one_line
from cotdistill.kernel import interrupt_once
from cotdistill.parameters import DEFAULT_STUDENT, load_study, stage_parameters
from cotdistill.paths import ALL_NOTEBOOKS, artifacts, root, study_dir, study_path


def make_parser() -> argparse.ArgumentParser:
    """Define the commands and their options; each command's function is its `function`."""
    parser = argparse.ArgumentParser(
        prog="python -m cotdistill.cli", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(function, name: str, *, study: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
        command.set_defaults(function=function)
        if study:
            command.add_argument("study", help="a name in params/, or the path of a YAML file")
        return command

    run, publish = add(run_command, "run"), add(publish_command, "publish")
    for command in (run, publish):
        command.add_argument("--stages", nargs="+", choices=list(ALL_NOTEBOOKS), default=None)
    run.add_argument(
        "--executed",
        help="folder of the executed notebooks, from the repository's root on",
    )
    add(status_command, "status")
    add(publish_runs_command, "publish-runs")
    add(fetch_runs_command, "fetch-runs")
    add(reread_command, "reread")
    check = add(verify_command, "verify")
    check.add_argument("--runs", type=int, default=2, help="how many published runs are drawn")
    check.add_argument("--seed", type=int, default=0, help="of the draw")
    new = add(new_command, "new")
    new.add_argument("--data", required=True)
    new.add_argument("--student", default=DEFAULT_STUDENT)
    add(verdicts_command, "verdicts")
    site, docs = add(site_command, "site"), add(docs_command, "docs", study=False)
    for command in (site, docs):
        command.add_argument(
            "--executed",
            help="folder of executed studies; by default site takes the user's own, else the "
            "published ones; docs the latter",
        )
    data = add(data_command, "data", study=False)
    data.add_argument("--only", nargs="+", metavar="DATASET", help="fetch these datasets alone")
    data.add_argument("--base-url", help="a server with the paths of raw.githubusercontent.com")
    data.add_argument("--to", default="data", help="the folder, from the repository's root on")
    grid = add(grid_command, "grid")
    grid.add_argument("--at-once", type=int, default=4, help="runs side by side on the GPU")
    one = add(run_one_command, "run-one")
    one.add_argument("--arm", required=True)
    one.add_argument("--seed", type=int, default=0)
    return parser


def run_command(chosen: argparse.Namespace) -> None:
    """Execute the notebooks of a study in sequence."""
    from cotdistill.execute import run_study

    executed = root() / chosen.executed if chosen.executed else artifacts() / "executed"
    run_study(chosen.study, chosen.stages, executed)


def status_command(chosen: argparse.Namespace) -> None:
    """Show what of a study is done, running or failed, and the time left."""
    from cotdistill.execute import show_status

    show_status(chosen.study)


def publish_command(chosen: argparse.Namespace) -> None:
    """Make what was executed of a study its committed evidence."""
    from cotdistill.publish import publish

    folder = os.path.relpath(publish(chosen.study, chosen.stages))
    print(f"published in {folder}; `git status` shows what changed")


def publish_runs_command(chosen: argparse.Namespace) -> None:
    """Publish whatever runs of a study are whole, also while its grid is being trained."""
    from cotdistill.runs.published import publish_runs
    from cotdistill.runs.record import write_record

    name = study_path(chosen.study).stem
    path = publish_runs(name)
    write_record(name, path.parent)
    print(f"{os.path.relpath(path)}: up to date")


def fetch_runs_command(chosen: argparse.Namespace) -> None:
    """Take all published runs of a study into the store."""
    from cotdistill.runs.published import fetch_study

    fetch_study(study_path(chosen.study).stem)


def reread_command(chosen: argparse.Namespace) -> None:
    """Execute notebooks 03, 04 and 06 of a study from its published runs alone."""
    from cotdistill.reread import reread

    reread(load_study(chosen.study), artifacts() / "reread")


def verify_command(chosen: argparse.Namespace) -> None:
    """Train a random sample of a study's published runs again, and compare."""
    from cotdistill.execute import run_study
    from cotdistill.runs.record import read_record
    from cotdistill.runs.verify import verify
    from cotdistill.study import Study

    name = study_path(chosen.study).stem
    read_record(name)  # says that there are none before data are read
    if not (study_dir(name) / "data.json").is_file():  # a fresh clone has only what is published
        run_study(chosen.study, ["elicit"], artifacts() / "executed")
    verify(Study.from_yaml(chosen.study), chosen.runs, chosen.seed)


def new_command(chosen: argparse.Namespace) -> None:
    """Check your own data and write params/<STUDY>.yaml for them."""
    from cotdistill.new_study import new_study

    path = os.path.relpath(new_study(chosen.study, chosen.data, chosen.student))
    print(f"{path}: written; read it, then run `make reproduce STUDY={chosen.study}`")


def verdicts_command(chosen: argparse.Namespace) -> None:
    """Print what a study says about each claim; write verdicts.json and verdicts.csv."""
    from cotdistill.study import Study
    from cotdistill.verdicts import judge_study

    asked = stage_parameters("figures", load_study(chosen.study))
    this_study = Study.load(study_path(chosen.study).stem)
    table = judge_study(this_study, asked["alpha"], asked["registered"]).table
    show_verdicts(this_study.name, table)


def show_verdicts(study: str, table) -> None:
    """Print a table of verdicts at 80 columns, then the reason for each."""
    from cotdistill.terminal import wrap, write_table
    from cotdistill.verdicts import DIFFERENCES, estimate_text

    measured = table[table["estimate"].notna()]
    n, seeds = (measured[column].max() if len(measured) else 0 for column in ("n", "seeds"))
    print(
        wrap(
            f"study {study}: {len(measured)} of {len(table)} claims measured, on {n} questions "
            f"with up to {seeds} seeds; estimates in points with 95 % intervals",
        )
    )
    rows = [
        {
            "verdict": row["verdict"],
            "claim": row["claim"],
            "estimate": "–" if row["claim"] not in set(measured["claim"]) else estimate_text(row),
        }
        for _, row in table.iterrows()
    ]
    print(write_table(rows, ["verdict", "claim", "estimate"]) + "\n")
    for row in table.itertuples():
        found = ""
        if row.verdict == "inconclusive" and row.rule in DIFFERENCES:
            found = f" Smallest effect to find: {100 * row.detectable:.1f} points."
        print(wrap(f"{row.claim}: {row.reason}{found}"))


def site_command(chosen: argparse.Namespace) -> None:
    """Write a static site of a study, or of `all` that are published, into artifacts/report/."""
    from cotdistill import study_site
    from cotdistill.publish import notebook_folder

    given = root() / chosen.executed if chosen.executed else None
    if chosen.study == study_site.ALL:
        published = given or root() / "notebooks" / "executed"
        print(study_site.build_all(published, artifacts() / "report" / study_site.ALL))
        return
    study = study_path(chosen.study).stem
    executed = given or notebook_folder(study).parent
    print(study_site.build_site(study, executed, artifacts() / "report" / study))


def docs_command(chosen: argparse.Namespace) -> None:
    """Render the findings, the README's table and pictures, and the table of keys."""
    from cotdistill.report import render_documents
    from cotdistill.study_site import render_pictures

    executed = root() / (chosen.executed or Path("notebooks", "executed"))
    documents = render_documents(executed)
    for path in [*documents, *render_pictures(executed, root() / "docs" / "figures")]:
        print(f"{path.relative_to(root())}: rendered")


def data_command(chosen: argparse.Namespace) -> None:
    """Fetch the datasets and the recorded rationales into data/."""
    from cotdistill.fetch import BASE_URL, fetch_data

    fetch_data(root() / chosen.to, chosen.only, chosen.base_url or BASE_URL)


def grid_command(chosen: argparse.Namespace) -> None:
    """Make the runs of a study's grid, several side by side on one GPU."""
    from cotdistill.runs.side_by_side import run_side_by_side

    run_side_by_side(chosen.study, chosen.at_once)


def run_one_command(chosen: argparse.Namespace) -> None:
    """Make one run of a study; under torchrun, with all its processes."""
    from cotdistill.runs.torchrun import make_shared_run, use_process_group

    with use_process_group():
        make_shared_run(chosen.study, chosen.arm, chosen.seed)


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked for.

    Returns 0; 1 after one line that says what went wrong; 130 after Ctrl-C and one line.
    """
    chosen = make_parser().parse_args(arguments)
    try:
        with interrupt_once():
            chosen.function(chosen)
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
