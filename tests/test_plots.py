"""Figures: they show the numbers of their table, say their units, survive greyscale, and are
written as PDF and PNG.
"""

import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cotdistill import arms, forest_plot, plots
from cotdistill.arms import ARMS, CORRUPTIONS, Corruption


@pytest.fixture(autouse=True)
def clean():
    plots.set_style()
    yield
    plt.close("all")


def accuracy_table():
    values = {
        "zero_shot": 0.28,
        "label_only": 0.40,
        "pre_cot": 0.41,
        "post_cot": 0.47,
        "pre_cot_shuffled[token]": 0.33,
        "post_cot_shuffled[token]": 0.46,
        "post_cot_swapped": 0.41,
        "post_cot_filler": 0.4,
        "post_cot_masked[50%,random]": 0.45,
        "post_cot_masked[100%,random]": 0.4,
        "post_cot_masked[50%,most:integrated_gradients]": 0.43,
        "post_cot_masked[100%,most:integrated_gradients]": 0.39,
        "post_cot_kept[15,integrated_gradients]": 0.47,
        "post_cot_kept[15,random]": 0.43,
    }
    return pd.DataFrame(
        [
            dict(
                arm=a,
                n=500,
                seeds=1 if a == "zero_shot" else 3,
                accuracy=v,
                low=v - 0.03,
                high=v + 0.02,
                tokens_per_question=40.0 if a.startswith("pre") else 3.0,
            )
            for a, v in values.items()
        ]
    )


def verdict_table(study="quick", seeds=3):
    rows = [
        ("one", 0.05, 0.01, 0.09, "supported", "difference", 0.0, "correct_choice"),
        ("two", -0.01, -0.05, 0.03, "inconclusive", "equivalence", 0.02, "correct_choice"),
        ("three", np.nan, np.nan, np.nan, "not measured", "difference", 0.0, "correct_choice"),
        ("four", 9.0, 8.0, 10.0, "supported", "difference", 0.0, "correct_per_100_tokens"),
    ]
    return pd.DataFrame(
        [
            dict(
                study=study,
                claim=c,
                words=f"This is claim {c}, in words that need two lines of print.",
                contrast="" if v == "not measured" else "post_cot − pre_cot",
                estimate=e,
                low=low,
                high=high,
                verdict=v,
                rule=r,
                margin=m,
                measure=me,
                seeds=pd.NA if v == "not measured" else seeds,
            )
            for c, e, low, high, v, r, m, me in rows
        ]
    )


def history():
    return pd.DataFrame(
        [
            dict(
                study="q",
                arm=arm,
                seed=seed,
                epoch=k / 2,
                step=10 * k,
                loss=3.0 / (k + 1) + seed,
                label_loss=1.0,
                rationale_loss=np.nan,
                validation_accuracy=0.3 + 0.02 * k if k % 2 else pd.NA,
            )
            for arm in ("label_only", "pre_cot", "post_cot_filler")
            for seed in (0, 1)
            for k in range(8)
        ]
    )


def curves():
    return pd.DataFrame(
        [
            dict(method=m, fraction=f, value=-f * n, low=-f * n - 0.1, high=-f * n + 0.1)
            for n, m in enumerate(["random", "occlusion", "saliency"], 1)
            for f in np.linspace(0, 1, 6)
        ]
    )


METHODS = ["integrated_gradients", "occlusion", "random"]
FIGURES = {
    "placement_bars": lambda: plots.placement_bars(accuracy_table(), 0.25),
    "shuffle_plot": lambda: plots.shuffle_plot(accuracy_table(), 0.25),
    "masking_curves": lambda: plots.masking_curves(accuracy_table(), 0.25),
    "key_tokens_bars": lambda: plots.key_tokens_bars(accuracy_table(), 0.25),
    "learning_curves": lambda: plots.learning_curves(history()),
    "forest": lambda: plots.forest(verdict_table()),
    "forest_pooled": lambda: plots.forest(
        pd.concat([verdict_table(), verdict_table("probe", 1)]),
        pd.DataFrame(
            [dict(claim="one", studies=2, estimate=0.05, low=0.02, high=0.08, verdict="supported")]
        ),
    ),
    "cost_against_accuracy": lambda: plots.cost_against_accuracy(accuracy_table(), 0.25),
    "token_heatmap": lambda: plots.token_heatmap(
        [" The", " ice", " melts", "\n", " so", " water"], [0, 1, -2, 0, 0.1, 3], "t"
    ),
    "agreement_matrix": lambda: plots.agreement_matrix(pd.DataFrame(np.eye(3), METHODS, METHODS)),
    "deletion_curves": lambda: plots.deletion_curves(curves()),
}
UNITS = ("%", "points", "nats", "steps")


