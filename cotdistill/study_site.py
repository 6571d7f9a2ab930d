"""Studies as a static site: a page per study, and one over all that are published.

It opens without Jupyter and without a network, and is made without a kernel: figures are drawn from
verdicts.json, notebooks are shown as they were executed. The page is templates/site.html.
"""

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from cotdistill.arms import PROMPTED
from cotdistill.errors import DataError
from cotdistill.files import atomic_write, read_json, remove_stale_parts, temporary_path
from cotdistill.forest_plot import FAMILIES, supporting_side
from cotdistill.gallery import load_gallery
from cotdistill.notebook_pages import CAPTIONS, notebook_html, picture
from cotdistill.paths import ALL_NOTEBOOKS, artifacts, study_dir
from cotdistill.pooling import (
    KINDS,
    Pool,
    choose_records,
    count_seeds,
    make_pools,
    pooled_table,
)
from cotdistill.report import (
    pool_pictures,
    readme_pool,
    readme_records,
    readme_rows,
    whole_record,
)
from cotdistill.show import percent
from cotdistill.verdicts import DECIDED, DIFFERENCES

ALL = "all"  # the site over every published study
OLD_UNIT = "correct_per_100_tokens"  # not in points


@dataclass(frozen=True)
class Place:
    """Hold what a study's page is made from, and where it goes.

    folder: of the executed notebooks; home: the address of the page over all studies, or empty.
    """

    study: str
    folder: Path
    out: Path
    home: str = ""

    @property
    def notebooks(self) -> list[str]:
        """List the notebooks that were executed, in order."""
        names = ALL_NOTEBOOKS.values()
        return [name for name in names if (self.folder / f"{name}.ipynb").is_file()]

    @property
    def links(self) -> list[tuple[str, str]]:
        """List name and address of every page, for the navigation bar."""
        first = [("All studies", self.home)] if self.home else []
        pages = [(name.replace("_", " "), f"{name}.html") for name in self.notebooks]
        return [*first, (self.study, "index.html"), *pages]


@functools.cache
def _template():
    """Load templates/site.html; what is put into it is escaped unless it is `Markup`."""
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("site.html")


def render_page(kind: str, title: str, links: list[tuple[str, str]], **content) -> str:
    """Render a whole page with the navigation bar; readable at a phone's width.

    kind: "notebook" (content: body), "study" (of `study_page`) or "all" (of `overview`). links:
    (name, address).
    """
    from pygments.formatters import HtmlFormatter

    highlight = Markup(HtmlFormatter().get_style_defs(".highlight"))
    return _template().render(kind=kind, title=title, links=links, highlight=highlight, **content)


def _html_table(rows: list[dict]) -> Markup:
    table = pd.DataFrame(rows).to_html(index=False, border=0, na_rep="–", escape=True)
    return Markup('<div class="scroll">') + Markup(table) + Markup("</div>")


def load_record(study: str, folder: Path) -> dict | None:
    """Load a study's verdicts.json: of published evidence the one beside its notebooks.

    A study that ran here may have been judged again since (`make verdicts`), so the artifacts come
    first. None where it was not judged.
    """
    paths = [folder / "verdicts.json", study_dir(study) / "verdicts.json"]
    for path in reversed(paths) if artifacts() in folder.parents else paths:
        if path.is_file():
            return whole_record(read_json(path, f"`make figures STUDY={study}`"), path, study)
    return None


def write_points(row: dict) -> str:
    """Write an estimate in words: "+3.1 points, 95 % interval −2.0 to +8.3"."""
    if row["measure"] == OLD_UNIT:
        values, unit = (f"{row[c]:+.1f}" for c in ("estimate", "low", "high")), "per 100 tokens"
    else:
        values, unit = (f"{100 * row[c]:+.1f}" for c in ("estimate", "low", "high")), "points"
    estimate, low, high = (value.replace("-", "−") for value in values)
    return f"{estimate} {unit}, 95 % interval {low} to {high}"


def name_origin(row: dict) -> str:
    """Say whose claim it is: the paper's, with the place, or ours."""
    section = row.get("section") or ""
    if section.startswith("abstract"):
        return f"claimed by the paper ({section})"
    return "a claim of our own"


