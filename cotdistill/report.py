"""The documents that are rendered from committed verdicts and executed notebooks.

They are docs/findings.md, docs/keys.md, docs/code-map.md, the answers in docs/open-questions.md,
the calibration in docs/judging.md, the README's table of verdicts and its answers, and the README's
pictures in docs/figures/.
"""

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from cotdistill.calibration import render_calibration
from cotdistill.code_map import render_code_map
from cotdistill.errors import DataError
from cotdistill.files import atomic_write
from cotdistill.new_study import render_keys_table
from cotdistill.parameters import read_study, study_stages
from cotdistill.paths import OPEN_NOTEBOOKS, root, study_path
from cotdistill.pooling import Pool, choose_records, count_seeds, has_families, make_pools
from cotdistill.show import percent, points
from cotdistill.stats import MEASURED_BY, MIN_SEEDS

FINDINGS = "**Findings.**"  # how the last text of a notebook of the open questions begins
CALIBRATION = "calibration/calibration.csv"  # in docs/
TO_EXECUTED = "../notebooks/executed/"  # from docs/


def whole_record(record: dict, where: Path | str, study: str) -> dict:
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
    notes = [loss_note(rows), cut_off_note(rows), no_option_note(record["accuracy_written"])]
    lines += [line for note in notes if note for line in ("", _fill(note))]
    lines += ["", "| claim | verdict | why |", "|---|---|---|"]
    lines += [
        f"| {v['words']} | **{v['verdict']}**{_late(v)} | {v['reason']} |"
        for v in record["verdicts"]
        if v["verdict"] != "not measured"
    ]
    missing = [v["claim"] for v in record["verdicts"] if v["verdict"] == "not measured"]
    if missing:
        lines += ["", f"Not measured in this study: {', '.join(missing)}."]
    return "\n".join(lines)


def loss_note(rows: list[dict]) -> str:
    """Say how arms under a further loss compare with label_only; empty where none was trained.

    rows: the accuracies of a verdicts.json, by forced choice, whose arms share their seeds. The
    interval is Student's over the seeds' differences, with the questions as they are. label_only
    has no other tokens, so both losses are the same for it.
    """
    by_arm = {row["arm"]: row for row in rows}
    base = by_arm.get("label_only", {}).get("by_seed", [])
    texts = []
    for arm, row in by_arm.items():
        loss = re.search(r"\[loss=(\w+)\]", arm)
        if not loss or arm.startswith("label_only") or len(row.get("by_seed", [])) != len(base):
            continue
        apart = np.subtract(row["by_seed"], base)
        if len(apart) < MIN_SEEDS:
            continue
        reach = stats.t.ppf(0.975, len(apart) - 1) * stats.sem(apart)
        ends = {"estimate": apart.mean(), "low": apart.mean() - reach, "high": apart.mean() + reach}
        mean = ", the usual mean over all tokens," if loss[1] == "token_mean" else ""
        texts.append(
            f"Under the loss `{loss[1]}`{mean} {arm.partition('[')[0]} is at "
            f"{100 * row['accuracy']:.1f} % by forced choice, {points(ends)} points from "
            f"label_only (95 % interval over {len(apart)} seeds, these questions; not registered)."
        )
    return " ".join(texts)


def cut_off_note(rows: list[dict]) -> str:
    """Say how many answers end within their rationale, and where that counts; empty for few."""
    shares = {row["arm"]: row["flagged"] / row["answers"] for row in rows if "flagged" in row}
    listed = ", ".join(f"{arm} {100 * x:.0f} %" for arm, x in shares.items() if x >= 0.01)
    return (
        f"Answers that a limit ended within the rationale: {listed}. They count as wrong in "
        "accuracies, and as they were scored in p(gold): a verdict by accuracy on these arms also "
        "says that they do not come to an end."
        if listed
        else ""
    )


def no_option_note(rows: list[dict]) -> str:
    """Say how many written answers name no option; empty where none of the main arms was run."""
    shares = {
        row["arm"]: row["parse_failures"] / row["answers"]
        for row in rows
        if row["arm"] in ("label_only", "pre_cot", "post_cot") and "parse_failures" in row
    }
    listed = ", ".join(f"{arm} {100 * share:.0f} %" for arm, share in shares.items())
    return f"Written answers that name no option count as wrong: {listed}." if listed else ""


def _fill(text: str) -> str:
    """Wrap a text at 100 characters, with no line that begins with a percent sign."""
    return textwrap.fill(text.replace(" %", "\xa0%"), 100).replace("\xa0", " ")


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


def is_comparable(record: dict) -> bool:
    """Tell whether a verdicts.json has two seeds or more and was judged as this version judges."""
    return count_seeds(record) > 1 and has_families(record)


