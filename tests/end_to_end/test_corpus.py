"""The demo's raw text: parsing, choosing and reading archives, on small files made here; no network."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

zstandard = pytest.importorskip("zstandard")
DEMO = Path(__file__).parents[2] / "examples" / "demo"
sys.path.insert(0, str(DEMO))
try:
    import corpus
    import corpus_download as download
    import corpus_text as parse
finally:
    sys.path.remove(str(DEMO))


def test_strip_marks_leaves_the_sentence():
    assert (
        parse.strip_marks("[中国/ns  银行/n  １９９８年/t  ：/w  １/m  //w  ２/m  。/w")
        == "[中国银行１９９８年：１/２。"
    )
    assert parse.strip_marks("Windows/nx  95/m  和/c  Internet/nx") == "Windows 95和Internet"


def test_an_article_begins_at_its_headline():
    body = "本报北京１月１日电记者报道：" + "今天的新闻很长" * 8 + "。"
    lines = [
        "头版标题",
        "副标题（附图片１张）",
        "本报记者张三",
        body,
        "短的一段。",
        "（新华社发）",
        "挂灯（图片）",
        "贺岁（图片）",
        body,
    ]
    lines += ["第二个标题", body]
    marked = "\n".join("  ".join(f"{character}/n" for character in line) for line in lines)
    articles = [article.split("\n") for article in parse.news_articles(marked)]
    assert [article[0] for article in articles] == ["头版标题", "挂灯（图片）", "贺岁（图片）", "第二个标题"]
    assert [line for article in articles for line in article] == lines


@given(st.lists(st.text("甲乙丙。", min_size=1, max_size=60), max_size=8))
def test_articles_lose_no_line(lines: list[str]):
    marked = "\n".join("  ".join(f"{character}/x" for character in line) for line in lines)
    assert "\n".join(parse.news_articles(marked)) == "\n".join(lines)


@pytest.mark.parametrize(
    ("page", "url"),
    [
        ('<link rel="canonical" href="https://a.example/1?x=1&amp;y=2">', "https://a.example/1?x=1&y=2"),
        ("<link href='http://a.example/2' rel='canonical'/>", "http://a.example/2"),
        (
            '<link rel="canonical" href="8003098"/><meta property="og:url" content="http://b.example/3">',
            "http://b.example/3",
        ),
        ("<!-- saved from url=(0022)https://c.example/4 -->", "https://c.example/4"),
        ('<meta property="og:url" content="">', ""),
        ('<link rel="icon" href="https://a.example/icon">', ""),
    ],
)
def test_page_url_is_the_stated_one(page: str, url: str):
    assert parse.page_url(page) == url


def test_pages_leave_out_stubs_and_name_a_page_without_an_address():
    rows = parse.pages({"tests/a.html": b"x" * 3000, "tests/b.html": b"x" * 100}, "pkg")
    assert [(row["id"], row["url"]) for row in rows] == [("pkg/tests/a.html", "https://saved.invalid/pkg/tests/a.html")]


def wiki_rows(count: int) -> list[parse.Row]:
    entries = {str(i): {"title": f"Page no. {i}?", "extract": f"Page {i} is one. It has more."} for i in range(count)}
    return parse.wiki(json.dumps(entries).encode(), "en")


def test_wiki_addresses_and_the_second_visit():
    rows = wiki_rows(2000)
    assert rows[7]["url"] == "https://en.wikipedia.org/wiki/Page_no._7%3F"
    again = parse.recrawl(rows)
    assert 30 <= len(again) <= 90
    assert again == parse.recrawl(rows)
    originals = {row["id"]: row for row in rows}
    for row in again:
        first = originals[row["id"].removesuffix("-again")]
        assert row["url"] != first["url"]
        assert row["text"] != first["text"]
        assert [c for c in row["text"] if c.isalnum()] == [c for c in first["text"] if c.isalnum()]
    assert {row["url"].partition("Page")[0] for row in again} == {
        "https://en.wikipedia.org/wiki/",
        "https://en.m.wikipedia.org/wiki/",
    }


def test_take_keeps_the_budget_the_order_and_repeats_together():
    rows = parse.named("r", [f"text {i // 2}" for i in range(200)])
    kept = parse.take(rows, 600)
    assert 500 < sum(len(row["text"]) for row in kept) <= 600
    assert [row["id"] for row in kept] == sorted(row["id"] for row in kept)
    counts = [sum(other["text"] == row["text"] for other in kept) for row in kept]
    assert counts.count(1) <= 1
    assert parse.take(rows, 10**6) == rows
    assert parse.take([{"id": "big", "text": "x" * 101}], 1000) == []


def test_choices_carry_the_real_label():
    rows = parse.review_choices([f"房间很好很干净第{i}次" for i in range(20)], ["服务太差下次不会再来了", "太差"])
    assert len(rows) == 21
    assert {tuple(row["options"]) for row in rows} == {("好评", "差评"), ("差评", "好评")}
    for row in rows:
        label = "差评" if "太差" in row["context"] else "好评"
        assert row["options"][row["answer"]] == label
        assert row["text"].endswith(f"回答:答案：{'AB'[row['answer']]}.{label}")
    (topic,) = parse.topic_choices({"data/sports/001.txt": "A goal."})
    assert topic["text"] == (
        "Problem: A goal.\nQuestion:What is this article about?\n"
        "A.business B.entertainment C.politics D.sports E.tech\nAnswer:D.sports"
    )


def test_benchmark_items():
    choice = {"id": "h", "ctx": "He runs and", "endings": ["a.", "b.", "c.", "d."], "expected_index": 2}
    maths = {"id": "g", "prompt": "1+1?", "expected": "2", "upstream_answer": "It is <<1+1=2>>2.\n#### 2"}
    first, second = parse.benchmark(json.dumps(choice).encode(), json.dumps(maths).encode())
    assert first["text"].endswith("A.a. B.b. C.c. D.d.\nAnswer:C.c.")
    assert second["text"] == "Question: 1+1?\nAnswer: It is 2.\nThe answer is: 2"


def test_read_members_of_both_kinds(tmp_path: Path):
    wheel, sdist = tmp_path / "p-1-py3-none-any.whl", tmp_path / "p-1.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/b.txt", "two")
        archive.writestr("p/a.txt", "one")
    with tarfile.open(sdist, "w:gz") as archive:
        for name, content in (("p-1/p/b.txt", b"two"), ("p-1/p/a.txt", b"one"), ("p-1/setup.py", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for path in (wheel, sdist):
        members = download.read_members(path, lambda name: name.endswith(".txt"))
        assert list(members.items()) == [("p/a.txt", b"one"), ("p/b.txt", b"two")]


def test_a_download_is_tried_twice_and_its_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = []

    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="WARNING: x\nERROR: no such thing\n")

    monkeypatch.setattr(download.subprocess, "run", fails)
    with pytest.raises(ValueError, match=r"^pip could not download gne==\S+: ERROR: no such thing; check the network$"):
        download.fetch(download.PACKAGES["gne"], tmp_path)
    assert len(commands) == 2
    assert commands[0][-2:] == ["--no-binary", "gne"]


def test_a_file_with_another_hash_is_refused(tmp_path: Path):
    package = download.PACKAGES["gne"]
    (tmp_path / package.file).write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        download.fetch(package, tmp_path)


def test_written_files_agree_with_the_manifest(tmp_path: Path):
    rows = {name: parse.named(name.partition(".")[0], [f"{'长' * 30}{i}" for i in range(5)]) for name in corpus.BUDGETS}
    rows["wiki_en.jsonl.zst"] = wiki_rows(200)
    manifest = corpus.write_all(rows, {"vocabulary/v.gguf": b"GGUF"}, tmp_path, short=True)
    key = "k"
    corpus.write(tmp_path / "manifest.json", json.dumps({"key": key, "files": manifest}).encode())
    assert corpus.is_current(tmp_path, key)
    assert not corpus.is_current(tmp_path, "another")
    assert not list(tmp_path.rglob("*.tmp"))
    for name, record in manifest.items():
        path = tmp_path / name
        assert path.stat().st_size == record["bytes"]
        if name.endswith(".zst"):
            with zstandard.open(path, "rt", encoding="utf-8") as lines:
                assert len([json.loads(line) for line in lines]) == record["documents"]
    (tmp_path / "news_zh.jsonl.zst").unlink()
    assert not corpus.is_current(tmp_path, key)
