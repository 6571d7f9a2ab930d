"""Settle what kind of world is generated, and check it."""

from dataclasses import dataclass

from cotdistill.errors import DataError
from cotdistill.microworld.knowledge import WORLDS, knowledge


@dataclass(frozen=True)
class WorldSettings:
    """Hold the settings of a world.

    sizes            questions of each split
    rationale_only   share of test questions whose fact is in training rationales only, never a
                     label (the first of two steps, "the thing used for cutting bread", may be
                     asked). Default 0.3; strata a third
    label_seen       share of test questions whose fact is asked in training, in other words
                     (the first of two steps may be in a rationale); for the rest, training
                     states at least one of their facts nowhere. Default 0.35; strata a third
    mentions         everyday: how many training rationales state each rationale-only fact,
                     where there is room; 3, invented 8. strata: in exactly so many; 4
    unseen_concepts  share of concepts (everyday) or themes (relations) that no training
                     question is about
    two_step         everyday: share of questions that need two facts
    n_options        everyday: 2 to 5, or "mix"; relations always has two
    relations        everyday: the relations asked about; None: all of microworld.yaml
    concepts         strata: how many made-up things, a multiple of 3
    n_core           everyday, invented: draw the test questions separately from training. A
                     core of `n_core` training questions, the same for every n_train from n_core
                     on, teaches all that test asks, and each split has a generator of its own:
                     then no size changes the questions of another split. A core of 160 gives
                     600 test questions of everyday and more; the error says how many. None: the
                     splits share one generator, as in the studies published first

    What is said of everyday holds for invented too.

    strata: (concept, relation) is a fact, and its stratum `fact_in`; questions of one `fact` are a
    cluster. A training rationale states the fact asked and, before it, facts of the stratum
    "rationale" about the same concept. Facts of "label" are in no other rationale, those of
    "rationale" in no training question or label, those of "none" nowhere. Questions need one step;
    two_step and unseen_concepts have no effect. All options of a question are mentioned equally
    often in training rationales (where n_train is a multiple of concepts / 3; else give or take
    one). Names differ between seeds as long as the names last (65 seeds of 30 concepts).
    """

    sizes: dict[str, int]
    seed: int
    rationale_only: float
    label_seen: float
    mentions: int
    unseen_concepts: float = 0.15
    two_step: float = 0.4
    n_options: int | str = 4
    relations: list[str] | None = None
    concepts: int = 30
    n_core: int | None = None


def make_settings(part: str, sizes: dict[str, int | None], seed: int, **chosen) -> WorldSettings:
    """Fill in the defaults of a world, which depend on its part, and check the rest.

    Values of None, in `sizes` or `chosen`, mean the default. Raises DataError.
    """
    if part not in WORLDS:
        raise DataError(f"microworld part '{part}'; expected one of {', '.join(WORLDS)}")
    usual = {"train": 2000, "validation": 200, "test": 500}
    defaults = {"rationale_only": 0.3, "label_seen": 0.35, "mentions": 3}
    if part == "invented":
        defaults["mentions"] = 8
    if part == "strata":
        usual = {"train": 240, "validation": 32, "test": 600}
        defaults = {"rationale_only": 1 / 3, "label_seen": 1 / 3, "mentions": 4}
    sizes = {split: usual[split] if size is None else size for split, size in sizes.items()}
    given = {name: value for name, value in chosen.items() if value is not None}
    other = {"concepts": ["strata"], "mentions": ["everyday", "invented", "strata"]}
    for name, parts in other.items():
        if name in given and part not in parts:
            raise DataError(
                f"microworld/{part}: {name} is {given[name]}; it is a setting of "
                f"{', '.join(parts)}: expected it left out"
            )
    settings = WorldSettings(sizes=sizes, seed=seed, **defaults | given)
    _check_settings(part, settings)
    return settings


def _check_settings(part: str, settings: WorldSettings) -> None:
    """Raise DataError for a setting that is out of range or that the part does not have."""
    for name in ("rationale_only", "label_seen", "unseen_concepts", "two_step"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise DataError(f"microworld {name} is {value}; expected a share from 0 to 1")
    total = settings.rationale_only + settings.label_seen
    if total > 1:
        raise DataError(f"microworld rationale_only + label_seen is {total:g}; expected at most 1")
    if settings.n_options not in (2, 3, 4, 5, "mix"):
        raise DataError(
            f"microworld n_options is {settings.n_options!r}; expected 2, 3, 4, 5 or mix"
        )
    known = knowledge()["relations"]
    unknown = set(settings.relations or ()) - set(known)
    if unknown:
        raise DataError(f"microworld relations {sorted(unknown)}; expected some of {sorted(known)}")
    n_core, n_train = settings.n_core, settings.sizes["train"]
    if n_core is not None and (part not in ("everyday", "invented") or not 0 < n_core <= n_train):
        raise DataError(
            f"microworld/{part}: n_core is {n_core}, n_train {n_train}; expected a number from 1 "
            "to n_train, of everyday or invented"
        )
