"""The sentences under the notebooks' tables and figures, one module per notebook.

Every function is pure: tables and numbers in, Markdown text out, and an empty text where there is
nothing to say. `common` holds what several notebooks say.
"""

from cotdistill.readings import (
    attribute,
    common,
    elicit,
    evaluate,
    figures,
    lab,
    lasting,
    mechanism,
    methods,
    quality,
    shuffle,
    tasks,
    train,
)
from cotdistill.readings.elicit import read_card

__all__ = [
    "attribute",
    "common",
    "elicit",
    "evaluate",
    "figures",
    "lab",
    "lasting",
    "mechanism",
    "methods",
    "quality",
    "read_card",
    "shuffle",
    "tasks",
    "train",
]
