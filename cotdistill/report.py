"""A study as a static site that opens without Jupyter and without a network, and the documents that
are rendered from committed verdicts: docs/findings.md, docs/keys.md, the README's table.
"""

import html
import json
import re
import shutil
from pathlib import Path

import pandas as pd

from cotdistill.errors import DataError
from cotdistill.files import atomic_write, read_json, remove_stale_parts, temporary_path
from cotdistill.new_study import render_keys_table
from cotdistill.paths import NOTEBOOKS, root, study_dir
from cotdistill.show import percent
from cotdistill.study import Study

STYLE = """
:root { color-scheme: light; --ink: #1c2330; --soft: #5b6472; --line: #d9dee6; --paper: #fff; --tint: #f5f7fa; --link: #0b5394; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); padding: .55rem 1rem; font-size: .9rem; }
nav a { margin-right: 1rem; white-space: nowrap; display: inline-block; } a { color: var(--link); }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; } .scroll, .jp-OutputArea-output, .output_html { overflow-x: auto; }
table { display: block; max-width: 100%; overflow-x: auto; border-collapse: collapse; font-size: .88rem; margin: .6rem 0; } th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); } td { font-variant-numeric: tabular-nums; }
pre { background: var(--tint); padding: .6rem .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; margin: .4rem 0; } code { font-size: .9em; }
.anchor-link, .jp-InputPrompt, .jp-OutputPrompt, .prompt { display: none; }
.supported { border-left: .35rem solid #117733; } .contradicted { border-left: .35rem double #aa4499; } .inconclusive { border-left: .35rem dotted #888; }
.verdict { background: var(--tint); padding: .6rem .9rem; margin: .6rem 0; } .verdict b { text-transform: capitalize; } .soft { color: var(--soft); font-size: .9rem; }
"""


def _whole_record(record: dict, where: Path | str, study: str) -> dict:
    """A verdicts.json as this version writes it.

    Raises DataError for one of before the written answers stood in it.
    """
    if "accuracy_written" not in record:
        raise DataError(
            f"{where}: no accuracy_written in it, as older versions wrote it; run "
            f"`make figures STUDY={study}`"
        )
    return record


def findings(record: dict) -> str:
    """The findings of a study as Markdown, rendered from its verdicts.json alone.

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
        for r, w in zip(rows, record["accuracy_written"])
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
    """docs/findings.md with each part between `<!-- findings <study> -->` and `<!-- /findings -->`
    replaced by that study's `findings`.

    Raises DataError where no such markers are, one of a pair is missing, or no record of a study
    that they name.
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
    return re.sub(pattern, lambda m: f"{m[1]}{findings(records[m[2]])}\n{m[3]}", text, flags=re.S)


def render_block(text: str, name: str, content: str, where: str) -> str:
    """A document with the part between `<!-- name -->` and `<!-- /name -->` replaced.

    Raises DataError where it has not one such pair.
    """
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    rendered, count = re.subn(pattern, lambda m: f"{m[1]}{content}{m[2]}", text, flags=re.S)
    if count != 1 or text.count(f"<!-- {name} -->") != 1 or text.count(f"<!-- /{name} -->") != 1:
        raise DataError(f"{where}: expected one pair <!-- {name} --> … <!-- /{name} -->")
    return rendered


def render_verdict_table(records: dict[str, dict]) -> str:
    """The verdict on each claim in each study as Markdown: a row per claim, a column per study.

    records: study -> its verdicts.json. A claim that a study's record does not have shows a dash.
    """
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
    """Render docs/findings.md, docs/keys.md and the README's table of verdicts, if it has one.

    executed: folder of executed studies. Returns the paths that were rendered. Raises DataError,
    and writes nothing, where a document lacks its markers.
    """
    records = committed_records(executed)
    readme, keys = root() / "README.md", root() / "docs" / "keys.md"
    path = root() / "docs" / "findings.md"
    texts = {path: render_findings(path.read_text(encoding="utf-8"), records)}
    text = keys.read_text(encoding="utf-8")
    texts[keys] = render_block(text, "keys", render_keys_table(), "docs/keys.md")
    text = readme.read_text(encoding="utf-8")
    if "<!-- verdicts -->" in text:
        table = render_verdict_table(records)
        texts[readme] = render_block(text, "verdicts", table, "README.md")
    for path, text in texts.items():
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8")
    return list(texts)


def committed_records(executed: Path) -> dict[str, dict]:
    """Study -> its verdicts.json, of every executed study that was judged."""
    return {
        file.parent.name: _whole_record(
            json.loads(file.read_text(encoding="utf-8")), file, file.parent.name
        )
        for file in sorted(executed.glob("*/verdicts.json"))
    }


def notebook_html(path: Path) -> str:
    """An executed notebook as an HTML fragment.

    Code, Markdown, tables and images inside it; nothing is fetched.
    """
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(nbformat.read(path, 4))
    for stem in NOTEBOOKS.values():  # links between notebooks become links between pages
        body = body.replace(f'href="{stem}.ipynb"', f'href="{stem}.html"')
    return re.sub(r'(<img[^>]*?)\s*(?:alt="[^"]*")?(/?>)', r'\1 alt="figure"\2', body)


