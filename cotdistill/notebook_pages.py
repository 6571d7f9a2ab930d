"""Turn an executed notebook into a page of the site: code folded, every figure with words.

Nothing is fetched, and no kernel is started.
"""

import html
import re
from pathlib import Path

from markupsafe import Markup

from cotdistill.paths import ALL_NOTEBOOKS

# What each figure shows, for its caption; a notebook's picture of that name has the same
CAPTIONS = {
    "forest": "Each claim's estimate with its 95 % interval, coloured by its verdict. Small "
    "circles, where known, are single seeds; an estimate in the blue shade supports the claim.",
    "pooled": "The claims of the paper's abstract, a line per study and a diamond for the mean "
    "over them, each with its 95 % interval and the colour of its verdict. Small circles are "
    "single seeds; an estimate in the blue shade supports the claim.",
    "strata": "Two contrasts of placement within parts of the test questions, with 95 % intervals.",
    "placement": "How often each arm picks the right option. Small circles, where known, are "
    "single seeds.",
    "shuffle": "Accuracy with the rationale intact and spoilt. The band is label_only.",
    "key_tokens": "Accuracy when only a few tokens of the rationale are kept.",
    "masking": "Accuracy as more and more of the rationale is masked, from 0 % on.",
    "tasks": "Each arm by the number of steps that a question takes, with 95 % intervals.",
    "quality": "p(gold) of each set of rationales by its measured quality, with 95 % intervals.",
    "methods": "p(gold) after training on the top tokens of each method, with 95 % bands.",
    "lasting": "The gap to label_only as students go on to learn from labels, with 95 % bands.",
    "label_dial": "p(gold) by the label's share of the loss, with 95 % bands.",
    "alignment": "Cosine of the label's and the rationale's gradients, block by block.",
    "lens": "How much likelier a student finds its own key tokens than others, block by block.",
    "cost": "Accuracy of written answers against the tokens that they take.",
    "learning_curves": "How the arms learn: loss of the label, and validation accuracy.",
    "shuffle_learning_curves": "How the arms with a spoilt rationale learn.",
    "heatmap": "Tokens of one rationale: orange speaks for the label, blue against it.",
    "deletion": "How the label's probability changes as the highest-ranked tokens are deleted.",
    "agreement": "How far the attribution methods rank tokens alike.",
}
_NAMED = re.compile(r"show_figure\(\s*[\w.]+,\s*\"(\w+)\"")
_LOOPED = re.compile(r"for name in \(([^)]*)\)")


def picture(source: str, phone: str, alt: str, caption: str) -> Markup:
    """Write a figure with its caption; phone: an own picture for narrow screens, or empty."""
    narrow = Markup('<source media="(max-width: 600px)" srcset="{}">').format(phone)
    return Markup(
        '<figure><picture>{}<img src="{}" alt="{}"></picture><figcaption>{}</figcaption></figure>'
    ).format(narrow if phone else "", source, alt, caption)


def notebook_html(path: Path, phones: dict[str, str] | None = None) -> str:
    """Turn an executed notebook into an HTML fragment.

    Code is folded; tables, readings and pictures are shown. phones: name of a figure -> address of
    its picture for narrow screens.
    """
    import nbformat

    parts, section = [], ""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)$", cell.source, flags=re.M)
            section = headings[-1] if headings else section
            parts.append(_markdown(cell.source))
        elif cell.cell_type == "code" and cell.source.strip():
            parts.append(_folded_code(cell.source))
            parts += _outputs(cell, section, phones or {})
    return _link_pages("\n".join(parts), path.parent)


def _markdown(text: str) -> str:
    from nbconvert.filters import markdown2html

    return markdown2html(text)


def _link_pages(body: str, folder: Path) -> str:
    """Turn links between notebooks into links between pages.

    folder: of the executed notebooks. A link to one that was not executed leads to the first page.
    """
    for stem in ALL_NOTEBOOKS.values():
        page = f"{stem}.html" if (folder / f"{stem}.ipynb").is_file() else "index.html"
        body = re.sub(rf'href="{stem}\.(ipynb|html)"', f'href="{page}"', body)
    return body


def _folded_code(source: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    code = highlight(source, PythonLexer(), HtmlFormatter())
    return f"<details><summary>code</summary>{code}</details>"


def _figure_names(source: str) -> list[str]:
    """List the figures that a code cell may show, in order."""
    names = _NAMED.findall(source)
    looped = _LOOPED.search(source)
    return names or (re.findall(r"\"(\w+)\"", looped[1]) if looped else [])


def _outputs(cell, section: str, phones: dict[str, str]) -> list[str]:
    """Write what a code cell showed; section: the heading above it, for pictures without a name."""
    names = _figure_names(cell.source)
    pictures = sum("image/png" in (output.get("data") or {}) for output in cell.outputs)
    names = names if len(names) == pictures else []
    parts, shown = [], 0
    for output in cell.outputs:
        data = output.get("data") or {}
        if "image/png" in data:
            name = names[shown] if names else ""
            shown += 1
            caption = CAPTIONS.get(name, section)
            source = "data:image/png;base64," + "".join(data["image/png"].split())
            parts.append(picture(source, phones.get(name, ""), caption, caption))
        elif "text/html" in data:
            parts.append(f'<div class="scroll">{data["text/html"]}</div>')
        elif "text/markdown" in data:
            parts.append(_markdown(data["text/markdown"]))
        else:
            text = (
                output.get("text")
                or data.get("text/plain")
                or "\n".join(output.get("traceback", []))
            )
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
            parts.append(f"<pre>{html.escape(text)}</pre>" if text.strip() else "")
    return parts
