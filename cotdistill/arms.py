"""Turn a question, its rationale and an arm into training text, and a text into an option.

The prompt is the same for every arm up to its cue: "Answer:" asks for the label, "Reason:" for a
rationale.

    label_only   Question … Options … Answer:| ice⏎<eos>
    post_cot     Question … Options … Answer:| ice⏎|Reason:| <rationale><eos>
    pre_cot      Question … Options … Reason:| <rationale>|⏎Answer:| ice⏎<eos>

`|` marks the borders of pieces. Each piece is tokenised by itself and the ids are joined, so the
span of the label and of the rationale is known exactly, the label is the same tokens in every
arm, and the border between prompt and target cannot merge. The label ends with a line break,
which makes an option that is a prefix of another ("ice", "ice cream") a different sequence, and
gives generation a place to stop.
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass

from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Example, first_equal
from cotdistill.free_answers import match_answer

LABEL_FORMATS = ("text", "letter", "both")
OTHER_ANSWER = -1  # a free answer that could be read, and is not the right one
PLACEMENTS = ("zero_shot", "label_only", "pre_cot", "post_cot")
UNITS = ("token", "word", "sentence")
LOSSES = ("token_mean", "balanced")  # `hyperparameters.TrainConfig` says what they are
# What can rank the tokens of a rationale. `attribution.methods.METHODS` holds the functions, and a
# test keeps the two equal: this list is here because an arm is checked before anything heavy is
# imported, and attribution needs torch.
SELECTORS = (
    "integrated_gradients",
    "input_x_gradient",
    "saliency",
    "occlusion",
    "occlusion_word",
    "attention",
    "rollout",
    "embedding_similarity",
    "random",
    "human",
    "answer_words",
    "tfidf",
    "frequency_matched",
    "integrated_gradients_without_label",
    "occlusion_without_label",
    "tfidf_without_label",
    "random_without_label",
)
# These choose tokens (1 or 0): `kept` keeps no token that was not chosen
SELECTING = ("human", "answer_words")
# The score of a token that is never kept, such as one of the label's words for a selector
# `..._without_label`. A finite number: scores are written as JSON.
LEFT_OUT = -1e9


def _unit_detail(arm: "Arm") -> list[str]:
    """Return the unit for a label, where it is not the token."""
    return [arm.unit] if arm.unit != "token" else []


def _mask_detail(arm: "Arm") -> list[str]:
    """Return what a mask's label says: share, order, fill and unit."""
    order = arm.order if arm.order == "random" else f"{arm.order}:{arm.selector}"
    return (
        [f"{100 * arm.amount:g}%", order] + ["delete"] * (arm.fill == "delete") + _unit_detail(arm)
    )


@dataclass(frozen=True)
class Corruption:
    """Describe one way to change a rationale: what it needs, how its arms are named and drawn.

    The function that does it stands in corrupt.py, registered under the same name.

    fields   the fields of Arm that it reads; they enter the run's config, and so its key
    needs    what its function is given: "rng" (a generator), "scores" (one per token, unless the
             selector or the order is random), "label" (the words of the right answer), "corpus"
             (what the training rationales have in common), "partner" (it takes the rationale of
             another question: its function chooses whose)
    detail   arm -> what stands in the brackets of its label
    figure   the figure that shows it: "shuffle" (a kind beside the intact rationale), "masking" (a
             curve over shares; the detail begins with a percentage) or "key_tokens" (a bar per
             number of tokens, and the method)
    length   the number of the rationale's tokens -> how many of them are trained on, where that is
             not the same number; for estimates of cost (the second argument is the arm)
    """

    fields: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    detail: Callable[["Arm"], list[str]] = lambda arm: []
    figure: str = "shuffle"
    length: Callable[[float, "Arm"], float] = lambda tokens, arm: tokens

    @property
    def stage(self) -> str:
        """Name the notebook that trains its arms, as `make` calls it."""
        return "shuffle" if self.figure == "shuffle" else "attribute"


# A new arm is one entry here and one function in corrupt.py; every figure and table that shows its
# kind then shows it.
CORRUPTIONS = {
    "": Corruption(),
    "shuffled": Corruption(
        ("unit", "fresh"), ("rng",), lambda arm: [arm.unit] + ["fresh"] * arm.fresh
    ),
    "masked": Corruption(
        ("unit", "amount", "order", "selector", "fill"),
        ("rng", "scores"),
        _mask_detail,
        "masking",
        lambda n, arm: (1 - arm.amount) * n if arm.fill == "delete" else n,
    ),
    "kept": Corruption(
        ("unit", "amount", "selector"),
        ("rng", "scores"),
        lambda arm: [f"{arm.amount:g}", arm.selector] + _unit_detail(arm),
        "key_tokens",
        lambda n, arm: min(arm.amount, n) if arm.amount >= 1 else arm.amount * n,
    ),
    "swapped": Corruption(needs=("partner",)),
    "filler": Corruption(),
    "other_same": Corruption(needs=("partner",)),
    "bag": Corruption(needs=("rng", "corpus")),
    "length_matched": Corruption(needs=("corpus",)),
    "no_label": Corruption(needs=("label",)),
}
ARMS = (
    "zero_shot",
    "label_only",
    *(f"{p}_{c}".rstrip("_") for p in ("pre_cot", "post_cot") for c in CORRUPTIONS),
)


