"""Hold the hyperparameters of one run, and say which of them its key holds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from cotdistill.arms import LOSSES, Arm
from cotdistill.errors import DataError

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """Hold the hyperparameters of one run.

    Every field but `compile`, which changes speed only, is part of its run key.

    `frozen_layers` keeps the embeddings and that many lower blocks as they are (0: full
    fine-tuning). `select` is "best" (the epoch with the highest validation label accuracy, ties to
    the lower label loss) or "last". `compile` is a backend of torch.compile ("inductor"; on a CPU
    it needs a C++ compiler) for the blocks' MLPs and RMS norms, "" for none. Attention stays out:
    it depends on the lengths of each batch's sequences and would be compiled again and again.
    `loss` is "token_mean" or "balanced", where the other tokens' mean weighs `loss_lambda`
    (`loss_shares`). `precision` is that of the products of float32 weights in training, "float32"
    or "bfloat16" (`kernels.mixed`).
    """

    lr: float = 1e-4
    epochs: int = 3
    batch_size: int = 16
    grad_accum: int = 1
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    rationale_weight: float = 1.0
    frozen_layers: int = 0
    gradient_checkpointing: bool = False
    select: str = "best"
    patience: int = 0
    compile: str = ""
    loss: str = "token_mean"
    loss_lambda: float = 1.0
    precision: str = "float32"

    def __post_init__(self):
        """Raise DataError for a value of the wrong type or out of range."""
        for name, field in self.__dataclass_fields__.items():
            value, wanted = getattr(self, name), type(field.default)
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise DataError(
                    f"{name} is {value!r}; expected {wanted.__name__}, as in {field.default!r}"
                )
        high = {"warmup": 1}
        for name in (
            "lr",
            "epochs",
            "batch_size",
            "grad_accum",
            "weight_decay",
            "warmup",
            "max_grad_norm",
            "rationale_weight",
            "frozen_layers",
            "patience",
            "loss_lambda",
        ):
            value, low = (
                getattr(self, name),
                1 if name in ("epochs", "batch_size", "grad_accum") else 0,
            )
            if not low <= value <= high.get(name, 1e9) or name == "lr" and not value:
                wanted = (
                    "above 0"
                    if name == "lr"
                    else f"from {low} to 1"
                    if name in high
                    else f"from {low} on"
                )
                raise DataError(f"{name} is {value}; expected a number {wanted}")
        for name, known in (
            ("schedule", SCHEDULES),
            ("select", ("best", "last")),
            ("loss", LOSSES),
            ("compile", ("", "inductor", "aot_eager", "eager")),
        ):
            if getattr(self, name) not in known:
                raise DataError(
                    f"{name} is '{getattr(self, name)}'; expected one of {', '.join(known)}"
                )
        if self.precision not in PRECISIONS:
            raise DataError(
                f"precision is '{self.precision}'; expected {' or '.join(PRECISIONS)} (in a "
                "study's YAML also auto)"
            )

    @classmethod
    def from_values(cls, values: Mapping, precision: str) -> "TrainConfig":
        """Take the hyperparameters from all values of a study, but the precision as chosen."""
        given = {one.name: values[one.name] for one in fields(cls)}
        return cls(**given | {"precision": precision})


def training_key(train: dict, arm: Arm) -> dict:
    """Return the hyperparameters as they enter a run's config, and so its key.

    They come from a study's settings and the arm's own loss, where it has one. `compile` changes
    speed only. token_mean leaves no trace, nor does the lambda that it does not use: a run that was
    made before there were two losses keeps its key, and one training has one key, whichever loss is
    the study's main one. Nor does float32: runs made before there was a choice keep their keys.
    """
    named = {
        name: value
        for name, value in train.items()
        if name not in ("compile", "loss", "loss_lambda", "precision")
    }
    if train.get("precision", "float32") != "float32":
        named["precision"] = train["precision"]
    loss = arm.loss or train.get("loss", "token_mean")
    return (
        named
        if loss == "token_mean"
        else named | {"loss": loss, "loss_lambda": float(train.get("loss_lambda", 1.0))}
    )
