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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Example, first_equal
from cotdistill.free_answers import match_answer

LABEL_FORMATS = ("text", "letter", "both")
OTHER_ANSWER = -1  # a free answer that could be read, and is not the right one
# The student as it is: asked a question alone, or below a few training questions that show the form
PROMPTED = ("zero_shot", "few_shot", "few_shot_cot")
SHOTS = 4  # so many training questions, unless a study says otherwise
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
    function  what it does: (ids, arm, given) -> new ids; or, where it needs a partner, (examples,
             lengths, texts, rng) -> {id: the id of the question whose rationale it gets}
    """

    fields: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    detail: Callable[["Arm"], list[str]] = lambda arm: []
    figure: str = "shuffle"
    length: Callable[[float, "Arm"], float] = lambda tokens, arm: tokens
    function: Callable | None = None

    @property
    def stage(self) -> str:
        """Name the notebook that trains its arms, as `make` calls it."""
        return "shuffle" if self.figure == "shuffle" else "attribute"


CORRUPTIONS = {"": Corruption()}


def register_corruption(name: str, **entry) -> Callable:
    """Register a function as what the corruption `name` does; entry: the fields of `Corruption`.

    A new arm is one such function, and nothing else: every figure and table that shows its kind
    then shows it.
    """

    def register(function: Callable) -> Callable:
        CORRUPTIONS[name] = Corruption(**entry, function=function)
        return function

    return register


@dataclass(frozen=True)
class Arm:
    """Describe one training target: where the rationale stands, and what was done to it.

    placement   zero_shot (not trained) | few_shot, few_shot_cot (not trained; below training
                questions that show the answer first, or a rationale first) | label_only | pre_cot |
                post_cot
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
    def is_trained(self) -> bool:
        """Say whether a student is trained; those of PROMPTED are asked as they are."""
        return self.placement not in PROMPTED

    @property
    def asked_as(self) -> str:
        """Return the placement by whose prompt and in whose order the student answers."""
        return {"few_shot": "label_only", "few_shot_cot": "pre_cot"}.get(
            self.placement, self.placement
        )

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


@dataclass(frozen=True)
class Corpus:
    """Hold what the training rationales of a run have in common.

    tokens: the ids of all of them in one array, so that a uniform draw is a draw by frequency;
    length: their median number of tokens, rounded.
    """

    tokens: np.ndarray
    length: int


@dataclass(frozen=True)
class Given:
    """Hold what a function that changes tokens may use beside them.

    units: the positions of each unit's tokens; on_label: for each token whether its word is one of
    the answer's; the rest as in `corrupt_tokens`.
    """

    units: list[list[int]]
    filler_id: int
    rng: np.random.Generator | None = None
    scores: Sequence[float] | None = None
    corpus: Corpus | None = None
    on_label: Sequence[bool] | None = None