def render_verdict_table(records: dict[str, dict]) -> str:
    """Write estimates and verdicts as a Markdown table: a row per claim, a column per study.

    records: study -> its verdicts.json. Claims that none of these studies measured are left out; a
    claim that one of them did not measure shows a dash. A study of one seed says nothing of how
    much seeds vary, and one that was judged by earlier statistics (its rows have no family) is not
    comparable: both are left to docs/findings.md.
    """
    shown = {
        study: {row["claim"]: row for row in record["verdicts"] if row["estimate"] is not None}
        for study, record in records.items()
        if is_comparable(record)
    }
    words = {row["claim"]: row["words"] for rows in shown.values() for row in rows.values()}
    lines = ["| " + " | ".join(["claim", *shown]) + " |", "|---" * (len(shown) + 1) + "|"]
    for claim, text in words.items():
        cells = [_verdict_cell(rows.get(claim)) for rows in shown.values()]
        lines.append("| " + " | ".join([text.rstrip("."), *cells]) + " |")
    return "\n".join(lines) + "\n"


def read_open_findings(executed: Path) -> list[dict]:
    """Read what the executed notebooks of the open questions end with, one row each.

    executed: folder of executed studies. Returns study, seeds (how many it has), path (below
    `executed`), question (from the notebook's title) and found (its findings, without what to read
    next).
    """
    rows = []
    for name in OPEN_NOTEBOOKS.values():
        for path in sorted(executed.glob(f"*/{name}.ipynb")):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            texts = [
                "".join(output["data"]["text/markdown"])
                for cell in cells
                for output in cell.get("outputs", [])
                if "text/markdown" in output.get("data", {})
            ]
            found = next((text for text in reversed(texts) if text.startswith(FINDINGS)), None)
            if found is None:
                raise DataError(
                    f"{path}: no findings in it; expected a notebook executed to its end"
                )
            title = "".join(cells[0]["source"]).partition("\n")[0]
            question = title.rpartition(": ")[2]
            rows.append(
                {
                    "study": path.parent.name,
                    "seeds": len(read_study(path.parent.name).get("seeds", [0])),
                    "path": path.relative_to(executed).as_posix(),
                    "question": question[0].upper() + question[1:],
                    "found": found.removeprefix(FINDINGS).partition(" Next: ")[0].strip(),
                }
            )
    return rows


def choose_widest(rows: list[dict]) -> list[dict]:
    """Keep one answer per open question, the one that rests on most seeds (the first of equals).

    rows: of `read_open_findings`.
    """
    widest = {}
    for row in rows:
        best = widest.setdefault(row["question"], row)
        if row["seeds"] > best["seeds"]:
            widest[row["question"]] = row
    return list(widest.values())


def render_answers(rows: list[dict], prefix: str, *, short: bool = False) -> str:
    """Write the answers to open questions as a Markdown list. rows: of `read_open_findings`.

    prefix: the way from the document to the executed studies. short: the first sentence alone,
    without what stands in parentheses.
    """
    lines = []
    for row in rows:
        found = row["found"]
        if short:
            found = re.sub(r" \([^()]*(\([^()]*\)[^()]*)*\)", "", found)
            found = found.partition(". ")[0].rstrip(".") + "."
        link = f"[{row['study']}]({prefix}{row['path']})"
        lines.append(f"- *{row['question']}* {found} ({link})")
    return "\n".join(lines) + "\n"


def readme_pool(records: dict[str, dict]) -> Pool | None:
    """Return the pool that the README shows, the largest of two real studies or more; else None."""
    pools = make_pools(choose_records(list(records.values())))
    real = [pool for pool in pools if pool.kind == "real" and len(pool.studies) > 1]
    return max(real, key=lambda pool: len(pool.studies), default=None)


def pool_pictures(pool: Pool) -> list[str]:
    """Name the pictures of a pool's forest plot, for a page and for a phone."""
    stem = f"pooled-{pool.kind}-{pool.loss}"
    return [f"{stem}.svg", f"{stem}-phone.svg"]