@dataclass(frozen=True)
class Arm:
    """Describe one training target: where the rationale stands, and what was done to it.

    placement   zero_shot (not trained) | label_only | pre_cot | post_cot
    corruption  "" (intact) | shuffled | masked | kept | swapped | filler | other_same (the
                rationale of another question with the same answer) | bag (as many tokens drawn
                from all training rationales) | length_matched (cut or repeated to their median
                length) | no_label (the words of the answer removed); only with pre_cot or post_cot
    unit        what is moved, masked or kept: token (of the student), word or sentence
    amount      masked: the fraction hidden, 0 to 1. kept: how many units stay, a number >= 1 or a
                fraction < 1
    order       masked: which go first: random | most (important) | least
    selector    kept and ordered masks: the attribution that ranks the units ("random" needs none)
    fill        masked: "filler" puts the student's filler token in the place, "delete" closes the
                gap
    fresh       shuffled: a new permutation each epoch instead of one per question and seed
    label_weight  loss weight of label tokens, other tokens weigh 1
    loss        "" is the study's; else one of LOSSES, in an arm that stands beside those of the
                study's main loss
    """

    placement: str
    corruption: str = ""
    unit: str = "token"
    amount: float = 0.0
    order: str = "random"
    selector: str = "random"
    fill: str = "filler"
    fresh: bool = False
    label_weight: float = 1.0
    loss: str = ""

    @property
    def name(self) -> str:
        """Return the arm's name in the field, e.g. "post_cot_shuffled"."""
        return f"{self.placement}_{self.corruption}" if self.corruption else self.placement

    @property
    def label(self) -> str:
        """Return the name plus what varies, e.g. "post_cot_masked[50%,random]".

        The key of every table and plot.
        """
        detail = CORRUPTIONS[self.corruption].detail(self)
        if self.label_weight != 1:
            detail = detail + [f"label_weight={self.label_weight:g}"]
        if self.loss:
            detail = detail + [f"loss={self.loss}"]
        return self.name + (f"[{','.join(detail)}]" if detail else "")

    @property
    def uses_rationale(self) -> bool:
        """Say whether its targets hold a rationale, intact or not."""
        return self.placement in ("pre_cot", "post_cot")

    @property
    def needs_scores(self) -> bool:
        """Say whether it keeps or masks by scores of the tokens (at random: no)."""
        entry = CORRUPTIONS[self.corruption]
        by_chance = self.selector == "random" or "order" in entry.fields and self.order == "random"
        return "scores" in entry.needs and not by_chance

    @property
    def config(self) -> dict:
        """Return the arm's part of a run's config.

        Only what its target depends on, so that equal targets share a run key. The loss is no part
        of it: it stands with the other settings of the training, whether it is the study's or the
        arm's.
        """
        used = ("placement", "corruption", "label_weight", *CORRUPTIONS[self.corruption].fields)
        fields = {name: value for name, value in asdict(self).items() if name in used}
        return {
            name: float(value) if name in ("amount", "label_weight") else value
            for name, value in fields.items()
        }

    @property
    def intact(self) -> "Arm":
        """Return the arm without its corruption: what a corrupted arm is compared with."""
        return Arm(self.placement, label_weight=self.label_weight, loss=self.loss)


def arm_from_name(name: str, **settings) -> Arm:
    """Make an arm of its name and settings: `"post_cot_shuffled", unit="word"`.

    Raises DataError for an unknown arm or an impossible setting.
    """
    placement = next((p for p in PLACEMENTS if name == p or name.startswith(p + "_")), None)
    corruption = name[len(placement) + 1 :] if placement else ""
    if name not in ARMS:
        raise DataError(f"unknown arm '{name}'; expected one of {', '.join(ARMS)}")
    arm = Arm(placement, corruption, **settings)
    for field in ("amount", "label_weight"):
        value = getattr(arm, field)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise DataError(f"arm {name}: {field} is {value!r}; expected a number")
    for field, allowed in (
        ("unit", UNITS),
        ("order", ("random", "most", "least")),
        ("fill", ("filler", "delete")),
        ("selector", SELECTORS),
        ("loss", ("", *LOSSES)),
    ):
        if getattr(arm, field) not in allowed:
            raise DataError(
                f"arm {name}: {field} is {getattr(arm, field)!r}; expected one of "
                f"{', '.join(allowed)}"
            )
    if corruption == "masked" and not 0 <= arm.amount <= 1:
        raise DataError(
            f"arm {name}: amount is {arm.amount}; expected the fraction to hide, from 0 to 1"
        )
    if corruption == "kept" and arm.amount < 0:
        raise DataError(
            f"arm {name}: amount is {arm.amount}; expected a number of units >= 1 or "
            "a fraction from 0 to 1"
        )
    if arm.label_weight <= 0:
        raise DataError(
            f"arm {name}: label_weight is {arm.label_weight}; expected a number above 0"
        )
    return arm