@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FIGURES)
def test_draws_and_saves(name, tmp_path):
    ax = FIGURES[name]()
    pdf, png = plots.save(ax.figure, tmp_path / "figures" / f"{name}.v1")
    assert (
        pdf.name == f"{name}.v1.pdf"
        and pdf.read_bytes().startswith(b"%PDF")
        and png.read_bytes()[1:4] == b"PNG"
    )
    pixels = plt.imread(png)
    assert min(pixels.shape[:2]) > 100 and pixels[..., :3].std() > 0.01
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])[:, :3]
    assert (edge == 1).all(), "something is cut at the edge"
    if name not in ("token_heatmap", "agreement_matrix"):
        assert any(u in ax.get_xlabel() for u in (*UNITS, "questions")), ax.get_xlabel()
        assert name.startswith("forest") or any(u in ax.get_ylabel() for u in UNITS), (
            ax.get_ylabel()
        )


@pytest.mark.parametrize("name", FIGURES)
def test_no_two_labels_overlap(name):
    ax = FIGURES[name]()
    ax.figure.canvas.draw()
    texts = [
        t
        for t in [
            *ax.get_xticklabels(),
            *ax.get_yticklabels(),
            *ax.texts,
            ax.xaxis.label,
            ax.yaxis.label,
            *(ax.get_legend().get_texts() if ax.get_legend() else []),
        ]
        if t.get_text().strip()
    ]
    # Slanted labels: their boxes overlap, their ink does not
    if name == "agreement_matrix":
        texts = [t for t in texts if not t.get_rotation()]
    boxes = [(t.get_text(), t.get_window_extent().padded(-1.5)) for t in texts]
    for i, (text, box) in enumerate(boxes):
        for other_text, other in boxes[i + 1 :]:
            assert not box.overlaps(other), f"{text!r} over {other_text!r}"


def test_bars_show_the_table():
    table = accuracy_table().set_index("arm")
    ax = plots.placement_bars(accuracy_table(), 0.25)
    bars = [p for p in ax.patches if p.get_height() > 0]
    assert [b.get_height() for b in bars] == pytest.approx(
        [100 * table.loc[a, "accuracy"] for a in plots.LOOKS]
    )
    assert [t.get_text() for t in ax.texts] == ["28.0", "40.0", "41.0", "47.0"]
    ends = ax.containers[-1].lines[2][0].get_segments()
    assert [tuple(e[:, 1]) for e in ends] == [
        pytest.approx((100 * table.loc[a, "low"], 100 * table.loc[a, "high"])) for a in plots.LOOKS
    ]
    assert ax.get_ylim()[0] == 0 and "500 test questions, 3 seeds" in ax.get_xlabel()


@pytest.mark.parametrize("name", ["shuffle_plot", "masking_curves", "key_tokens_bars"])
def test_reference_lines(name):
    ax = FIGURES[name]()
    heights = {
        x.get_label(): x.get_ydata()[0]
        for x in ax.lines
        if x.get_label() in ("chance", "label_only")
    }
    assert heights == pytest.approx(dict(chance=25, label_only=40))
    assert {t.get_text() for t in ax.get_legend().get_texts()} >= {"chance", "label_only"}


