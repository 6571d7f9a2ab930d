"""The static site in a real browser, the verdicts in the terminal, the rendered documents.

The documents cannot drift from the committed verdicts.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from browser import Browser, needs_chromium
from scipy.stats import ttest_rel

from cotdistill import arm_picture, cli, gallery, report, study_site
from cotdistill.calibration import render_calibration
from cotdistill.errors import DataError
from cotdistill.examples import Dataset
from cotdistill.new_study import render_keys_table

ROOT = Path(__file__).resolve().parents[1]


def command(smoke, *words):
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(smoke[0] / "artifacts"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-m", "cotdistill.cli", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(smoke):
    done = command(smoke, "site", "smoke", "--executed", str(smoke[0] / "first"))
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1]).parent


def test_the_site_holds_every_notebook_and_every_link_resolves(site):
    pages = sorted(site.glob("*.html"))
    assert [p.stem for p in pages] == [
        "01_elicit",
        "02_train",
        "03_evaluate",
        "04_shuffle",
        "05_attribute_and_mask",
        "06_figures",
        "index",
    ]
    for path in pages:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            if not target.startswith(("data:", "#")) and not re.match(r"https://arxiv.org", target):
                assert (site / target).is_file(), f"{path.name}: {target}"


def test_the_site_takes_the_users_own_notebooks_else_the_published_ones(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path))
    monkeypatch.setattr(
        study_site, "build_site", lambda study, executed, out: taken.append(executed)
    )
    assert cli.main(["site", "quick"]) == 0
    (tmp_path / "executed" / "quick").mkdir(parents=True)
    (tmp_path / "executed" / "quick" / "01_elicit.ipynb").touch()
    assert cli.main(["site", "quick"]) == 0
    assert cli.main(["site", "quick", "--executed", "elsewhere"]) == 0
    assert taken == [ROOT / "notebooks" / "executed", tmp_path / "executed", ROOT / "elsewhere"]


@pytest.mark.browser
@needs_chromium
def test_the_site_in_a_browser(site, tmp_path):
    browser = Browser(tmp_path)
    try:
        for path in sorted(site.glob("*.html")):
            for width in (1200, 390):
                browser.open(path.as_uri(), width)
                assert browser.errors == [], path.name
                assert browser.run(
                    "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
                ), path.name
                assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), (
                    f"{path.name} is wider than {width}"
                )
        browser.open((site / "index.html").as_uri())
        assert (
            browser.run("document.images.length") >= 2
            and browser.run("document.querySelectorAll('.verdict').length") >= 5
        )
        assert "Run card" in browser.run("document.body.innerText")
    finally:
        browser.close()


def test_verdicts_in_the_terminal_are_those_of_the_notebook(smoke):
    path = smoke[0] / "artifacts" / "studies" / "smoke" / "verdicts.json"
    before = json.loads(path.read_text())["verdicts"]
    done = command(smoke, "verdicts", "smoke")
    assert done.returncode == 0 and json.loads(path.read_text())["verdicts"] == before
    head, table = done.stdout.split("\n\n")[0].split("verdict ", 1)
    assert head.startswith(f"study smoke: {sum(v['estimate'] is not None for v in before)} of ")
    lines = table.splitlines()[2:]
    assert len(lines) == len(before) and [
        line.split()[1] if not line.startswith("not") else line.split()[2] for line in lines
    ] == [v["claim"] for v in before]
    reasons = " ".join(done.stdout.split("\n\n")[1].split())
    assert all(" ".join(f"{v['claim']}: {v['reason']}".split()) in reasons for v in before)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert path.with_suffix(".csv").is_file()


def test_verdicts_of_an_older_version_say_what_to_run(smoke, tmp_path):
    (tmp_path / "smoke").mkdir()
    record = json.loads(
        (smoke[0] / "artifacts" / "studies" / "smoke" / "verdicts.json").read_text()
    )
    (tmp_path / "smoke" / "verdicts.json").write_text(
        json.dumps({k: v for k, v in record.items() if k != "accuracy_written"})
    )
    done = command(smoke, "docs", "--executed", str(tmp_path))
    assert (
        done.returncode == 1
        and "no accuracy_written in it" in done.stderr
        and "`make figures STUDY=smoke`" in done.stderr
    )


def test_missing_study_says_what_to_run(smoke):
    done = command(smoke, "site", "nothing")
    assert (
        done.returncode == 1
        and "`make figures STUDY=nothing`" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_findings_are_rendered_from_the_committed_verdicts():
    records = report.committed_records(ROOT / "notebooks" / "executed")
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert report.render_findings(text, records) == text
    for study in ("quick", "invented"):
        assert (
            f"Study `{study}`" in text
            and f"{records[study]['accuracy'][0]['n']} test questions" in text
        )
    with pytest.raises(DataError, match="findings of no study"):
        report.render_findings("nothing", records)
    named = "everyday-methods, everyday-quality, invented, quick, relations-tasks, strata"
    found = f"findings of {named}, and verdicts of quick;"
    with pytest.raises(DataError, match=found):
        report.render_findings(text, {"quick": records["quick"]})
    # Without its end, all up to the next study's end would be lost
    with pytest.raises(DataError, match="expected <!-- findings <study> -->"):
        report.render_findings(text.replace("<!-- /findings -->", "", 1), records)


def test_an_arm_under_the_usual_loss_is_compared_with_the_label_alone():
    base, other = [0.63, 0.58, 0.61, 0.59], [0.5, 0.53, 0.52, 0.54]
    rows = [
        dict(arm="label_only", by_seed=base, accuracy=0.6),
        dict(arm="post_cot[loss=token_mean]", by_seed=other, accuracy=0.5225),
        dict(arm="label_only[loss=token_mean]", by_seed=base, accuracy=0.6),
    ]
    found = ttest_rel(other, base).confidence_interval()
    low, high = (f"{100 * end:+.1f}" for end in found)
    assert report.loss_note(rows) == (
        "Under the loss `token_mean`, the usual mean over all tokens, post_cot is at 52.2 % by "
        f"forced choice, -8.0 [{low}, {high}] points from label_only (95 % interval over 4 seeds, "
        "these questions; not registered)."
    )
    few = [row | {"by_seed": row["by_seed"][:2]} for row in rows]
    assert report.loss_note(few) == report.loss_note(rows[:1]) == report.loss_note([]) == ""


def test_answers_that_were_cut_off_or_name_no_option_are_noted():
    row = dict(arm="pre_cot", flagged=69, answers=100, parse_failures=30)
    assert "within the rationale: pre_cot 69 %. They count as wrong" in report.cut_off_note([row])
    assert report.cut_off_note([row | {"flagged": 0}, dict(arm="older", answers=100)]) == ""
    assert report.no_option_note([row, row | {"arm": "post_cot_filler"}]).endswith(
        ": pre_cot 30 %."
    )
    assert report.no_option_note([dict(arm="post_cot_filler", parse_failures=1, answers=2)]) == ""


def test_the_calibration_in_words_is_that_of_its_table():
    docs = ROOT / "docs"
    table = pd.read_csv(docs / report.CALIBRATION)
    text, block = (docs / "judging.md").read_text(encoding="utf-8"), render_calibration(table)
    assert report.render_block(text, "calibration", block, "docs/judging.md") == text
    assert len(block.splitlines()) > 2 + len(table)
    worst = table.assign(fwer=0.04).sort_values("negligible", ascending=False)
    worst.iloc[0, worst.columns.get_loc("fwer")] = 0.125
    said = " ".join(render_calibration(worst).split())
    assert "Family-wise error lies between 0.040 and 0.125" in said
    first, second = (100 * value for value in worst["negligible"].iloc[:2])
    assert f"{first:.0f} % of claims with" in said and f"at most {second:.1f} % elsewhere" in said


def test_the_readmes_verdicts_are_the_committed_ones():
    executed = ROOT / "notebooks" / "executed"
    records = report.committed_records(executed)
    block = report.render_readme_verdicts(report.readme_records(executed))
    table, _, notes = block[block.index("| claim |") :].partition("\n\n")
    assert "Under the loss `token_mean`".lower() in notes.lower()
    asked = {"relations-tasks", "everyday-quality", "everyday-methods"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.render_block(text, "verdicts", block, "README.md") == text
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    shown = [
        study
        for study, record in records.items()
        if max(row["seeds"] for row in record["accuracy"]) > 1
        and "family" in record["verdicts"][0]
        and study not in asked
    ]
    assert rows[0] == ["claim", *shown] and "quick" in shown
    assert len({len(row) for row in rows[2:]}) == 1
    for study in shown:
        column = {row[0]: row[rows[0].index(study)] for row in rows[2:]}
        for verdict in records[study]["verdicts"]:
            if verdict["family"] == "mechanism":
                assert verdict["words"].rstrip(".") not in column
                continue
            cell = column.get(verdict["words"].rstrip("."), "–")
            if verdict["estimate"] is None:
                assert cell == "–" and verdict["verdict"] == "not measured"
            else:
                assert cell.startswith(f"**{verdict['verdict']}**: ")
                assert f"{100 * verdict['estimate']:+.1f} [" in cell


def test_the_readmes_figure_is_drawn_from_the_committed_verdicts(tmp_path):
    executed, folder = ROOT / "notebooks" / "executed", ROOT / "docs" / "figures"
    rows = report.readme_rows(report.readme_records(executed))
    assert {row["study"] for row in rows} >= {"quick", "strata"}
    assert all(row["family"] != "mechanism" for row in rows)
    made = study_site.render_pictures(executed, tmp_path)
    assert len(made) == 4 and {"arms.svg", "arms-phone.svg"} <= {path.name for path in made}
    for path in made:
        kept = (folder / path.name).read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8") == kept
        assert path.name in (ROOT / "README.md").read_text(encoding="utf-8")


def test_answers_are_what_the_executed_notebooks_end_with():
    executed = ROOT / "notebooks" / "executed"
    rows = report.read_open_findings(executed)
    assert {row["study"] for row in rows} >= {"relations-tasks"}
    for row in rows:
        page = (executed / row["path"]).read_text(encoding="utf-8")
        assert row["found"].partition(". ")[0] in page and "Next:" not in row["found"]
        assert row["question"].endswith("?") and row["question"][0].isupper()
    where = {"docs/open-questions.md": ("../", False), "README.md": ("", True)}
    for name, (up, short) in where.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = report.choose_widest(rows) if short else rows
        listed = report.render_answers(shown, f"{up}notebooks/executed/", short=short)
        assert report.render_block(text, "answers", listed, name) == text


def test_a_cell_says_why_a_gate_held_back_what_the_numbers_show():
    row = dict(
        verdict="inconclusive", estimate=-0.01, low=-0.02, high=0.0, measure="p_gold", seeds=5,
        p_holm=0.01, reason="-1.0 points: within ±3, but x is not supported: no gain is shown.",
    )  # fmt: skip
    cell = "**inconclusive**: -1.0 [-2.0, +0.0] (p(gold))"
    assert report._verdict_cell(row) == cell + ", but no gain is shown"
    assert report._verdict_cell(row | {"p_holm": 0.2}) == cell
    assert report._verdict_cell(row | {"seeds": 2}) == cell


def test_the_readme_answers_a_question_by_the_study_with_most_seeds():
    rows = [dict(question=q, study=s, seeds=n) for q, s, n in ("ax3", "by3", "az5", "bw3")]
    chosen = report.choose_widest([row | {"seeds": int(row["seeds"])} for row in rows])
    assert [(row["question"], row["study"]) for row in chosen] == [("a", "z"), ("b", "y")]


def test_a_claim_that_a_study_did_not_measure_is_a_dash():
    numbers = {"estimate": 0.0312, "low": -0.01, "high": 0.07, "measure": "p_gold"}
    row = {"claim": "a", "words": "A is so.", "verdict": "supported", "family": "paper"} | numbers
    other = row | {"estimate": None, "verdict": "not measured"}
    some = {"accuracy": [{"seeds": 3}]}
    records = {"one": some | {"verdicts": [row]}, "two": some | {"verdicts": [other]}}
    records["one seed"] = {"accuracy": [{"seeds": 1}], "verdicts": [row]}
    old = {name: value for name, value in row.items() if name != "family"}
    records["judged by earlier statistics"] = some | {"verdicts": [old]}
    cell = "**supported**: +3.1 [-1.0, +7.0] (p(gold))"
    table = report.render_verdict_table(records)
    assert table == f"| claim | one | two |\n|---|---|---|\n| A is so | {cell} | – |\n"


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- keys -->\nno end",
        "no start <!-- /keys -->",
        "<!-- keys -->\n<!-- /keys -->\n<!-- keys -->\n<!-- /keys -->\n",
    ],
)
def test_a_document_without_one_pair_of_markers_is_refused(text):
    with pytest.raises(DataError, match="^docs/keys.md: expected one pair <!-- keys -->"):
        report.render_block(text, "keys", "x\n", "docs/keys.md")


def test_the_committed_table_of_keys_is_fresh():
    text = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert report.render_block(text, "keys", render_keys_table(), "docs/keys.md") == text


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    words = [word for word in text.split() if re.search(r"\w", word)]
    assert len(text.splitlines()) <= 120 and len(words) <= 900
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith("http")]
    assert len(targets) > 10
    missing = [t for t in targets if not (ROOT / t.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("words", [["runs"], ["run"], ["new", "my"], ["run-one", "quick"]])
def test_a_command_that_is_not_one_ends_with_its_usage(words, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(words)
    assert error.value.code == 2 and "usage: python -m cotdistill.cli" in capsys.readouterr().err


def test_the_command_line_starts_without_torch():
    code = (
        "import sys; from cotdistill import cli; cli.make_parser(); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False", done.stderr


PUBLISHED = ROOT / "notebooks" / "executed"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The site over two published studies, one of them not judged; no artifacts, no kernel."""
    folder = tmp_path_factory.mktemp("published")
    for study in ("invented", "quarel-elicit"):
        shutil.copytree(PUBLISHED / study, folder / "executed" / study)
    before = os.environ.get("COTDISTILL_ARTIFACTS")
    os.environ["COTDISTILL_ARTIFACTS"] = str(folder / "artifacts")
    try:
        return study_site.build_all(folder / "executed", folder / "site").parent
    finally:
        os.environ.pop("COTDISTILL_ARTIFACTS")
        if before is not None:
            os.environ["COTDISTILL_ARTIFACTS"] = before