def corruption_of(label: str) -> str | None:
    """Return the corruption that an arm's label names: "" for none, None for the label of no arm.

    "post_cot_kept[5,random]" -> "kept". Tables and figures know arms by their labels only.
    """
    name = label.partition("[")[0]
    if name in ("zero_shot", "label_only"):
        return ""
    return (
        name.removeprefix("pre_cot").removeprefix("post_cot").removeprefix("_")
        if name in ARMS
        else None
    )


def shown_in(figure: str, label: str) -> bool:
    """Say whether a figure shows an arm.

    "placement" shows those without a corruption; "shuffle", "masking" and "key_tokens" those whose
    entry in CORRUPTIONS says so.
    """
    corruption = corruption_of(label)
    if not corruption:
        return corruption == "" and figure == "placement"
    return CORRUPTIONS[corruption].figure == figure


def cue(placement: str) -> str:
    """Return the last word of the prompt: what the student is asked to write first."""
    return "Reason:" if placement == "pre_cot" else "Answer:"


def prompt_text(example: Example, placement: str, label_format: str = "text") -> str:
    """Write the question, its options, and the cue.

    Options carry letters only where the label is one; a free answer has no options.
    """
    if example.is_free:
        return f"Question: {example.question}\n{cue(placement)}"
    marks = [f"({letter})" if label_format != "text" else "-" for letter in LETTERS]
    options = "\n".join(
        f"{mark} {choice}" for mark, choice in zip(marks, example.choices, strict=False)
    )
    return f"Question: {example.question}\nOptions:\n{options}\n{cue(placement)}"


def label_text(example: Example, option: int, label_format: str = "text") -> str:
    """Write one option as the student must: a space before it and a line break after it."""
    letter, text = LETTERS[option], example.choices[option]
    return {"text": f" {text}\n", "letter": f" {letter}\n", "both": f" ({letter}) {text}\n"}[
        label_format
    ]


def format_target(
    example: Example, rationale: str, arm: Arm, label_format: str = "text"
) -> list[tuple[str, str]]:
    """Return the target of one arm as (kind, text) pieces.

    kind is "label", "rationale" or "frame"; the end-of-sequence token follows the last piece. One
    branch per placement: a corruption changes the rationale, never this.
    """
    label = ("label", label_text(example, example.answer, label_format))
    if arm.placement in ("label_only", "zero_shot"):
        return [label]
    reason = [("rationale", f" {rationale}")] if rationale else []
    if arm.placement == "post_cot":
        return [label, ("frame", "Reason:"), *reason]
    if arm.placement == "pre_cot":
        return [*reason, ("frame", "\nAnswer:"), label]
    raise DataError(f"unknown placement '{arm.placement}'; expected one of {', '.join(PLACEMENTS)}")


def _normalise(text: str) -> str:
    """Return an answer as it is compared: one space between words, no case, no end marks."""
    return " ".join(text.split()).strip(" .!\"'").casefold()


def parse_answer(text: str, choices: tuple[str, ...], label_format: str = "text") -> int | None:
    """Return the option that a generated label names, or None (a parse failure, counted as wrong).

    Only the first line counts. A match is exact up to case, white space and closing punctuation;
    two options that differ only there are told apart by the exact text, and of two equal ones the
    first is meant. With letters, "B", "(B)" and "B." are read; under "both" the letter and the text
    must agree.

    Of a free answer (`choices` holds the right one alone): 0 where it is right, OTHER_ANSWER where
    it is another one, None where none can be read (`free_answers.match_answer`).
    """
    if len(choices) == 1:
        right = match_answer(text, choices[0])
        return None if right is None else 0 if right else OTHER_ANSWER
    line = text.strip().split("\n")[0].strip()
    if label_format in ("letter", "both"):
        head = re.match(r"\(?([A-Z])(?:[).:]|$|(?=\s))\s*", line)
        option = LETTERS.find(head[1]) if head else -1
        if not 0 <= option < len(choices):
            return None
        rest = line[head.end() :]
        wanted = "" if label_format == "letter" else _normalise(choices[option])
        return first_equal(choices, option) if _normalise(rest) == wanted else None
    exact = [i for i, choice in enumerate(choices) if choice == line]
    close = exact or [
        i
        for i, choice in enumerate(choices)
        if _normalise(choice) == _normalise(line) and _normalise(line)
    ]
    return close[0] if len({choices[i] for i in close}) == 1 else None


def split_generation(text: str, placement: str) -> tuple[str, str | None]:
    """Split a generated text into (rationale, label text).

    The label text of pre_cot is None where no "Answer:" line came. The first line that starts with
    "Answer:" decides, so a rationale that quotes "Answer:" inside a line is safe.
    """
    if placement != "pre_cot":
        label, _, rest = text.partition("\n")
        return rest.removeprefix("Reason:").strip(), label
    head, found, tail = text.partition("\nAnswer:")
    return head.strip(), tail if found else None
