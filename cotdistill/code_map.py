"""List the package's files with the first line of each, for docs/code-map.md."""

import ast
from pathlib import Path


def read_summary(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop.

    path: a Python file. Raises ValueError for a module without a docstring.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(
            f"{path}: no docstring; expected one whose first line says what lives here"
        )
    return docstring.split("\n")[0].removesuffix(".")


def render_code_map(package: Path) -> str:
    """Render a package as Markdown: a list of its modules, then one for each folder."""
    lines = []
    for folder in (package, *sorted(path.parent for path in package.glob("*/__init__.py"))):
        if folder != package:
            lines += ["", f"**`{folder.name}/`** {read_summary(folder / '__init__.py')}", ""]
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        lines += [f"- `{path.name}`: {read_summary(path)}" for path in modules]
    return "\n".join(lines)