def test_published_evidence_is_enough_for_a_site(published):
    front = (published / "index.html").read_text(encoding="utf-8")
    for name in ("invented", "quarel-elicit"):
        assert f'href="{name}/index.html"' in front
    record = json.loads((PUBLISHED / "invented" / "verdicts.json").read_text())
    page = (published / "invented" / "index.html").read_text(encoding="utf-8")
    measured = [v for v in record["verdicts"] if v["estimate"] is not None]
    assert page.count('class="card verdict') == len(measured)
    assert "What the students wrote is not published with this study" in page
    unjudged = (published / "quarel-elicit" / "index.html").read_text(encoding="utf-8")
    assert "was not judged" in unjudged and "01_elicit.html" in unjudged
    for path in published.rglob("*.html"):
        for target in re.findall(r'(?:href|src|srcset)="([^"]+)"', path.read_text()):
            if not target.startswith(("data:", "#", "https://arxiv.org")):
                assert (path.parent / target).is_file(), f"{path}: {target}"


def test_every_picture_has_words_and_a_version_for_phones(published):
    for path in published.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        alts = re.findall(r"<img [^>]*?alt=\"([^\"]*)\"", text)
        assert len(alts) == text.count("<img ") == text.count("<figcaption>")
        assert all(alts) and "figure" not in alts
        drawn = re.findall(r'<img src="(figures/[^"]+)"', text)
        assert all((path.parent / name.replace(".svg", "-phone.svg")).is_file() for name in drawn)
        code = text.count('<div class="highlight">')
        assert code == text.count("<details><summary>code</summary>"), "code is folded"


