"""The house holds: who may import whom, every shipped recipe loads, every README command is run somewhere."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ziya import checks, cli, config

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "megatron_ziya": ROOT / "megatron_ziya",
    "ziya_kernels": ROOT / "kernels/ziya_kernels",
    "ziya_data": ROOT / "data_tools/ziya_data",
}
PURE = [f"megatron_ziya.parallel.{name}" for name in ("schedule", "slices", "verify")]  # need no process and no torch
# package -> what it may import of ours; the first name that fits a module counts
MAY_IMPORT = [
    ("ziya_kernels", {"ziya_kernels"}),
    ("ziya_data", {"ziya_data"}),
    ("megatron_ziya.strict", set()),
    ("megatron_ziya.config", {"megatron_ziya.strict"}),
    ("megatron_ziya.model.parallelize", {"megatron_ziya", "ziya_kernels"}),
    ("megatron_ziya.model", {"megatron_ziya.config", "megatron_ziya.model", "ziya_kernels"}),
    ("megatron_ziya.plan.commands", {"megatron_ziya"}),
    ("megatron_ziya.plan.memory", {"megatron_ziya", "ziya_kernels"}),  # counts the engine's own buckets, without memory
    ("megatron_ziya.plan", {"megatron_ziya.config", "megatron_ziya.plan", *PURE}),
    ("megatron_ziya", {"megatron_ziya", "ziya_kernels", "ziya_data"}),
]


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            yield ".".join(parts).removesuffix(".__init__"), path


def imports(name: str, path: Path, inside_functions: bool = True) -> set[str]:
    """What a module imports, as absolute dotted names."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            source = (base + (node.module or "")).rstrip(".")
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_one_way(name, path):
    allowed = next(allowed for package, allowed in MAY_IMPORT if inside(name, package))
    for imported in imports(name, path):
        if any(inside(imported, package) for package in PACKAGES):
            assert any(inside(imported, package) for package in allowed), f"{name} must not import {imported}"
        assert imported.split(".")[0] not in ("tests", "tools", "examples"), f"{name} must not import {imported}"
        if inside(name, "ziya_data"):
            assert imported.split(".")[0] not in ("torch", "transformers"), f"{name} must not import {imported}"


def test_no_circles():
    """Modules of ours can be put in an order in which each imports only earlier ones (functions' imports aside)."""
    known = dict(modules())
    graph = {
        name: {m for i in imports(name, path, inside_functions=False) for m in _module_of(i, known)} - {name}
        for name, path in known.items()
    }
    placed: set[str] = set()
    while len(placed) < len(graph):
        ready = {name for name, needs in graph.items() if name not in placed and needs <= placed}
        assert ready, f"these import each other in a circle: {sorted(set(graph) - placed)}"
        placed |= ready


def _module_of(imported: str, known: dict[str, Path]) -> set[str]:
    if imported in known:
        return {imported}
    parent = imported.rpartition(".")[0]
    return {parent} if parent in known else set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_says_what_is_in_it(package):
    for folder in {path.parent for path in PACKAGES[package].rglob("*.py")}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{folder} has no opening lines"


RECIPES = sorted(path for path in ROOT.glob("examples/*/*.toml") if "factory" not in path.name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_recipe_loads(path):
    recipe = config.load(path)
    layout = recipe.parallel.tensor * recipe.parallel.pipeline
    if not recipe.model.load:
        checks.check(recipe, recipe.model.architecture(), layout)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/*factory*.toml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_factory_recipe_loads(path):
    from ziya_data.factory.recipe import load

    load(path)


def test_every_command_of_the_table_exists():
    import importlib

    for command in cli.COMMANDS:
        module, _, function = command.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), command.name


def readme_commands() -> list[str]:
    """Lines of the README's shell blocks, continuation lines joined, without comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition(" #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]
