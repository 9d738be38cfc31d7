"""What the tests of whole factory runs share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ziya_data.factory import recipe, storage

Make = Callable[..., recipe.Recipe]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with storage.lines_out(path) as file:
        for row in rows:
            storage.write_line(file, row)


def files(out: Path) -> dict[str, bytes]:
    """Every output but the times and the pictures."""
    found = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith("report.")]
    return {str(path.relative_to(out)): path.read_bytes() for path in found if path.name != "recipe.toml"}


def silent(line: str) -> None:
    pass