def test_a_claim_is_the_papers_or_ours():
    assert study_site.name_origin({"section": "abstract, result (1)"}) == (
        "claimed by the paper (abstract, result (1))"
    )
    for section in ("ours", "not known", "", None):
        assert study_site.name_origin({"section": section}) == "a claim of our own"


def test_cards_take_records_with_and_without_the_newer_columns():
    record = json.loads((PUBLISHED / "invented" / "verdicts.json").read_text())
    old = study_site.claim_cards(record)
    assert {card["heading"] for card in old} == {""} and "circle class" in old[0]["strip"]
    assert 'class="seed"' not in old[0]["strip"]
    for row, family in zip(record["verdicts"], ["cost", "paper", "mechanism"] * 6, strict=False):
        row |= {"family": family, "detectable": 0.034, "retained": "60 % of the gain"}
        row |= {"by_seed": [row["estimate"] or 0] * 5, "measure": "p_gold"}
    cards = study_site.claim_cards(record)
    assert [c["heading"] for c in cards if c["heading"]] == list(study_site.FAMILIES.values())
    assert cards[0]["detectable"] == "3.4 points" and cards[0]["retained"] == "60 % of the gain"
    assert cards[0]["strip"].count('class="seed"') == 5


def test_what_students_wrote_is_on_the_page(smoke, site):
    """The gallery of the smoke study: all arms beside each other, with what was right."""
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "What the students wrote" in page and 'class="answer"' in page
    stored = json.loads((smoke[0] / "first" / "smoke" / "answers.json").read_text())
    assert 1 <= len(stored) <= 6
    for one in stored:
        assert one["gold"] in one["choices"]
        assert {"zero_shot", "label_only", "pre_cot", "post_cot"} <= {
            answer["arm"] for answer in one["answers"]
        }
        assert {answer["mark"] for answer in one["answers"]} <= {"right", "wrong", "no option"}


