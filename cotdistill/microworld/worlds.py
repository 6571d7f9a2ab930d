"""Draw a microworld of its own for each seed of a study, as one dataset."""

from dataclasses import replace

from cotdistill.examples import Dataset
from cotdistill.microworld.generate import draw_donors, generate
from cotdistill.microworld.knowledge import SPLITS

FIRST_OF_OWN = 10**6  # no study whose seeds share a world has so large a data_seed


def world_seed(data_seed: int, seed: int) -> int:
    """Return the number that draws the world of one seed: 1,000,000 + 1,000 x data_seed + seed.

    With seeds below 1,000 (`parameters.check_worlds`) no other study has it, whether its seeds
    share a world or not.
    """
    return FIRST_OF_OWN + 1000 * data_seed + seed


def make_world(part: str, seed: int, **settings) -> dict:
    """Generate a world with its donors, as the fields of a Dataset.

    Donors (id -> Rationale) are what a `swapped` arm of strata reads: rationales of another world,
    which state none of this one's facts. Other parts have none.
    """
    world = generate(part, seed=seed, **settings)
    if part == "strata":
        world["donors"] = draw_donors(world, part, seed, **settings)
    return world


def make_worlds(part: str, data_seed: int, seeds: list[int], **settings) -> Dataset:
    """Generate a world per seed and join them; what a seed's world is depends on no other seed.

    Ids get the world in front ("w3/everyday-test-00001"), and each question's `meta` its seed as
    "world". settings: as for `generate`. Raises DataError as that does.
    """
    joined = Dataset(f"microworld/{part}", [], [], [], {})
    for seed in seeds:
        world = make_world(part, world_seed(data_seed, seed), **settings)
        own = lambda key, seed=seed: f"w{seed}/{key}"
        for split in SPLITS:
            getattr(joined, split).extend(replace(e, id=own(e.id)) for e in world[split])
        for name in ("rationales", "donors"):
            rows = {own(key): replace(r, id=own(key)) for key, r in world.get(name, {}).items()}
            getattr(joined, name).update(rows)
        joined.meta.update({own(k): row | {"world": seed} for k, row in world["meta"].items()})
    return joined