def claim_cards(record: dict) -> list[dict]:
    """Describe each measured claim for its card, the families one after the other."""
    rows = [row for row in record["verdicts"] if row["estimate"] is not None]
    order = [*FAMILIES, *sorted({row.get("family") or "" for row in rows} - set(FAMILIES))]
    rows.sort(key=lambda row: order.index(row.get("family") or ""))
    drawn = [row for row in rows if row["measure"] != OLD_UNIT]
    ends = [abs(100 * row[c]) for row in drawn for c in ("estimate", "low", "high")]
    reach = min(max([6.0, *ends]) * 1.05, 30.0)
    cards, family = [], ""
    for row in rows:
        heading = row.get("family") or ""
        cards.append(
            {
                "words": row["words"],
                "verdict": row["verdict"],
                "heading": FAMILIES.get(heading, heading) if heading != family else "",
                "estimate": write_points(row),
                "strip": draw_strip(row, reach) if row["measure"] != OLD_UNIT else "",
                "size": f"{row['n']:,} questions, {count(row['seeds'], 'seed')}",
                "origin": name_origin(row),
                "contrast": row["contrast"],
                "reason": row["reason"],
                "needed": row.get("needed") or "",
                "retained": row.get("retained") or "",
                "detectable": _write_detectable(row),
            }
        )
        family = heading
    return cards


def _write_detectable(row: dict) -> str:
    """Write the smallest effect that the study would find, where the record says it (fraction).

    Only claims that arms differ have one.
    """
    value = row.get("detectable") if row.get("rule") in DIFFERENCES else None
    return f"{100 * value:.1f} points" if isinstance(value, (int, float)) else ""


def count(number: int, noun: str) -> str:
    """Write a number with its noun: "1 seed", "3 seeds"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def draw_strip(row: dict, reach: float) -> Markup:
    """Draw one claim's interval as a small SVG: shade where it is supported, a dot per seed.

    reach: points from the middle to each end; what goes beyond is cut there.
    """
    place = lambda value: round(150 + 148 * max(-reach, min(reach, value)) / reach, 1)
    low, estimate, high = (place(100 * row[c]) for c in ("low", "estimate", "high"))
    side = [place(v) for v in supporting_side(row["claim"], row["rule"], row["margin"])]
    seeds = row.get("by_seed") or []
    dots = [place(100 * value) for value in seeds] if len(seeds) > 1 else []
    parts = [
        f'<rect class="side" x="{side[0]}" y="2" width="{side[1] - side[0]:.1f}" height="30"/>',
        '<line class="zero" x1="150" x2="150" y1="2" y2="32"/>',
        f'<line class="interval" x1="{low}" x2="{high}" y1="14" y2="14"/>',
        f'<circle class="estimate" cx="{estimate}" cy="14" r="4.5"/>',
        *(f'<circle class="seed" cx="{x}" cy="26" r="2.6"/>' for x in dots),
    ]
    label = f"{write_points(row)}; scale from −{reach:.0f} to +{reach:.0f} points"
    return Markup('<svg class="strip" viewBox="0 0 300 34" role="img" aria-label="{}">').format(
        label
    ) + Markup("".join(parts) + "</svg>")


def draw_figures(record: dict, folder: Path, chance: float | None) -> list[dict]:
    """Draw a study's figures from its verdicts alone, for a page and for a phone.

    chance: where it is known, it is drawn. Returns name and markup of each, the forest plot first.
    """
    from cotdistill import plots

    forced, written = (pd.DataFrame(record[c]) for c in ("accuracy", "accuracy_written"))
    judged = pd.DataFrame(record["verdicts"])
    judged = judged[judged["estimate"].notna()]
    tables = {"forest": judged[judged["measure"] != OLD_UNIT], "placement": forced}
    for name in ("shuffle", "key_tokens", "masking"):
        if len(plots.drawn(forced, name)):
            tables[name] = forced
    tables["cost"] = written[~written["arm"].isin(PROMPTED)]
    return [
        draw_picture(
            name,
            table,
            folder,
            alt=_describe(name, table),
            **({} if name == "forest" else {"chance": chance}),
        )
        for name, table in tables.items()
        if len(table)
    ]


def draw_picture(
    name: str, table: pd.DataFrame, folder: Path, *, alt: str, stem: str = "", **options
) -> dict:
    """Draw one figure as SVG for a page and for a phone; returns its name and markup.

    stem: of its files, its name unless given.
    """
    import matplotlib.pyplot as plt

    from cotdistill import plots
    from cotdistill.figure_style import save_as

    for narrow, suffix in ((False, ""), (True, "-phone")):
        figure = plots.draw_figure(name, table, narrow=narrow, **options)
        save_as(figure, folder / f"{stem or name}{suffix}.svg")
        plt.close(figure)
    paths = (f"{folder.name}/{stem or name}.svg", f"{folder.name}/{stem or name}-phone.svg")
    return {"name": name, "markup": picture(*paths, alt, CAPTIONS[name])}


def _describe(name: str, table: pd.DataFrame) -> str:
    """Describe a figure in words, for those who do not see it: its numbers."""
    if name == "forest":
        rows = [f"{r['words']} {write_points(r)}: {r['verdict']}" for r in table.to_dict("records")]
        return "Forest plot. " + "; ".join(rows)
    rows = [f"{row['arm']} {percent(row)}" for row in table.to_dict("records")]
    return f"{name.replace('_', ' ').capitalize()}: accuracy with 95 % interval of " + ", ".join(
        rows
    )


def _accuracy_rows(record: dict) -> list[dict]:
    """Write the accuracies of verdicts.json as text, a row per arm, by both measures."""
    return [
        {
            "arm": forced["arm"],
            "questions": forced["n"],
            "seeds": forced["seeds"],
            "forced choice": percent(forced),
            "written answer": percent(written),
            "parse failures": f"{forced['parse_failures']} of {forced['answers']}",
            "tokens per answer": f"{forced['tokens_per_question']:.1f}",
        }
        for forced, written in zip(record["accuracy"], record["accuracy_written"], strict=True)
    ]


def study_page(place: Place, record: dict | None, figures: list[dict]) -> dict:
    """Collect what a study's first page shows; names of the template."""
    seconds = [
        {"notebook": name, "wall time": _wall_time(place.folder / f"{name}.ipynb")}
        for name in place.notebooks
    ]
    card = study_dir(place.study) / "data_card.csv"
    content = {
        "study": place.study,
        "record": record,
        "figures": figures,
        "notebooks": _html_table(seconds),
        "data_card": _html_table(pd.read_csv(card).round(2).to_dict("records"))
        if card.is_file()
        else "",
        "gallery": load_gallery(place.study, place.folder),
        "cards": [],
        "summary": "",
    }
    if record:
        about = record["provenance"] | _settings(place.study)
        content |= {
            "cards": claim_cards(record),
            "missing": [v["words"] for v in record["verdicts"] if v["estimate"] is None],
            "summary": summarise(record),
            "accuracy": _html_table(_accuracy_rows(record)),
            "run_card": _html_table([{"what": k, "value": v} for k, v in about.items()]),
        }
    return content