def page(title: str, body: str, links: list[tuple[str, str]]) -> str:
    """A whole page with the navigation bar; readable at a phone's width."""
    from pygments.formatters import HtmlFormatter

    bar = "".join(f'<a href="{href}">{html.escape(name)}</a>' for name, href in links)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        '<link rel="icon" '
        f'href="data:,"><title>{html.escape(title)}</title><style>{STYLE}{HtmlFormatter().get_style_defs(".highlight")}</style></head>'
        f"<body><nav>{bar}</nav><main>{body}</main></body></html>\n"
    )


def _table(rows: list[dict]) -> str:
    frame = pd.DataFrame(rows)
    return (
        f'<div class="scroll">{frame.to_html(index=False, border=0, na_rep="–", escape=True)}</div>'
    )


def front_page(
    record: dict, study: Study, card: str, notebooks: list[dict], figures: list[str]
) -> str:
    """Verdicts, forest plot, accuracies, run card and data card."""
    e = html.escape
    parts = [
        f"<h1>What the data say: study {e(record['study'])}</h1>",
        f"<p>CoT-augmented distillation (arXiv 2406.14511): {e(record['dataset'])}, student "
        f"{e(record['student'])}.</p>",
        "<h2>Verdicts</h2>",
    ]
    for v in record["verdicts"]:
        if v["verdict"] != "not measured":
            parts.append(
                f'<div class="verdict {v["verdict"]}"><b>{v["verdict"]}</b>: '
                f'{e(v["words"])}<br><span class="soft">{e(v["reason"])} '
                f"{e('Needed: ' + v['needed'] + '. ' if v['needed'] else '')}In the "
                f"paper: {e(v['section'])}.</span></div>"
            )
    missing = ", ".join(v["claim"] for v in record["verdicts"] if v["verdict"] == "not measured")
    parts += [f'<p class="soft">Not measured here: {e(missing)}.</p>'] if missing else []
    parts += [
        f'<h2>{e(Path(f).stem.replace("_", " ").capitalize())}</h2><img src="{e(f)}" '
        f'alt="{e(Path(f).stem)}">'
        for f in figures
    ]
    parts += [
        "<h2>Accuracy</h2>",
        _table(
            [
                {
                    "arm": r["arm"],
                    "questions": r["n"],
                    "seeds": r["seeds"],
                    "forced choice": percent(r),
                    "written answer": percent(w),
                    "parse failures": f"{r['parse_failures']} of {r['answers']}",
                    "tokens per answer": f"{r['tokens_per_question']:.1f}",
                }
                for r, w in zip(record["accuracy"], record["accuracy_written"])
            ]
        ),
    ]
    about = (
        record["provenance"]
        | study.fingerprints()
        | {"study setting": json.dumps(vars(study.setting.train))}
    )
    parts += [
        "<h2>Run card</h2>",
        _table([{"what": k, "value": v} for k, v in about.items()]),
        _table(notebooks),
        "<h2>Data card</h2>",
        card,
    ]
    return "".join(parts)


def build_site(study: str, executed: Path, out: Path) -> Path:
    """Write the site of a study that has run; returns its index.html.

    Raises DataError where a notebook or the verdicts are missing.
    """
    path = study_dir(study) / "verdicts.json"
    record = _whole_record(read_json(path, f"`make figures STUDY={study}`"), path, study)
    loaded, folder = Study.load(study), executed / study
    there = [name for name in NOTEBOOKS.values() if (folder / f"{name}.ipynb").is_file()]
    if not there:
        raise DataError(
            f"{folder}: no executed notebook; expected them from `make reproduce STUDY={study}`"
        )
    part = temporary_path(out)
    shutil.rmtree(part, ignore_errors=True)
    (part / "figures").mkdir(parents=True)
    figures = []
    for png in sorted(
        (study_dir(study) / "figures").glob("*.png"), key=lambda p: (p.stem != "forest", p.stem)
    ):
        shutil.copy(png, part / "figures" / png.name)
        figures += (
            [f"figures/{png.name}"]
            if png.stem in ("forest", "placement", "shuffle", "key_tokens", "masking", "cost")
            else []
        )
    links = [
        ("Verdicts", "index.html"),
        *((name.replace("_", " "), f"{name}.html") for name in there),
    ]
    times = []
    for name in there:
        about = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["metadata"].get(
            "cotdistill", {}
        )
        times.append(
            {"notebook": name, "wall time": f"{about.get('seconds', float('nan')) / 60:.1f} min"}
        )
        (part / f"{name}.html").write_text(
            page(f"{study}: {name}", notebook_html(folder / f"{name}.ipynb"), links),
            encoding="utf-8",
        )
    card = pd.read_csv(study_dir(study) / "data_card.csv").round(2)
    front = front_page(record, loaded, _table(card.to_dict("records")), times, figures)
    (part / "index.html").write_text(page(f"cotdistill: {study}", front, links), encoding="utf-8")
    remove_stale_parts(out.parent)
    shutil.rmtree(out, ignore_errors=True)
    part.replace(out)
    return out / "index.html"
