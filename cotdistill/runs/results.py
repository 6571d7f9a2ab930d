"""What a study's runs predicted and how they learnt, as tables."""

import json

import pandas as pd

from cotdistill import corrupt
from cotdistill.arms import PROMPTED, Arm
from cotdistill.errors import DataError
from cotdistill.files import fingerprint, read_json
from cotdistill.paths import RUN_KEY, RUN_STAGES, artifacts, plan_path, study_dir
from cotdistill.runs.store import load_metrics
from cotdistill.stats import describe_questions
from cotdistill.study import Study, study_name
from cotdistill.train import HISTORY


def check_trained_with(study: Study, rows: list[dict], stage: str) -> None:
    """Check, before a later stage trains, that it fits stage train.

    The runs of stage train must have been made with the data, student and training that its own
    will be. rows: of `plan_rows`. Raises DataError naming what differs. (Where stage train has not
    run, the notebooks say so.)
    """
    path = study.folder / "train.json"
    if stage == "train" or not path.is_file():
        return
    now, own = {}, study.has_own_worlds
    for row in rows:
        config = separate_loss(row["config"], row["arm"].loss)
        for pair in shared_values(config, row["seed"], own):
            now.setdefault(pair, config[pair[0]])
    for made in read_json(path, f"`make train STUDY={study.name}`"):
        try:
            config = json.loads(
                (artifacts() / "runs" / made["key"] / "config.json").read_text(encoding="utf-8")
            )
            config = separate_loss(config, made["arm"].get("loss", ""))
            pairs = shared_values(config, made["seed"], own)
        # `load_stage` names it when it is needed
        except (OSError, ValueError, TypeError, KeyError):
            continue
        other = next(
            (name for name, seed in pairs if now.get((name, seed), config[name]) != config[name]),
            None,
        )
        if other:
            raise DataError(
                f"study '{study.name}': {made['label']}, seed {made['seed']} of stage train was "
                f"made with other {other} than stage {stage} would be; expected one setting in all "
                f"stages: run `make train STUDY={study.name}` again, then {stage}"
            )


def read_plan(study: str, stage: str) -> list[dict]:
    """Read the plan of a stage: its rows label, seed, key, arm (no arm in that of stage quality).

    Raises DataError where it is missing or damaged: run the stage first.
    """
    plan = read_json(plan_path(study, stage), f"`make {stage} STUDY={study}`")
    try:
        keys = fingerprint([[row["label"], row["seed"], row["key"]] for row in plan])
        fits = plan and all(
            RUN_KEY.fullmatch(row["key"])
            and (stage == "quality" or Arm(**row["arm"]).label == row["label"])
            and row.get("plan", keys) == keys
            for row in plan
        )
    except (TypeError, KeyError, AttributeError, ValueError):
        fits = False
    if not fits:
        raise damaged_plan(study, stage)
    return plan


def damaged_plan(study: str, stage: str) -> DataError:
    """Say that a stage's plan is not what the stage wrote."""
    return DataError(
        f"{study_dir(study) / f'{stage}.json'}: damaged; expected the plan of stage {stage}: "
        f"run `make {stage} STUDY={study}`"
    )


def load_stage(study: str, stage: str) -> list[dict]:
    """Load the plan of a stage with each run's metrics and config.

    Raises DataError where a run is missing: run the stage first.
    """
    plan = read_plan(study, stage)
    for row in plan:
        row["metrics"] = load_metrics(row["key"])
        if row["metrics"] is None:
            raise DataError(
                f"study '{study}': run {row['key'][:12]} ({row['label']}, seed {row['seed']}) "
                f"is not complete; run `make {stage} STUDY={study}`"
            )
        row["config"] = config = read_json(
            artifacts() / "runs" / row["key"] / "config.json", f"`make {stage} STUDY={study}`"
        )
        own = Arm(**row["arm"])
        if (
            config["arm"] not in (own.config, corrupt.full_mask_as_filler(own).config)
            # Where each seed has its own world, an untrained student is asked in each
            or config["seed"] not in (row["seed"], *[-1] * (not own.is_trained))
        ):
            raise damaged_plan(study, stage)
    return plan


def unchanged_shares(study: Study | str, stages: list[str]) -> dict[str, float]:
    """Average over seeds the share of a corrupted arm's sequences that equal the intact arm's.

    Returns arm -> share (`encode.unchanged_share`); arms whose runs do not say are left out.
    """
    shares = {}
    for row in (row for stage in stages for row in load_stage(study_name(study), stage)):
        if "as_intact" in row["metrics"]:
            shares.setdefault(row["label"], []).append(row["metrics"]["as_intact"])
    return {label: sum(found) / len(found) for label, found in shares.items()}


# By all runs of a study
SHARED = (
    "student",
    "dtype",
    "label_format",
    "test",
    "max_label_tokens",
    "max_new_tokens",
    "training",
    "loss",
    "validation",
)
SHARED_BY_SEED = ("train", "rationales")  # by the runs of a seed


