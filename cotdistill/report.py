"""A study as a static site, and the documents that are rendered from committed verdicts.

The site opens without Jupyter and without a network; its page is templates/site.html. The documents
are docs/findings.md, docs/keys.md and the README's table of verdicts.
"""

import functools
import json
import re
import shutil
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from cotdistill.code_map import render_code_map
from cotdistill.errors import DataError
from cotdistill.files import atomic_write, read_json, remove_stale_parts, temporary_path
from cotdistill.new_study import render_keys_table
from cotdistill.paths import ALL_NOTEBOOKS, root, study_dir
from cotdistill.show import percent
from cotdistill.study import Study

FRONT_FIGURES = ("forest", "placement", "shuffle", "key_tokens", "masking", "cost")


def _whole_record(record: dict, where: Path | str, study: str) -> dict:
    """Return the record of a verdicts.json if it is as this version writes it.

    Raises DataError for one of an older version, which has no written answers.
    """
    if "accuracy_written" not in record:
        raise DataError(
            f"{where}: no accuracy_written in it, as older versions wrote it; run "
            f"`make figures STUDY={study}`"
        )
    return record


def study_findings(record: dict) -> str:
    """Write the findings of a study as Markdown, rendered from its verdicts.json alone.

    Accuracies with n, seeds and interval, verdicts.
    """
    rows = record["accuracy"]
    seeds, n = max(r["seeds"] for r in rows), rows[0]["n"]
    lines = [
        f"Study `{record['study']}`: {record['dataset']}, {record['student']}, {n} test "
        f"questions, {seeds} seed{'s' if seeds > 1 else ''}.",
        "",
        "| arm | forced choice, 95 % interval | written answer, 95 % interval | cut off | "
        "tokens per answer |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['arm']} | {percent(r)} | {percent(w)} | "
        f"{100 * r['cut_off'] / r['answers']:.0f} % | {r['tokens_per_question']:.1f} |"
        for r, w in zip(rows, record["accuracy_written"], strict=True)
    ]
    lines += ["", "| claim | verdict | why |", "|---|---|---|"]
    lines += [
        f"| {v['words']} | **{v['verdict']}** | {v['reason']} |"
        for v in record["verdicts"]
        if v["verdict"] != "not measured"
    ]
    missing = [v["claim"] for v in record["verdicts"] if v["verdict"] == "not measured"]
    if missing:
        lines += ["", f"Not measured in this study: {', '.join(missing)}."]
    return "\n".join(lines)


def render_findings(text: str, records: dict[str, dict]) -> str:
    """Render docs/findings.md: each study's part becomes its `study_findings`.

    A part lies between `<!-- findings <study> -->` and `<!-- /findings -->`. Raises DataError where
    no such markers are, one of a pair is missing, or no record of a study that they name.
    """
    pattern = r"(<!-- findings (\S+) -->\n).*?(<!-- /findings -->)"
    opened = re.findall(r"<!-- findings (\S+) -->", text)
    named = set(opened)
    if not named or named - set(records) or len(opened) != text.count("<!-- /findings -->"):
        raise DataError(
            f"docs/findings.md: findings of {', '.join(sorted(named)) or 'no study'}, and "
            f"verdicts of {', '.join(sorted(records)) or 'none'}; "
            "expected <!-- findings <study> --> … <!-- /findings --> around those of "
            "studies that were executed"
        )
    return re.sub(
        pattern, lambda m: f"{m[1]}{study_findings(records[m[2]])}\n{m[3]}", text, flags=re.S
    )


def render_block(text: str, name: str, content: str, where: str) -> str:
    """Replace the part of a document between `<!-- name -->` and `<!-- /name -->`.

    Raises DataError where it has not one such pair.
    """
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    rendered, count = re.subn(pattern, lambda m: f"{m[1]}{content}{m[2]}", text, flags=re.S)
    if count != 1 or text.count(f"<!-- {name} -->") != 1 or text.count(f"<!-- /{name} -->") != 1:
        raise DataError(f"{where}: expected one pair <!-- {name} --> … <!-- /{name} -->")
    return rendered


def render_verdict_table(records: dict[str, dict]) -> str:
    """Write the verdicts as a Markdown table: a row per claim, a column per study.

    records: study -> its verdicts.json. A claim that a study's record does not have shows a dash. A
    study of one seed says nothing of how much seeds vary, and is left to docs/findings.md.
    """
    records = {
        study: record
        for study, record in records.items()
        if max(row["seeds"] for row in record["accuracy"]) > 1
    }
    words, verdicts = {}, {}
    for study, record in records.items():
        for row in record["verdicts"]:
            words.setdefault(row["claim"], row["words"])
            verdicts[row["claim"], study] = row["verdict"]
    lines = ["| " + " | ".join(["claim", *records]) + " |", "|---" * (len(records) + 1) + "|"]
    for claim, text in words.items():
        cells = [verdicts.get((claim, study), "–") for study in records]
        lines.append("| " + " | ".join([text.rstrip("."), *cells]) + " |")
    return "\n".join(lines) + "\n"


