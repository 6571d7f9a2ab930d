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

INJECTED = (
    "injected-parameters"  # papermill's tag for the cell of a study's values; here its id too
)


def tidy_notebook(path: Path, seconds: float) -> None:
    """Remove from an executed notebook all that differs between two executions of the same code.

    Widgets, paths of this machine and times per cell go. Stream output is joined, and the cell that
    papermill adds gets a fixed id (its own is random). Only the wall time of the whole stays, in
    seconds. Raises ValueError for what is not JSON.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    papermill = notebook["metadata"].pop("papermill", {})
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook["metadata"]["cotdistill"] = {
        "parameters": papermill.get("parameters", {}),
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
    with atomic_write(path) as part:
        part.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def merge_streams(outputs: list[dict]) -> list[dict]:
    """Drop widgets from a cell's outputs and join neighbouring outputs of one stream.

    A line that was printed once may arrive in several messages, and a path cut in two would not be
    found.
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
    """Remove the machine's paths from an output: stream, display, result or error.

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
    """Replace paths in a text, or in the texts of a list or mapping, as `find_places` says."""
    if isinstance(value, list):
        return [clean_paths(item, places) for item in value]
    if isinstance(value, dict):
        return {key: clean_paths(item, places) for key, item in value.items()}
    if isinstance(value, str):
        for pattern, name in places:
            value = pattern.sub(name, value)
    return value


def find_places() -> list[tuple[re.Pattern, str]]:
    """List the (pattern, name) pairs that replace this machine's paths, in their order.

    Paths in the repository become relative, the artifacts are called `artifacts`, the cache
    ~/.cache/cotdistill wherever it lies, and the home folder ~. Of the environment's own files the
    part from site-packages or lib on is kept. A path is found as given, resolved, and as HTML, JSON
    and URLs write it, the longest first.
    """
    home, paths = Path.home(), sysconfig.get_paths()
    names = {
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
    if sys.prefix != sys.base_prefix:  # outside an environment it is /usr
        names[sys.prefix] = ".venv"
    spellings = {}
    for place, name in names.items():
        absolute = Path(os.path.abspath(place))
        for path in (str(absolute), str(absolute.resolve())):
            if len(path) > 1:  # "/" as a home folder gets no name of its own
                for form in (path, html.escape(path), json.dumps(path)[1:-1], quote(path)):
                    spellings.setdefault(form, name)
    before = r"(?:(?<![\w.~/-])|(?<=file://)|(?<=\dm))"  # the last one: a traceback's colour
    # A cell's source lies in a folder with the kernel's number
    places = [(re.compile(r"[^\s\"'<>]*/ipykernel_\d+/(?=\d+\.py)"), "cell ")]
    for path, name in sorted(spellings.items(), key=lambda item: -len(item[0])):
        whole_path = before + re.escape(path)
        if not name:
            places.append((re.compile(whole_path + r"/(?=[\w.-])"), ""))
        places.append((re.compile(whole_path + r"(?![\w-])"), name or "."))
    # Files of another environment
    places.append((re.compile(r"(?<![\w.])~?/[^\s\"'<>]*/(?=site-packages/)"), ""))
    return places
