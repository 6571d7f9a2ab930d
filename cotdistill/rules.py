"""The rules by which claims are judged: from an effect to a p value, a verdict and its words.

A new rule is one entry of RULES; claims.yaml then names it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cotdistill.inference import Effect, equivalence_p, one_sided_p, two_sided_p


def _judge_side(effect: Effect, null: float, direction: str) -> tuple[float, str]:
    """Return the two-sided p at `null`; the side on which the estimate lies decides."""
    above = bool(effect.estimate > null)
    agrees = above != (direction == "less")
    return float(two_sided_p(effect, null)), "supported" if agrees else "contradicted"


def _judge_equivalence(effect: Effect, margin: float, direction: str) -> tuple[float, str]:
    """Judge equivalence by two one-sided tests (TOST, Schuirmann 1987).

    Support has the p of TOST, contradiction twice the one-sided p beyond the nearer margin. The
    smaller of the two counts: at most one of the two null hypotheses is true, so each keeps
    its level.
    """
    inside = float(equivalence_p(effect, margin))
    above = one_sided_p(effect, margin)
    below = one_sided_p(effect, -margin, above=False)
    beyond = min(1.0, 2 * float(min(above, below)))
    return (inside, "supported") if inside <= beyond else (beyond, "contradicted")


def _side_words(estimate: float, null: float, name: str) -> tuple[str, str]:
    return f"{'above' if estimate > null else 'below'} {name}", f"not told apart from {name}"


def _equivalence_words(estimate: float, margin: float) -> tuple[str, str]:
    name = f"±{100 * margin:g} points"
    return (
        f"shown to lie {'within' if abs(estimate) <= margin else 'beyond'} {name}",
        f"shown to lie neither within nor beyond {name}",
    )


@dataclass(frozen=True)
class Rule:
    """How a claim of one kind is judged, and in which words.

    directions    what `direction` may be in claims.yaml
    judge         (effect, margin, direction) -> (p, the verdict that a small p brings)
    words         (estimate, margin) -> (what a small p shows, what a large one leaves open)
    side          (margin, direction) -> from where to where an estimate supports the claim
    needs_margin  whether the claim states a margin above 0; the other rules have margin 0
    arms          the arms of its contrast: "ab" is a - b, "abcd" is (a - b) - (c - d)
    sign          what stands before the margin in a table
    """

    directions: tuple[str, ...]
    judge: Callable[[Effect, float, str], tuple[float, str]]
    words: Callable[[float, float], tuple[str, str]]
    side: Callable[[float, str], tuple[float, float]]
    needs_margin: bool = False
    arms: str = "ab"
    sign: str = ""


DIFFERENCE = Rule(
    directions=("greater", "less"),
    judge=lambda effect, margin, direction: _judge_side(effect, 0.0, direction),
    words=lambda estimate, margin: _side_words(estimate, 0.0, "0"),
    side=lambda margin, direction: (-np.inf, 0.0) if direction == "less" else (0.0, np.inf),
)
RULES = {
    "difference": DIFFERENCE,
    "interaction": replace(DIFFERENCE, arms="abcd"),
    "equivalence": Rule(
        directions=("equal",),
        judge=_judge_equivalence,
        words=_equivalence_words,
        side=lambda margin, direction: (-margin, margin),
        needs_margin=True,
        sign="±",
    ),
    "noninferiority": Rule(
        directions=("not_less",),
        judge=lambda effect, margin, direction: _judge_side(effect, -margin, direction),
        words=lambda estimate, margin: _side_words(estimate, -margin, f"-{100 * margin:g} points"),
        side=lambda margin, direction: (-margin, np.inf),
        needs_margin=True,
        sign="-",
    ),
}
