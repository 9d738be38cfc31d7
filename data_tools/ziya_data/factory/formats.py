"""How a kept document is written, by kind (Ziya2, appendix A)."""

import re

from ziya_data.document import Document

FENCE = re.compile("^`{3,}", re.MULTILINE)


def written(document: Document) -> str:
    """Code goes into a Markdown fence with its language's name, so that the model learns to write it so.

    Prose and supervised items pass as they are: the latter already carry their prompts (`问题:... 回答:...`).
    """
    if document.kind != "code":
        return document.text
    # Code that holds a fence itself needs a longer one around it (CommonMark, section 4.5).
    longest = max((len(found) for found in FENCE.findall(document.text)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{document.metadata.get('language_name', '')}\n{document.text}\n{fence}"