def render_readme_verdicts(records: dict[str, dict]) -> str:
    """Write the README's first table: pooled over real studies once there are two of them.

    records: of `readme_records`. Before there are two, a figure and a column per study
    (`render_verdict_table`). Claims about the mechanism are left to docs/findings.md.
    """
    pool = readme_pool(records)
    if pool is None:
        short = {
            study: record | {"verdicts": [r for r in record["verdicts"] if _in_readme(r)]}
            for study, record in records.items()
        }
        alt = (
            "Each claim's estimate with its interval and a dot per seed; the table has the numbers"
        )
        return (
            f"{_readme_picture('claims.svg', 'claims-phone.svg', alt)}\n\n"
            + render_verdict_table(short)
            + _readme_notes(records)
        )
    page, phone = pool_pictures(pool)
    lines = [
        _readme_picture(page, phone, "Each claim's effect in every study, and pooled"),
        "",
        "| claim | pooled | studies |",
        "|---|---|---|",
    ]
    for row in pool.table.to_dict("records"):
        if _in_readme(row):
            own = pool.effects[pool.effects["claim"] == row["claim"]].to_dict("records")
            each = ", ".join(f"{r['study']} {100 * r['estimate']:+.1f}" for r in own)
            lines.append(f"| {row['words'].rstrip('.')} | {_verdict_cell(row)} | {each} |")
    missing = "; ".join(f"{dataset}, {student}" for dataset, student in pool.missing)
    lines += ["", f"Not there yet: {missing}."] if missing else []
    return "\n".join(lines) + "\n"


def _readme_notes(records: dict[str, dict]) -> str:
    """Write what the README's table leaves out: the arms under the usual loss."""
    records = {study: record for study, record in records.items() if is_comparable(record)}
    losses = [
        f"In `{study}`, {note[0].lower()}{note[1:]}"
        for study, record in records.items()
        if (note := loss_note(record["accuracy"]))
    ]
    return "".join(f"\n{note}\n" for note in losses)


def _readme_picture(page: str, phone: str, alt: str) -> str:
    return (
        f'<picture><source media="(max-width: 600px)" srcset="docs/figures/{phone}">'
        f'<img src="docs/figures/{page}" alt="{alt}"></picture>'
    )


def _in_readme(row: dict) -> bool:
    """Tell whether the README shows a row: claims of the paper, and of what an answer costs."""
    return row.get("family") != "mechanism"


def _verdict_cell(row: dict | None) -> str:
    """Write a verdict, and its estimate with the 95 % interval in points; a dash for none.

    Where a gate held back what the numbers show, the cell says why.
    """
    if row is None:
        return "–"
    value, low, high = (f"{100 * row[name]:+.1f}" for name in ("estimate", "low", "high"))
    unit = MEASURED_BY[row["measure"]]
    text = f"**{row['verdict']}**: {value} [{low}, {high}]{unit}{_late(row)}"
    shown = row.get("p_holm", 1) < 0.05 and row["seeds"] >= MIN_SEEDS
    if row["verdict"] == "inconclusive" and shown:
        text += f", but {row['reason'].rpartition(': ')[2].rstrip('.')}"
    return text


def _late(row: dict) -> str:
    return ", exploratory" if row.get("registered") == "exploratory" else ""


def render_documents(executed: Path) -> list[Path]:
    """Render what documents take from code and data, in docs/ and in the README.

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
    judging, numbers = (root() / "docs" / name for name in ("judging.md", CALIBRATION))
    text, table = judging.read_text(encoding="utf-8"), render_calibration(pd.read_csv(numbers))
    texts[judging] = render_block(text, "calibration", table, "docs/judging.md")
    answers, questions = read_open_findings(executed), root() / "docs" / "open-questions.md"
    text, listed = questions.read_text(encoding="utf-8"), render_answers(answers, TO_EXECUTED)
    texts[questions] = render_block(text, "answers", listed, "docs/open-questions.md")
    text = readme.read_text(encoding="utf-8")
    if "<!-- verdicts -->" in text:
        table = render_readme_verdicts(readme_records(executed))
        text = render_block(text, "verdicts", table, "README.md")
        prefix = TO_EXECUTED.removeprefix("../")
        listed = render_answers(choose_widest(answers), prefix, short=True)
        texts[readme] = render_block(text, "answers", listed, "README.md")
    for path, text in texts.items():
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8")
    return list(texts)


def readme_records(executed: Path) -> dict[str, dict]:
    """Load the verdicts of the executed studies but those made for an open question.

    These list its stage in their file in params/.
    """

    def asks(study: str) -> bool:
        stages = study_stages(read_study(study)) if study_path(study).is_file() else []
        return not OPEN_NOTEBOOKS.keys().isdisjoint(stages)

    records = committed_records(executed)
    return {study: record for study, record in records.items() if not asks(study)}


def readme_rows(records: dict[str, dict]) -> list[dict]:
    """List the verdicts of the README's table, study by study; records: of `readme_records`."""
    return [
        row | {"study": study}
        for study, record in records.items()
        if is_comparable(record)
        for row in record["verdicts"]
        if _in_readme(row)
    ]


def committed_records(executed: Path) -> dict[str, dict]:
    """Load study -> its verdicts.json, of every executed study that was judged."""
    return {
        file.parent.name: whole_record(
            json.loads(file.read_text(encoding="utf-8")), file, file.parent.name
        )
        for file in sorted(executed.glob("*/verdicts.json"))
    }