@pytest.mark.parametrize(
    "name", ["placement_bars", "shuffle_plot", "cost_against_accuracy", "key_tokens_bars"]
)
def test_every_interval_is_inside_the_axes(name):
    ax = FIGURES[name]()
    low, high = ax.get_ylim()
    ends = [
        y
        for c in ax.containers
        if hasattr(c, "lines")
        for s in c.lines[2][0].get_segments()
        for y in s[:, 1]
    ]
    assert len(ends) >= 6 and low < min(ends) and max(ends) < high


def test_masking_starts_at_the_intact_arm():
    line = next(
        x
        for x in plots.masking_curves(accuracy_table()).lines
        if x.get_label() == "post_cot, random"
    )
    assert list(line.get_xdata()) == [0, 50, 100] and list(line.get_ydata()) == pytest.approx(
        [47, 45, 40]
    )


def test_learning_curve_is_the_mean_of_the_seeds():
    line = plots.learning_curves(history(), "loss").lines[0]
    assert list(line.get_ydata()) == pytest.approx([3.0 / (k + 1) + 0.5 for k in range(8)])
    # Only where it was measured
    assert len(plots.learning_curves(history()).lines[0].get_xdata()) == 4


def test_forest_shows_estimates_and_what_is_missing():
    texts = [t.get_text() for t in plots.forest(verdict_table()).texts]
    assert "+5.0 (+1.0 to +9.0)" in texts and "not measured" in texts
    # Other units are left out
    assert not any("+900" in t for t in texts)


def test_heatmap_needs_a_score_for_each_token():
    with pytest.raises(ValueError, match="2 tokens and 1 scores"):
        plots.token_heatmap(["a", "b"], [1.0])


def test_arms_differ_without_colour():
    looks = [(hatch, marker, str(dashes)) for _, hatch, marker, dashes in plots.LOOKS.values()]
    assert len({m for _, m, _ in looks}) == len({d for _, _, d in looks}) == len(looks)
    grey = [
        np.dot(matplotlib.colors.to_rgb(c[0]), (0.299, 0.587, 0.114)) for c in plots.LOOKS.values()
    ]
    pairs = [
        (abs(grey[i] - grey[j]), looks[i][0] != looks[j][0]) for i in range(4) for j in range(i)
    ]
    assert all(distance > 0.08 or hatched for distance, hatched in pairs)
    assert len({m for _, m in plots.VERDICTS.values()}) == len(plots.VERDICTS)
    assert all(
        len(set(map(str, x))) == len(plots.CYCLE)
        for x in (plots.MARKERS, plots.DASHES, plots.HATCHES)
    )


def test_equal_figures_are_equal_files(tmp_path):
    files = [plots.save(FIGURES["placement_bars"]().figure, tmp_path / str(n)) for n in (1, 2)]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=False))


def test_imports_no_torch():
    code = "import sys, cotdistill.plots, cotdistill.stats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_new_arm_is_in_its_figure_by_itself(monkeypatch):
    """One entry of the table, and nothing else, puts an arm into the figure of its kind."""
    entries = {
        "scrambled": Corruption(),
        "blanked": Corruption(("amount",), (), lambda arm: [f"{100 * arm.amount:g}%"], "masking"),
        "picked": Corruption(("amount",), (), lambda arm: [f"{arm.amount:g}"], "key_tokens"),
    }
    for module in (arms, plots):
        monkeypatch.setattr(module, "CORRUPTIONS", CORRUPTIONS | entries)
    monkeypatch.setattr(arms, "ARMS", (*ARMS, *(f"post_cot_{name}" for name in entries)))
    new = [
        "post_cot_scrambled",
        "post_cot_blanked[50%]",
        "post_cot_picked[5]",
        "post_cot[loss=token_mean]",
        "post_cot[label_weight=8]",
    ]
    table = accuracy_table()
    rows = [
        table.iloc[3].to_dict() | dict(arm=arm, accuracy=0.30 + i / 100, low=0.29, high=0.4)
        for i, arm in enumerate(new)
    ]
    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    ticks = lambda ax: [t.get_text().replace("\n", " ") for t in ax.get_xticklabels()]
    assert "scrambled" in ticks(plots.shuffle_plot(table))
    assert "post_cot, blanked" in {x.get_label() for x in plots.masking_curves(table).lines}
    assert "picked 5" in ticks(plots.key_tokens_bars(table)) and "15, random" in ticks(
        plots.key_tokens_bars(table)
    )
    ax = plots.placement_bars(table)
    assert (
        ticks(ax)[-2:] == ["post_cot loss=token mean", "post_cot label weight=8"]
        and len(ticks(ax)) == 6
    )
    assert (
        len({str(b.get_hatch()) + str(b.get_facecolor()) for b in ax.patches if b.get_height() > 0})
        == 6
    )
    legend = {t.get_text() for t in plots.cost_against_accuracy(table).get_legend().get_texts()}
    assert {"post_cot[loss=token_mean]", "post_cot[label_weight=8]", "post_cot"} <= legend


