"""Which arms a stage trains, from the parameters of its notebook."""

from cotdistill.arms import Arm, arm_from_name
from cotdistill.errors import DataError


def training_arms(
    arms: list[str],
    label_weights: list[float],
    also_losses: list[str],
    also_loss_arms: list[str],
) -> list[Arm]:
    """List notebook 02's arms: those named, post_cot with other label weights, and other losses.

    also_loss_arms: which of the named arms are trained under the other losses too. Raises DataError
    for one that is no intact placement.
    """
    grid = [arm_from_name(name) for name in arms]
    grid += [arm_from_name("post_cot", label_weight=w) for w in label_weights if w != 1]
    strange = next(
        (n for n in also_loss_arms if n not in ("label_only", "pre_cot", "post_cot")), ""
    )
    if strange:
        raise DataError(
            f"also_loss_arms: '{strange}'; expected some of label_only, pre_cot, post_cot"
        )
    names = [name for name in also_loss_arms if name in arms]
    return grid + [arm_from_name(name, loss=loss) for loss in also_losses for name in names]


def shuffled_arms(placements: list[str], units: list[str], fresh: bool) -> list[Arm]:
    """List notebook 04's shuffled rationales: each placement with each unit."""
    return [
        arm_from_name(f"{place}_shuffled", unit=unit, fresh=fresh)
        for place in placements
        for unit in units
    ]


def control_arms(placements: list[str], controls: list[str]) -> list[Arm]:
    """List notebook 04's controls: each placement with each control; empty names are ignored."""
    return [
        arm_from_name(f"{place}_{control}")
        for place in placements
        for control in filter(None, controls)
    ]


def key_token_arms(amounts: list[float], selectors: list[str]) -> list[Arm]:
    """List notebook 05's arms of key tokens: post_cot with each amount that a selector keeps."""
    return [
        arm_from_name("post_cot_kept", amount=amount, selector=selector)
        for amount in amounts
        for selector in selectors
    ]


def masked_arms(
    placements: list[str], orders: list[str], shares: list[float], fill: str, selector: str
) -> list[Arm]:
    """List notebook 05's masked rationales.

    selector: it orders tokens where the order is not random.
    """
    return [
        arm_from_name(
            f"{place}_masked",
            amount=share,
            order=order,
            fill=fill,
            selector="random" if order == "random" else selector,
        )
        for place in placements
        for order in orders
        for share in shares
    ]
