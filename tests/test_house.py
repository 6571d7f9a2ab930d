"""The house rules that a linter does not know, checked on the syntax trees of the package."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cotdistill"
# What a kernel may know of the package: its one kind of error, and the processes of a torchrun
KERNELS_KNOW = {"cotdistill.errors", "cotdistill.processes"}


@cache
def trees() -> dict[str, ast.Module]:
    """Return module name -> its syntax tree, folders as their `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    """List all functions and methods of a tree, nested ones too."""
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def imports(name: str) -> set[str]:
    """Return the package's modules that a module imports, also inside its functions."""
    found = set()
    for node in ast.walk(trees()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import in line {node.lineno}"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = {module for module in found if module in trees()}
    # `from package import module` needs the folder's __init__ only where that holds something
    return found - {name, "cotdistill"}


def circles() -> list[list[str]]:
    """List import circles, each once, as the modules on the way round."""
    found, done = [], set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(imports(name)):
                follow(other, (*way, name))
            done.add(name)

    for name in trees():
        follow(name, ())
    return found


def count_parameters(function: ast.FunctionDef) -> int:
    """Count what a caller can name: neither self nor `_unused`, neither *args nor **kwargs."""
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(not one.arg.startswith("_") and one.arg not in ("self", "cls") for one in named)


def defined_names(tree: ast.Module) -> set[str]:
    """Return what a module defines or imports at its top level."""
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return found


def local_names(function: ast.FunctionDef) -> set[str]:
    """Return what a function binds: parameters, assignments, loops; its own imports don't count."""
    every = function.args
    named = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and n.id not in ("_",)
              and isinstance(n.ctx, ast.Store)}  # fmt: skip
    return stored | {one.arg for one in named if one}


def long_functions() -> list[str]:
    """List functions of more than 60 lines."""
    return [
        f"{name}.{f.name}: {f.end_lineno - f.lineno + 1} lines"
        for name, tree in trees().items()
        for f in functions(tree)
        if f.end_lineno - f.lineno >= 60
    ]


def wide_functions() -> list[str]:
    """List functions of more than 8 parameters."""
    return [
        f"{name}.{f.name}: {count_parameters(f)} parameters"
        for name, tree in trees().items()
        for f in functions(tree)
        if count_parameters(f) > 8
    ]


def shadowed_names() -> list[str]:
    """List locals that hide a name which their module defines or imports."""
    return sorted(
        f"{name}.{f.name}: {', '.join(sorted(hidden))}"
        for name, tree in trees().items()
        for f in functions(tree)
        if (hidden := local_names(f) & defined_names(tree))
    )


def shared_names() -> list[str]:
    """List functions and classes whose name is defined in two modules or more.

    Readings don't count: they are named after what they read, and always called with their module
    (`test_readings_are_called_by_module`).
    """
    places = defaultdict(list)
    for name, tree in trees().items():
        if name.startswith("cotdistill.readings."):
            continue
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                places[node.name].append(name)
    return [f"{one}: {', '.join(homes)}" for one, homes in sorted(places.items()) if len(homes) > 1]


def test_kernels_import_nothing_of_the_study():
    for name in trees():
        if name.startswith("cotdistill.kernels"):
            others = {m for m in imports(name) if not m.startswith("cotdistill.kernels")}
            assert others <= KERNELS_KNOW, name


def test_readings_are_called_by_module():
    by_name = [
        f"{name}: {node.module}.{alias.name}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("cotdistill.readings.")
        for alias in node.names
        if node.module != "cotdistill.readings.common"
    ]
    assert by_name == ["cotdistill.readings: cotdistill.readings.elicit.read_card"]


def test_no_import_circle():
    assert circles() == []


# What is still to be repaired, by the beginning of its line; an empty list makes a rule strict
UNDER_REPAIR = {
    long_functions: (),
    wide_functions: (),
    shadowed_names: (),
    shared_names: ("generate:",),
}
# Each command has a main of its own
ALLOWED = ("main:",)


@pytest.mark.parametrize("rule", UNDER_REPAIR, ids=lambda f: f.__name__)
def test_house_rule(rule):
    left = [line for line in rule() if not line.startswith((*UNDER_REPAIR[rule], *ALLOWED))]
    assert not left, "\n".join(left)


def test_every_kernel_of_the_table_is_there():
    kernels = trees()["cotdistill.kernels"]
    named = [
        ast.literal_eval(call.args[0])
        for call in ast.walk(kernels)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Kernel"
    ]
    assert len(named) == len(set(named)) >= 10
    for module, _, name in (one.partition(".") for one in named):
        tree = trees()[f"cotdistill.kernels.{module}"]
        assert name in {getattr(node, "name", "") for node in tree.body}, f"{module}.{name}"
