"""`Document`: the one record that every part of the data side passes along."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Document:
    """A piece of text and where it came from.

    `language` is `"en"`, `"zh"`, `"other"` or `""` before it has been identified; `kind` is `"text"`, `"code"` or
    `"supervised"` and decides the output format (Ziya2, appendix A).
    """

    id: str
    text: str
    source: str
    url: str = ""
    language: str = ""
    kind: str = "text"
    metadata: dict[str, Any] = field(default_factory=dict)
