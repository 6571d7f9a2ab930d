"""Make an executed notebook fit to publish: no widget, no path of this machine, stable cell ids."""

import html
import json
import os
import re
import sys
import sysconfig
import tempfile
from pathlib import Path
from urllib.parse import quote

from cotdistill.files import atomic_write
from cotdistill.paths import artifacts, root

INJECTED = "injected-parameters"  # papermill's tag of the cell with a study's values; its id too


def tidy_notebook(path: Path, seconds: float) -> None:
    """Make an executed notebook fit to publish; two executions that say the same are then equal.

    No widgets, no paths of this machine, stream output in one piece, one id for the cell that
    papermill puts in (its own is random), no times per cell. Only the wall time of the whole stays,
    in seconds. Raises ValueError for what is no JSON.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    about = notebook["metadata"].pop("papermill", {})
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook["metadata"]["cotdistill"] = {
        "parameters": about.get("parameters", {}),
        "seconds": round(seconds, 1),
    }
    places = find_places()
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        if INJECTED in cell["metadata"].get("tags", []):
            cell["id"] = INJECTED
        if "outputs" in cell:
            cell["outputs"] = [
                clean_output(output, places) for output in merge_streams(cell["outputs"])
            ]
    with atomic_write(path) as made:
        made.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def merge_streams(outputs: list[dict]) -> list[dict]:
    """A cell's outputs without widgets, neighbours of one stream joined.

    A line that was printed once may come in several messages, and a path cut in two is not found.
    """
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if any(
            kind.startswith("application/vnd.jupyter.widget") for kind in output.get("data", {})
        ):
            continue
        if (
            output["output_type"] == "stream" == last.get("output_type")
            and output["name"] == last["name"]
        ):
            last["text"] += "".join(output["text"])
        else:
            merged.append(
                output
                | ({"text": "".join(output["text"])} if output["output_type"] == "stream" else {})
            )
    return merged


def clean_output(output: dict, places: list[tuple[re.Pattern, str]]) -> dict:
    """An output without the machine's paths: stream, display, result or error.

    Images stay as they are.
    """
    cleaned = dict(output)
    for field in ("text", "ename", "evalue", "traceback"):
        if field in cleaned:
            cleaned[field] = clean_paths(cleaned[field], places)
    if "data" in cleaned:
        cleaned["data"] = {
            kind: value
            if kind.startswith("image/") and kind != "image/svg+xml"
            else clean_paths(value, places)
            for kind, value in cleaned["data"].items()
        }
    if cleaned.get("metadata"):
        cleaned["metadata"] = {}
    return cleaned


def clean_paths(value, places: list[tuple[re.Pattern, str]]):
    """A text, or the texts of a list or mapping, with paths named as `find_places` says."""
    if isinstance(value, list):
        return [clean_paths(item, places) for item in value]
    if isinstance(value, dict):
        return {key: clean_paths(item, places) for key, item in value.items()}
    if isinstance(value, str):
        for pattern, name in places:
            value = pattern.sub(name, value)
    return value


def find_places() -> list[tuple[re.Pattern, str]]:
    """What an executed notebook calls the places of this machine: (pattern, name) in their order.

    The repository is where its paths start, the artifacts are `artifacts` and the cache is
    ~/.cache/cotdistill wherever they lie, the home folder is ~; of the environment's own files the
    part from site-packages or lib on is kept. A path is found as it is, resolved, and as HTML, JSON
    and URLs write it, the longest first.
    """
    home, paths = Path.home(), sysconfig.get_paths()
    named = {
        paths["purelib"]: "site-packages",
        paths["stdlib"]: f"lib/{Path(paths['stdlib']).name}",
        artifacts(): "artifacts",
        os.environ.get("COTDISTILL_CACHE") or home / ".cache" / "cotdistill": "~/.cache/cotdistill",
        root(): "",
        os.environ.get("HF_HOME") or home / ".cache" / "huggingface": "~/.cache/huggingface",
        home: "~",
        tempfile.gettempdir(): "tmp",
        "/tmp": "tmp",
        "/var/tmp": "tmp",
    }
    if sys.prefix != sys.base_prefix:  # without an environment it is /usr
        named[sys.prefix] = ".venv"
    spelled = {}
    for place, name in named.items():
        absolute = Path(os.path.abspath(place))
        for path in (str(absolute), str(absolute.resolve())):
            if len(path) > 1:  # a home folder that is "/" has no name of its own
                for form in (path, html.escape(path), json.dumps(path)[1:-1], quote(path)):
                    spelled.setdefault(form, name)
    before = r"(?:(?<![\w.~/-])|(?<=file://)|(?<=\dm))"  # the last: a colour of a traceback
    places = [
        (re.compile(r"[^\s\"'<>]*/ipykernel_\d+/(?=\d+\.py)"), "cell ")
    ]  # a cell's source, under the kernel's number
    for path, name in sorted(spelled.items(), key=lambda item: -len(item[0])):
        whole_path = before + re.escape(path)
        if not name:
            places.append((re.compile(whole_path + r"/(?=[\w.-])"), ""))
        places.append((re.compile(whole_path + r"(?![\w-])"), name or "."))
    places.append(
        (re.compile(r"(?<![\w.])~?/[^\s\"'<>]*/(?=site-packages/)"), "")
    )  # of another environment
    return places