def rank_units(units: list[list[int]], scores: Sequence[float], n_tokens: int) -> np.ndarray:
    """Rank the units from the highest score to the lowest.

    A unit scores the sum over its tokens; ties go to the earlier one. Raises DataError for scores
    of another length (they belong to another text or tokenizer) or that are not finite.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.shape != (n_tokens,):
        raise DataError(
            f"{scores.size} scores for a rationale of {n_tokens} tokens; expected one score per "
            "token, made by this student's tokenizer"
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))[0]
        raise DataError(f"score {scores[bad]} at token {bad}; expected finite scores")
    return np.argsort(-np.array([scores[unit].sum() for unit in units]), kind="stable")


def n_kept(amount: float, n: int) -> int:
    """Return how many of n units an arm keeps.

    amount is a number from 1 on, or below 1 a fraction (then at least one); 0 keeps none.
    """
    return (
        min(n, int(amount)) if amount >= 1 else max(1, round(amount * n)) if amount > 0 and n else 0
    )


@register_corruption(
    "shuffled",
    fields=("unit", "fresh"),
    needs=("rng",),
    detail=lambda arm: [arm.unit] + ["fresh"] * arm.fresh,
)
def shuffle_units(ids: list[int], arm: Arm, given: Given) -> list[int]:
    """Put the units in random order, each as it is."""
    return [
        ids[position]
        for unit in given.rng.permutation(len(given.units))
        for position in given.units[unit]
    ]


def order_units(ids: list[int], arm: Arm, given: Given) -> np.ndarray:
    """Return the units in the order in which an arm takes them.

    At random, or by score (the least first, where it says so).
    """
    if not arm.needs_scores:
        return given.rng.permutation(len(given.units))
    # Ties go to the earlier unit here too
    least = arm.corruption == "masked" and arm.order == "least"
    scores = -np.asarray(given.scores, dtype=float) if least else given.scores
    return rank_units(given.units, scores, len(ids))


@register_corruption(
    "masked",
    fields=("unit", "amount", "order", "selector", "fill"),
    needs=("rng", "scores"),
    detail=_mask_detail,
    figure="masking",
    length=lambda n, arm: (1 - arm.amount) * n if arm.fill == "delete" else n,
)
def mask_units(ids: list[int], arm: Arm, given: Given) -> list[int]:
    """Hide exactly round(amount * units) of the units.

    Their tokens become the filler token, or are deleted.
    """
    order = order_units(ids, arm, given)
    hidden = {
        p for unit in order[: round(arm.amount * len(given.units))] for p in given.units[unit]
    }
    if arm.fill == "delete":
        return [token for position, token in enumerate(ids) if position not in hidden]
    return [given.filler_id if position in hidden else token for position, token in enumerate(ids)]


@register_corruption(
    "kept",
    fields=("unit", "amount", "selector"),
    needs=("rng", "scores"),
    detail=lambda arm: [f"{arm.amount:g}", arm.selector] + _unit_detail(arm),
    figure="key_tokens",
    length=lambda n, arm: min(arm.amount, n) if arm.amount >= 1 else arm.amount * n,
)
def keep_units(ids: list[int], arm: Arm, given: Given) -> list[int]:
    """Keep the `n_kept` units with the highest scores, in their order, and nothing else.

    A selector that chooses tokens instead of ranking them (`arms.SELECTING`) keeps none that it did
    not choose: the others, all 0, would come in from the first on. No unit is kept that holds a
    token which the selector leaves out (`arms.LEFT_OUT`), even where fewer than `n_kept` remain.
    """
    chosen = order_units(ids, arm, given)[: n_kept(arm.amount, len(given.units))]
    if arm.needs_scores:
        chosen = [
            unit
            for unit in chosen
            if all(given.scores[position] > LEFT_OUT for position in given.units[unit])
        ]
    if arm.selector in SELECTING:
        chosen = [
            unit
            for unit in chosen
            if any(given.scores[position] > 0 for position in given.units[unit])
        ]
    return [ids[position] for position in sorted(p for unit in chosen for p in given.units[unit])]


def _link_cycle(ids: list[str], rng: np.random.Generator) -> dict[str, str]:
    """Return each id's successor in one random cycle through all of them (Sattolo's algorithm)."""
    donors = list(ids)
    for i in range(len(donors) - 1, 0, -1):
        j = int(rng.integers(i))
        donors[i], donors[j] = donors[j], donors[i]
    return dict(zip(ids, donors, strict=True))


def draw_cycle(
    ids: list[str], rng: np.random.Generator, texts: dict[str, str] | None = None, tries: int = 1000
) -> dict[str, str]:
    """Draw one random cycle through all ids (`_link_cycle`).

    With texts: the first of `tries` draws in which no neighbours read the same, or the one in which
    the fewest do.
    """
    fewest = len(ids) + 1
    for _ in range(tries):
        drawn = _link_cycle(ids, rng)
        same = sum(texts[own] == texts[donor] for own, donor in drawn.items()) if texts else 0
        if same < fewest:
            fewest, best = same, drawn
        if not fewest:
            break
    return best


def swap_partners(
    lengths: dict[str, int],
    rng: np.random.Generator,
    bucket: int = 8,
    texts: dict[str, str] | None = None,
    tries: int = 1000,
) -> dict[str, str]:
    """Return for each id another id whose rationale it gets.

    Never its own, about as long, and each given away exactly once. With texts also not one that
    reads the same, where `tries` draws find such partners.

    Ids are sorted by length (ties in random order) and cut into buckets of `bucket` (the last one
    takes the rest, up to twice as many); within a bucket a random cycle is drawn (Sattolo's
    algorithm). The dict's order does not matter. Raises DataError for fewer than two ids.
    """
    if len(lengths) < 2:
        raise DataError(
            f"{len(lengths)} question(s) with a rationale; expected at least two to swap rationales"
        )
    ids = sorted(lengths)
    ids = [ids[i] for i in rng.permutation(len(ids))]
    ids.sort(key=lengths.__getitem__)
    borders = [*range(0, max(1, len(ids) - bucket + 1), bucket), len(ids)]
    partners = {}
    for a, b in pairwise(borders):
        partners |= draw_cycle(ids[a:b], rng, texts, tries)
    return {question: partners[question] for question in lengths}


@register_corruption("swapped", needs=("partner",))
def swap_among_like(examples, lengths, texts, rng) -> dict[str, str]:
    """Give each question the rationale of one of about the same length (`swap_partners`)."""
    return swap_partners(lengths, rng, texts=texts)


@register_corruption("filler")
def fill_tokens(ids: list[int], arm: Arm, given: Given) -> list[int]:
    """Write as many filler tokens: the length alone is left."""
    return [given.filler_id] * len(ids)


@register_corruption("other_same", needs=("partner",))
def swap_among_same_answers(examples, lengths, texts, rng) -> dict[str, str]:
    """Give each question the rationale of another one whose right answer reads the same.

    Such a rationale fits the answer, and not the question.

    A question whose answer no other one has keeps its own rationale. That is counted: its sequence
    is the intact arm's, whose share every run records (`encode.unchanged_share`), notebook 04
    shows, and verdicts heed. So a difference from the intact arm is understated, never made up.
    Raises DataError where no question has a partner.
    """
    same: dict[str, list[str]] = {}
    for example in sorted(examples, key=lambda example: example.id):
        same.setdefault(" ".join(example.label.split()).casefold(), []).append(example.id)
    partners = {example.id: example.id for example in examples}
    for ids in same.values():
        if len(ids) > 1:
            partners |= draw_cycle([ids[i] for i in rng.permutation(len(ids))], rng, texts)
    if all(own == partner for own, partner in partners.items()):
        raise DataError(
            f"arm other_same: none of {len(examples)} training questions has the "
            "answer of another one; expected data in which answers return (a microworld does)"
        )
    return partners


@register_corruption("bag", needs=("rng", "corpus"))
def draw_tokens(ids: list[int], arm: Arm, given: Given) -> list[int]:
    """Draw as many tokens, with replacement, from all training rationales.

    Their vocabulary by frequency, and no text.
    """
    tokens = given.corpus.tokens
    return tokens[given.rng.integers(len(tokens), size=len(ids))].tolist()


@register_corruption("length_matched", needs=("corpus",))
def match_length(ids: list[int], arm: Arm, given: Given) -> list[int]:
    """Cut the rationale, or repeat it from its start, to the training rationales' median length.

    No question's rationale is longer than another's, so a gain cannot come from length.
    """
    return [ids[position % len(ids)] for position in range(given.corpus.length)]


@register_corruption("no_label", needs=("label",))
def remove_label_words(ids: list[int], arm: Arm, given: Given) -> list[int]:
    """Remove the answer's own words (`label_tokens`); the gaps close."""
    return [token for token, named in zip(ids, given.on_label, strict=True) if not named]