def with_seeds(table, spread=0.02):
    """The table with what each seed gave: the mean, below it and above it."""
    column = "accuracy" if "accuracy" in table else "estimate"
    steps = lambda n: np.linspace(-spread, spread, int(n)) if pd.notna(n) else []
    return table.assign(
        by_seed=[
            [m + d for d in steps(n)] for m, n in zip(table[column], table["seeds"], strict=True)
        ]
    )


@pytest.fixture(params=[False, True], ids=["page", "phone"])
def narrow(request):
    plots.set_style(request.param)
    return request.param


def seed_dots(ax):
    """Where the small white dots are: (x, y) of all."""
    lines = [x for x in ax.lines if x.get_marker() == "o" and x.get_markerfacecolor() == "white"]
    return [(x, y) for line in lines for x, y in zip(*line.get_data(), strict=True)]


@pytest.mark.parametrize("name", ["placement_bars", "shuffle_plot", "key_tokens_bars"])
def test_every_seed_is_a_dot(name, narrow):
    table = with_seeds(accuracy_table())
    ax = getattr(plots, name)(table, 0.25)
    dots = sorted(round(dot[0 if narrow else 1], 6) for dot in seed_dots(ax))
    shown = [a for a in table["arm"] if a != "zero_shot"]
    if name == "placement_bars":
        shown = [a for a in shown if a in plots.LOOKS]
    elif name == "shuffle_plot":
        shown = [a for a in shown if "[15" not in a and "masked" not in a and a != "label_only"]
    else:
        shown = ["post_cot", *(a for a in shown if "[15" in a)]
    means = table.set_index("arm").loc[shown, "accuracy"]
    assert dots == pytest.approx(sorted(100 * (m + d) for m in means for d in (-0.02, 0, 0.02)))


def test_two_seeds_are_two_dots_and_no_interval():
    table = with_seeds(accuracy_table().assign(seeds=2))
    ax = plots.placement_bars(table)
    assert len(seed_dots(ax)) == 8 and "dots: seeds" in ax.get_xlabel()
    assert not [c for c in ax.containers if hasattr(c, "lines")], "an interval of two seeds"
    # Where the seeds' values are not known, the interval is all there is
    ax = plots.placement_bars(accuracy_table().assign(seeds=2))
    assert [c for c in ax.containers if hasattr(c, "lines")]


def test_numbers_stand_beyond_intervals_and_dots(narrow):
    table = with_seeds(accuracy_table(), spread=0.06)
    ax = plots.placement_bars(table, 0.25)
    ax.figure.canvas.draw()
    rows = table.set_index("arm").loc[list(plots.LOOKS)]
    for text, (arm, row) in zip(ax.texts, rows.iterrows(), strict=True):
        dots = row["by_seed"] if row["seeds"] > 1 else []
        top = 100 * max(row["high"], *dots, 0)
        box = text.get_window_extent().transformed(ax.transData.inverted())
        assert (box.x0 if narrow else box.y0) > top, arm


PHONE_FIGURES = [n for n in FIGURES if n != "agreement_matrix"]