def _chance(study: str) -> float | None:
    """Return the accuracy of guessing, where the study ran on this machine."""
    if not (study_dir(study) / "base.json").is_file():
        return None
    from cotdistill.study import Study

    return Study.load(study).chance


def _settings(study: str) -> dict:
    """Return a study's fingerprints and training settings, where it ran on this machine."""
    if not (study_dir(study) / "base.json").is_file():
        return {}
    from cotdistill.study import Study

    loaded = Study.load(study)
    return loaded.fingerprints() | {"study setting": json.dumps(vars(loaded.setting.train))}


def summarise(record: dict) -> str:
    """Say in one sentence how the measured claims stand, and what that rests on."""
    verdicts = [row["verdict"] for row in record["verdicts"] if row["estimate"] is not None]
    kinds = (*DECIDED, "inconclusive")
    counts = [f"{verdicts.count(kind)} {kind}" for kind in kinds if kind in verdicts]
    first, seeds = record["accuracy"][0], count_seeds(record)
    return (
        f"{count(len(verdicts), 'claim')} measured: {', '.join(counts) or 'none'}; "
        f"{first['n']:,} test questions, {count(seeds, 'seed')}."
    )


def build_site(study: str, executed: Path, out: Path, home: str = "") -> Path:
    """Write the site of one study; returns its index.html.

    executed: folder of the folders of executed notebooks; home: address of the page over all
    studies. Raises DataError where there is neither a notebook nor a verdict.
    """
    place = Place(study, executed / study, out, home)
    record = load_record(study, place.folder)
    if record is None and not place.notebooks:
        raise DataError(
            f"{place.folder}: no executed notebook and no verdicts.json; expected them from "
            f"`make reproduce STUDY={study}` or `make figures STUDY={study}`"
        )
    part = temporary_path(out)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    figures = draw_figures(record, part / "figures", _chance(study)) if record else []
    phones = _copy_phone_figures(study, part / "figures")
    for name in place.notebooks:
        body = Markup(notebook_html(place.folder / f"{name}.ipynb", phones))
        text = render_page("notebook", f"{study}: {name}", place.links, body=body)
        (part / f"{name}.html").write_text(text, encoding="utf-8")
    content = study_page(place, record, figures)
    text = render_page("study", f"cotdistill: {study}", place.links, **content)
    (part / "index.html").write_text(text, encoding="utf-8")
    remove_stale_parts(out.parent)
    shutil.rmtree(out, ignore_errors=True)
    part.replace(out)
    return out / "index.html"


def _copy_phone_figures(study: str, target: Path) -> dict[str, str]:
    """Copy the phone versions of figures that only notebooks show; name -> address, of all."""
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted((study_dir(study) / "figures").glob("*-phone.png")):
        if not (target / source.with_suffix(".svg").name).is_file():
            shutil.copy(source, target / source.name)
    return {
        path.stem.removesuffix("-phone"): f"{target.name}/{path.name}"
        for path in sorted(target.glob("*-phone.*"))
    }


