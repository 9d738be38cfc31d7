import pytest

from ziya_data.document import Document
from ziya_data.factory.formats import written


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("text", "正文。", "正文。"),
        ("supervised", "问题:谁赢了？ 回答:答案：A.胜负", "问题:谁赢了？ 回答:答案：A.胜负"),
        ("code", "int a;", "```c\nint a;\n```"),
        ("code", 'doc = """\n```py\nx\n```\n"""', '````c\ndoc = """\n```py\nx\n```\n"""\n````'),
    ],
)
def test_formats_of_appendix_a(kind: str, text: str, expected: str) -> None:
    assert written(Document("a", text, "s", kind=kind, metadata={"language_name": "c"})) == expected