@pytest.mark.parametrize("name", PHONE_FIGURES)
def test_a_phone_has_figures_of_its_own(name, tmp_path):
    plots.set_style(narrow=True)
    ax = FIGURES[name]()
    ax.figure.canvas.draw()
    assert ax.figure.get_figwidth() == pytest.approx(3.9)
    texts = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label]
    sizes = [t.get_fontsize() for t in texts if t.get_text().strip()]
    assert min(sizes) >= 7, "smaller than 9.7 CSS pixels"
    _, png = plots.save(ax.figure, tmp_path / name)
    # Nothing is wider than the phone: 390 CSS pixels at 200 dots an inch
    assert plt.imread(png).shape[1] <= 3.95 * 200 + 20


def test_show_figure_saves_a_version_for_phones_and_no_empty_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    plots.show_figure(tmp_path, "placement", accuracy_table(), chance=0.25)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "placement-phone.png",
        "placement.pdf",
        "placement.png",
    ]
    plots.show_figure(tmp_path, "deletion", curves()[:0])
    assert not (tmp_path / "figures" / "deletion.png").exists()


def test_curves_start_at_zero_and_no_panel_is_empty():
    for ax in (plots.learning_curves(history()), plots.deletion_curves(curves())):
        assert ax.get_xlim()[0] == 0
    assert plots.learning_curves(history()).get_ylim()[0] == 0
    assert plots.masking_curves(accuracy_table()).get_ylim()[0] == 0
    assert len(plots.training_curves(history()).axes) == 2
    unchecked = history().assign(validation_accuracy=pd.NA)
    assert len(plots.training_curves(unchecked).axes) == 1
    only_post = history()[history()["arm"] != "pre_cot"]
    assert len(plots.curves_by_placement(history()).axes) == 2
    assert len(plots.curves_by_placement(only_post).axes) == 1


def test_a_quantity_has_one_colour_map():
    maps = []
    for matrix in (np.eye(3), -np.ones((3, 3))):
        mesh = plots.agreement_matrix(pd.DataFrame(matrix, METHODS, METHODS)).collections[0]
        maps.append((mesh.get_cmap().name, mesh.get_clim()))
    assert maps == [("PuOr", (-1, 1))] * 2


@pytest.mark.parametrize(
    ("claim", "rule", "side"),
    [
        ("post_beats_pre", "difference", (0, np.inf)),
        ("shuffle_hurts_pre", "difference", (-np.inf, 0)),
        ("shuffle_spares_post", "equivalence", (-2, 2)),
        ("no_reasoning_costs_nothing", "noninferiority", (-2, np.inf)),
        ("unknown", "difference", (0, np.inf)),
    ],
)
def test_the_side_that_supports_a_claim(claim, rule, side):
    assert forest_plot.supporting_side(claim, rule, 0.02) == side


def test_forest_draws_seeds_verdicts_and_families(narrow):
    table = with_seeds(verdict_table())
    table["verdict"] = ["supported", "contradicted", "not measured", "supported"]
    ax = plots.forest(table.assign(family=["mechanism", "paper", "paper", "cost"]))
    texts = [t.get_text() for t in ax.texts]
    paper, ours = (texts.index(forest_plot.FAMILIES[f]) for f in ("paper", "mechanism"))
    assert paper < ours and forest_plot.FAMILIES["cost"] not in texts
    colours = {x.get_color() for x in ax.lines}
    assert {plots.VERDICTS["supported"][0], plots.VERDICTS["contradicted"][0]} <= colours
    assert sorted(x for x, _ in seed_dots(ax)) == pytest.approx([-3, -1, 1, 3, 5, 7])
    legend = {t.get_text() for t in ax.get_legend().get_texts()}
    assert {"supported", "contradicted", "one seed", "supports the claim"} <= legend
    # A table without families or seeds is drawn as well
    assert forest_plot.FAMILIES["paper"] not in [t.get_text() for t in plots.forest(table).texts]


def test_an_interval_of_two_seeds_does_not_stretch_the_axis():
    table = with_seeds(verdict_table(seeds=2)[:2]).assign(low=-0.9, high=0.9)
    assert plots.forest(table).get_xlim()[1] < 10
    assert plots.forest(table.assign(seeds=3)).get_xlim()[1] > 90
