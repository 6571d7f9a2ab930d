"""Draw any finished study's accuracies again: choose the study, the arms and the measure."""

import html

import ipywidgets as w
import matplotlib.pyplot as plt
from IPython.display import HTML, display

from cotdistill import plots, stats
from cotdistill.errors import DataError
from cotdistill.paths import artifacts
from cotdistill.runs.results import completed_stages, load_predictions
from cotdistill.study import Study


def finished_studies() -> list[str]:
    """List the studies in artifacts/ whose notebook 02 has run."""
    return sorted(path.parent.name for path in (artifacts() / "studies").glob("*/train.json"))


def replot() -> w.Widget:
    """Draw any finished study's accuracies: choose the study, the arms and the measure."""
    names = finished_studies()
    if not names:
        return w.HTML(
            "No study has run here yet: <code>make smoke</code> makes one in two minutes."
        )
    study = w.Dropdown(options=names, description="study")
    measure = w.Dropdown(
        options=[(name, measure) for measure, name in stats.MEASURE_NAMES.items()],
        description="measure",
    )
    arms, out, loaded = (
        w.SelectMultiple(description="arms", rows=8, layout=w.Layout(width="420px")),
        w.Output(),
        {},
    )

    def load(*_):
        try:
            loaded_study = Study.load(study.value)
            loaded["chance"] = loaded_study.chance
            loaded["rows"] = load_predictions(loaded_study, completed_stages(loaded_study))
        except DataError as error:  # runs that are missing or damaged: say which
            loaded.pop("rows", None)
            out.clear_output()
            with out:
                display(HTML(f"<b>{html.escape(str(error))}</b>"))
            return
        arms.options = list(dict.fromkeys(loaded["rows"]["arm"]))
        arms.value = tuple(arms.options)

    def draw(*_):
        if not arms.value or "rows" not in loaded:
            return
        rows = loaded["rows"][loaded["rows"]["arm"].isin(arms.value)]
        accuracies = stats.accuracy_table(rows, measure.value)
        out.clear_output()
        with out:
            ax = plots.placement_bars(accuracies, chance=loaded["chance"], arms=list(arms.value))
            display(ax.figure)
            plt.close(ax.figure)

    study.observe(load, "value")
    arms.observe(draw, "value")
    measure.observe(draw, "value")
    load()
    return w.VBox([w.HBox([study, measure]), arms, out])