def test_a_gallery_chooses_by_kind():
    arms = ("zero_shot", "label_only", "post_cot")
    wrote = {"a": (0, 0, 1), "b": (0, 1, 0), "c": (0, 1, 1), "d": (0, 0, 0), "e": (0, 0, 1)}
    shown = pd.DataFrame(
        [
            dict(id=name, arm=arm, correct_generated=bool(right), cut_off=name == "d")
            for name, marks in wrote.items()
            for arm, right in zip(arms, marks, strict=True)
        ]
    )
    chosen = [(name, kind) for name, kind, _ in gallery._choose_shown(shown, set(wrote))]
    assert chosen == [
        ("a", "post_cot alone"),
        ("e", "post_cot alone"),
        ("b", "label_only alone"),
        ("d", "cut off"),
        ("c", "all right"),
    ]


def test_texts_of_other_datasets_stay_out_of_galleries(monkeypatch):
    """Only embedded worlds are shown: a dataset without `meta` gives no gallery."""
    from cotdistill.study import Study

    class Loaded:
        data = Dataset("openbookqa", [], [], [], {})

    monkeypatch.setattr(Study, "load", lambda study: Loaded())
    assert gallery.collect_gallery("any") == []


def test_the_picture_of_the_arms_is_made_from_the_world():
    for name, narrow in (("arms.svg", False), ("arms-phone.svg", True)):
        made = arm_picture.draw_arms(narrow)
        assert (ROOT / "docs" / "figures" / name).read_text(encoding="utf-8") == made
        places = re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', made)
        assert max(float(x) + float(w) for x, w in places) <= (390 if narrow else 880)
        assert "prefers-color-scheme: dark" in made
    data = arm_picture._world()
    example = arm_picture.choose_question(data)
    rationale = data.rationales[example.id].text
    words = rationale.split()
    for arm in arm_picture._shown_arms():
        if arm.corruption in ("shuffled", "masked", "kept"):
            texts = [r.text for r in data.rationales.values()]
            chips = arm_picture.rationale_chips(arm, example.id, rationale, texts)
            kinds = [chip.kind for chip in chips]
            assert len(chips) == len(words)
            if arm.corruption == "shuffled":
                assert sorted(chip.text for chip in chips) == sorted(words)
            elif arm.corruption == "masked":
                assert kinds.count("hidden") == round(len(words) / 2)
            else:
                assert kinds.count("rationale") == 3