ARMS = (
    *PROMPTED,
    "label_only",
    *(f"{p}_{c}".rstrip("_") for p in ("pre_cot", "post_cot") for c in CORRUPTIONS),
)


def arm_from_name(name: str, **settings) -> Arm:
    """Make an arm of its name and settings: `"post_cot_shuffled", unit="word"`.

    Raises DataError for an unknown arm or an impossible setting.
    """
    placement = name if name in PROMPTED else None
    placement = placement or next((p for p in PLACEMENTS if f"{name}_".startswith(f"{p}_")), None)
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
    if name in (*PROMPTED, "label_only"):
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
    if arm.placement == "label_only" or not arm.is_trained:
        return [label]
    reason = [("rationale", f" {rationale}")] if rationale else []
    if arm.placement == "post_cot":
        return [label, ("frame", "Reason:"), *reason]
    if arm.placement == "pre_cot":
        return [*reason, ("frame", "\nAnswer:"), label]
    raise DataError(f"unknown placement '{arm.placement}'; expected one of {', '.join(PLACEMENTS)}")


def write_shots(
    examples: list[Example], rationales: dict, asked_as: str, label_format: str = "text"
) -> str:
    """Write solved questions, as they stand above a question that a prompted student is asked.

    asked_as: label_only (the answer alone) or pre_cot (a rationale first). Each ends in an empty
    line.
    """
    shown = Arm(asked_as)
    texts = []
    for example in examples:
        pieces = format_target(example, rationales[example.id].text, shown, label_format)
        target = "".join(text for _, text in pieces)
        texts.append(f"{prompt_text(example, asked_as, label_format)}{target}\n")
    return "".join(texts)


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