def shared_values(config: dict, seed: int, own_worlds: bool) -> list[tuple]:
    """List what a run's config shares with others, as (name, seed); seed None: with all runs.

    own_worlds: each seed has a world of its own, so test and validation questions are the seed's.
    """
    by_seed = SHARED_BY_SEED + (("test", "validation") if own_worlds else ())
    names = dict.fromkeys((*SHARED, *SHARED_BY_SEED))
    return [(name, seed if name in by_seed else None) for name in names if name in config]


def separate_loss(config: dict, own_loss: str) -> dict:
    """Return a run's config with its loss apart from the other hyperparameters.

    It stands in "loss" where it is the study's: an arm that names a loss of its own (own_loss)
    differs from the others on purpose.
    """
    training = config.get("training")
    if training is None:
        return config
    rest = {name: v for name, v in training.items() if name not in ("loss", "loss_lambda")}
    loss = [training.get("loss", "token_mean"), training.get("loss_lambda")]
    return config | {"training": rest} | ({} if own_loss else {"loss": loss})


def read_row_predictions(row: dict) -> pd.DataFrame:
    """Read the predictions of one row of a plan, with its arm, seed and key."""
    path = artifacts() / "runs" / row["key"] / "predictions.jsonl"
    frame = pd.read_json(path, lines=True, dtype={"id": str})
    return frame.assign(arm=row["label"], seed=row["seed"], key=row["key"][:12])


def add_correct(table: pd.DataFrame) -> pd.DataFrame:
    """Say of each answer whether it is right, and None of texts that are not there.

    Runs that come from a published file hold no text.
    """
    for name in ("rationale", "text"):
        texts = table[name] if name in table else pd.Series(None, table.index, dtype=object)
        table[name] = texts.astype(object).where(texts.notna(), None)
    table["generated"] = table["generated"].astype("Int64")
    table["correct_generated"] = (table["generated"] == table["gold"]).fillna(False).astype(bool)
    table["correct_choice"] = table["choice"] == table["gold"]
    if table["choice"].isna().any():  # free answers: nothing was chosen, right or wrong
        table["correct_choice"] = table["correct_choice"].astype(float).where(table.choice.notna())
    return table


def load_predictions(study: Study | str, stages: list[str]) -> pd.DataFrame:
    """Load all predictions of the stages' runs, a row per run and question.

    study: as it is, or the name of one that notebook 02 has saved.

    Columns: study, dataset, student, arm, seed, id, gold, generated (NA: parse failure), choice,
    correct_generated, correct_choice, tokens_generated, cut_off; what is known of the questions
    (`stats.describe_questions`); rationale and text, what the student wrote: None where a run came
    from a published file, which holds no text. A run that two stages share appears once.

    Raises DataError where the runs of two stages differ in more than their arm and seed: a setting
    was changed, and one stage not run again.
    """
    frames, seen, shared, name_of_study = [], set(), {}, study_name(study)
    plans = {stage: load_stage(name_of_study, stage) for stage in stages}
    study = Study.load(study) if isinstance(study, str) else study
    for stage, plan in plans.items():
        for row in plan:
            # Under another label it is another arm, whose training is the same
            if (row["label"], row["key"]) in seen:
                continue
            seen.add((row["label"], row["key"]))
            row["config"] = separate_loss(row["config"], row["arm"].get("loss", ""))
            for pair in shared_values(row["config"], row["seed"], study.has_own_worlds):
                name = pair[0]
                first, value = shared.setdefault(pair, (stage, row["config"][name]))
                if value != row["config"][name]:
                    raise DataError(
                        f"study '{name_of_study}': {row['label']}, seed {row['seed']} of "
                        f"stage {stage} was made with other {name} than the runs of stage "
                        f"{first}; expected one setting in all stages: "
                        f"run `make {stage} STUDY={name_of_study}`"
                    )
            frames.append(read_row_predictions(row))
    table = add_correct(pd.concat(frames, ignore_index=True))
    setting = study.setting
    table = table.rename(columns={"tokens": "tokens_generated"}).assign(
        study=name_of_study,
        dataset=setting.data["dataset"],
        student=setting.student,
    )
    return describe_questions(table, study.data.test, study.data.meta, setting.worlds)


def load_history(study: Study | str, stages: list[str]) -> pd.DataFrame:
    """Load the learning curves of the stages' runs.

    Columns: study, arm, seed, epoch, step, loss, label_loss, rationale_loss, validation_accuracy,
    validation_label_nll.
    """
    frames, seen = [], set()
    for stage in stages:
        for row in load_stage(study_name(study), stage):
            if (row["label"], row["key"]) in seen or row["label"] in PROMPTED:
                continue
            seen.add((row["label"], row["key"]))
            frame = pd.read_csv(artifacts() / "runs" / row["key"] / "history.csv")
            frames.append(frame.assign(study=study_name(study), arm=row["label"], seed=row["seed"]))
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=["study", "arm", "seed", *HISTORY])
    )


def completed_stages(study: Study | str) -> list[str]:
    """List the stages of a study that have made runs, in order."""
    return [stage for stage in RUN_STAGES if plan_path(study_name(study), stage).is_file()]