def render_documents(executed: Path) -> list[Path]:
    """Render docs/findings.md, keys.md and code-map.md, and the README's table of verdicts.

    executed: folder of executed studies. Returns the paths that were rendered. Raises DataError,
    and writes nothing, where a document lacks its markers.
    """
    records = committed_records(executed)
    readme, keys = root() / "README.md", root() / "docs" / "keys.md"
    path = root() / "docs" / "findings.md"
    texts = {path: render_findings(path.read_text(encoding="utf-8"), records)}
    text = keys.read_text(encoding="utf-8")
    texts[keys] = render_block(text, "keys", render_keys_table(), "docs/keys.md")
    code_map = root() / "docs" / "code-map.md"
    modules = render_code_map(root() / "cotdistill")
    text = code_map.read_text(encoding="utf-8")
    texts[code_map] = render_block(text, "modules", modules, "docs/code-map.md")
    text = readme.read_text(encoding="utf-8")
    if "<!-- verdicts -->" in text:
        table = render_verdict_table(records)
        texts[readme] = render_block(text, "verdicts", table, "README.md")
    for path, text in texts.items():
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8")
    return list(texts)


def committed_records(executed: Path) -> dict[str, dict]:
    """Load study -> its verdicts.json, of every executed study that was judged."""
    return {
        file.parent.name: _whole_record(
            json.loads(file.read_text(encoding="utf-8")), file, file.parent.name
        )
        for file in sorted(executed.glob("*/verdicts.json"))
    }


def notebook_html(path: Path) -> str:
    """Turn an executed notebook into an HTML fragment.

    Code, Markdown, tables and images inside it; nothing is fetched.
    """
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(nbformat.read(path, 4))
    for stem in ALL_NOTEBOOKS.values():  # links between notebooks become links between pages
        body = body.replace(f'href="{stem}.ipynb"', f'href="{stem}.html"')
    return re.sub(r'(<img[^>]*?)\s*(?:alt="[^"]*")?(/?>)', r'\1 alt="figure"\2', body)


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


def render_page(title: str, links: list[tuple[str, str]], **content) -> str:
    """Render a whole page with the navigation bar; readable at a phone's width.

    links: (name, address). content: `body` of a notebook, or the parts of `front_page`.
    """
    from pygments.formatters import HtmlFormatter

    highlight = Markup(HtmlFormatter().get_style_defs(".highlight"))
    return _template().render(title=title, links=links, highlight=highlight, **content)


def _html_table(rows: list[dict]) -> Markup:
    table = pd.DataFrame(rows).to_html(index=False, border=0, na_rep="–", escape=True)
    return Markup('<div class="scroll">') + Markup(table) + Markup("</div>")


def front_page(
    record: dict, study: Study, card: pd.DataFrame, notebooks: list[dict], figures: list[str]
) -> dict:
    """Collect what the first page shows: verdicts, figures, accuracies, run card and data card.

    record: verdicts.json. figures: paths from the site's folder. Returns names of the template.
    """
    about = record["provenance"] | study.fingerprints()
    about |= {"study setting": json.dumps(vars(study.setting.train))}
    verdicts = record["verdicts"]
    return {
        "record": record,
        "measured": [row for row in verdicts if row["verdict"] != "not measured"],
        "missing": [row["claim"] for row in verdicts if row["verdict"] == "not measured"],
        "figures": [(Path(path).stem, path) for path in figures],
        "accuracy": _html_table(_accuracy_rows(record)),
        "run_card": _html_table([{"what": k, "value": v} for k, v in about.items()]),
        "notebooks": _html_table(notebooks),
        "data_card": _html_table(card.to_dict("records")),
    }


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


def build_site(study: str, executed: Path, out: Path) -> Path:
    """Write the site of a study that has run; returns its index.html.

    Raises DataError where a notebook or the verdicts are missing.
    """
    path = study_dir(study) / "verdicts.json"
    record = _whole_record(read_json(path, f"`make figures STUDY={study}`"), path, study)
    loaded, folder = Study.load(study), executed / study
    names = [name for name in ALL_NOTEBOOKS.values() if (folder / f"{name}.ipynb").is_file()]
    if not names:
        raise DataError(
            f"{folder}: no executed notebook; expected them from `make reproduce STUDY={study}`"
        )
    part = temporary_path(out)
    shutil.rmtree(part, ignore_errors=True)
    figures = _copy_figures(study_dir(study) / "figures", part / "figures")
    links = [("Verdicts", "index.html")]
    links += [(name.replace("_", " "), f"{name}.html") for name in names]
    for name in names:
        body = Markup(notebook_html(folder / f"{name}.ipynb"))
        text = render_page(f"{study}: {name}", links, body=body)
        (part / f"{name}.html").write_text(text, encoding="utf-8")
    times = [
        {"notebook": name, "wall time": _wall_time(folder / f"{name}.ipynb")} for name in names
    ]
    card = pd.read_csv(study_dir(study) / "data_card.csv").round(2)
    front = front_page(record, loaded, card, times, figures)
    text = render_page(f"cotdistill: {study}", links, **front)
    (part / "index.html").write_text(text, encoding="utf-8")
    remove_stale_parts(out.parent)
    shutil.rmtree(out, ignore_errors=True)
    part.replace(out)
    return out / "index.html"


def _copy_figures(source: Path, target: Path) -> list[str]:
    """Copy a study's figures; returns paths of those that the first page shows, forest first."""
    target.mkdir(parents=True)
    shown = []
    for png in sorted(source.glob("*.png"), key=lambda path: (path.stem != "forest", path.stem)):
        shutil.copy(png, target / png.name)
        if png.stem in FRONT_FIGURES:
            shown.append(f"{target.name}/{png.name}")
    return shown


def _wall_time(notebook: Path) -> str:
    """Read how long an executed notebook took, in minutes; "nan min" where it does not say."""
    metadata = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    return f"{metadata.get('cotdistill', {}).get('seconds', float('nan')) / 60:.1f} min"
