"""Small studies for tests."""

from cotdistill.examples import Dataset
from cotdistill.hyperparameters import TrainConfig
from cotdistill.study import Setting, Study


def make_spec(**changes) -> dict:
    """A data.json of twelve training and eight test questions of microworld."""
    return dict(
        dataset="microworld/everyday",
        data_dir="",
        validation_size=8,
        data_seed=1,
        rationales="",
        rationales_print="",
        microworld=dict(n_train=12, n_test=8),
    ) | dict(changes)


def make_study(questions: Dataset | None = None, *, train: dict | None = None, **changes) -> Study:
    """A study of a two-layer random student on `make_spec`'s questions, with some of its setting
    changed.

    questions: where they are at hand; train: all hyperparameters that are not the defaults.
    """
    setting = dict(
        study="t",
        data=make_spec(),
        student="tiny-llama",
        device="cpu",
        dtype="float32",
        seeds=[0],
        train_size=0,
        test_size=0,
        resample_train=False,
        label_format="text",
        max_length=256,
        max_new_tokens=6,
        max_label_tokens=24,
        eval_batch_size=8,
    )
    train = train or dict(lr=1e-2, epochs=1, batch_size=4, select="last")
    return Study(Setting(**setting | changes, train=TrainConfig(**train)), questions)