def build_all(executed: Path, out: Path) -> Path:
    """Write the site over all studies of a folder, a page each; returns its index.html."""
    studies = sorted(p.parent.name for p in executed.glob("*/01_elicit.ipynb"))
    if not studies:
        raise DataError(f"{executed}: no executed study; expected folders with notebooks")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for study in studies:
        build_site(study, executed, out / study, "../index.html")
    records = {study: load_record(study, executed / study) for study in studies}
    links = [("All studies", "index.html"), *((s, f"{s}/index.html") for s in studies)]
    content = overview(records, out / "figures")
    text = render_page("all", "cotdistill: all studies", links, **content)
    (out / "index.html").write_text(text, encoding="utf-8")
    return out / "index.html"


def describe_pool(pool: Pool) -> str:
    """Describe the forest plot over studies in words: its numbers, claim by claim."""
    parts = []
    for claim, rows in pool.shown.groupby("claim", sort=False):
        own = [f"{r['study']} {write_points(r)}, {r['verdict']}" for r in rows.to_dict("records")]
        both = pool.table[(pool.table["claim"] == claim) & (pool.table["studies"] > 1)]
        own += [
            f"pooled over {r['studies']} studies {write_points(r)}, {r['verdict']}"
            for r in both.to_dict("records")
        ]
        parts.append(f"{rows['words'].iloc[0]} {'; '.join(own)}.")
    return "Forest plot over studies. " + " ".join(parts)


def draw_pool(pool: Pool, folder: Path) -> dict:
    """Draw the forest plot of a pool into a folder; returns its name and markup."""
    stem, alt = pool_pictures(pool)[0].removesuffix(".svg"), describe_pool(pool)
    return draw_picture("pooled", pool.shown, folder, alt=alt, stem=stem, pooled=pool.table)


def show_pool(pool: Pool, folder: Path) -> dict:
    """Collect what the page over all studies shows of one pool; names of the template."""
    from cotdistill.readings import figures

    return {
        "title": f"{KINDS[pool.kind].capitalize()}, {pool.loss.replace('_', ' ')} loss",
        "text": figures.pooled(pool),
        "figure": draw_pool(pool, folder),
        "table": _html_table(pooled_table(pool).reset_index().to_dict("records")),
    }


def overview(records: dict[str, dict | None], folder: Path) -> dict:
    """Collect what the page over all studies shows; names of the template."""
    judged = {study: record for study, record in records.items() if record}
    pools = make_pools(choose_records(list(judged.values())))
    draw_arm_pictures(folder)
    claims = {}
    for study, record in judged.items():
        for row in record["verdicts"]:
            entry = claims.setdefault(row["claim"], {"words": row["words"], "verdicts": {}})
            entry["verdicts"][study] = row["verdict"]
    return {
        "pools": [show_pool(pool, folder) for pool in pools if len(pool.shown)],
        "arms": picture(
            "figures/arms.svg",
            "figures/arms-phone.svg",
            "One training question as every arm reads and writes it.",
            "One question of the embedded world in every arm: what the student is asked, the "
            "label, the rationale, and what was moved or hidden.",
        ),
        "studies": [_describe_study(study, record) for study, record in records.items()],
        "claims": list(claims.values()),
        "judged": list(judged),
    }


def draw_arm_pictures(folder: Path) -> list[Path]:
    """Write arms.svg and arms-phone.svg; returns their paths."""
    from cotdistill.arm_picture import draw_arms

    paths = [folder / "arms.svg", folder / "arms-phone.svg"]
    for path, narrow in zip(paths, (False, True), strict=True):
        with atomic_write(path) as part:
            part.write_text(draw_arms(narrow), encoding="utf-8")
    return paths


def render_pictures(executed: Path, folder: Path) -> list[Path]:
    """Render the README's pictures from committed verdicts, for page and phone.

    They are the arms and the forest plot of the claims in the README's table: over studies of real
    questions once two are published, before that of the studies that the table shows. Returns the
    paths.
    """
    paths, records = draw_arm_pictures(folder), readme_records(executed)
    pool = readme_pool(records)
    if pool:
        draw_pool(pool, folder)
        return paths + [folder / name for name in pool_pictures(pool)]
    table = pd.DataFrame([row for row in readme_rows(records) if row["estimate"] is not None])
    draw_picture("forest", table, folder, alt="", stem="claims")
    return paths + [folder / f"claims{suffix}.svg" for suffix in ("", "-phone")]


def _describe_study(study: str, record: dict | None) -> dict:
    """Describe one study for the page over all of them."""
    text = f"{record['dataset']}, {record['student']}. {summarise(record)}" if record else ""
    return {"name": study, "text": text or "Notebooks only: it was not judged."}


def _wall_time(notebook: Path) -> str:
    """Read how long an executed notebook took, in minutes; "nan min" where it does not say."""
    metadata = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    return f"{metadata.get('cotdistill', {}).get('seconds', float('nan')) / 60:.1f} min"
