"""How each package's files become rows for the demo's raw text: pure functions, used by `corpus.py`.

A row is a dict with `id`, `text` or `html`, and what else the factory reads from jsonl (`url`, `kind`, ...).
"""

import hashlib
import html as html_entities
import json
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

Row = dict[str, Any]
SENTENCE_ENDS = "。！？；：…，”』）"


def share(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the text and the salt alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}\n{text}".encode()).digest()[:6], "big") / 2**48


def body(row: Row) -> str:
    return row.get("html") or row["text"]


def take(rows: Sequence[Row], budget: int) -> list[Row]:
    """Rows of at most `budget` bytes in all, none above a tenth of it, chosen by hash of the text, in their order."""
    kept, total = set(), 0
    for index in sorted(range(len(rows)), key=lambda i: (share(body(rows[i]), "take"), i)):
        size = len(body(rows[index]).encode())
        if size <= budget / 10 and total + size <= budget:
            kept.add(index)
            total += size
    return [row for index, row in enumerate(rows) if index in kept]


def named(name: str, texts: Iterable[str], **rest: str) -> list[Row]:
    return [{"id": f"{name}-{i:06d}", "text": text, **rest} for i, text in enumerate(texts)]


# ---- web input ----------------------------------------------------------------------------------------------------


def page_url(page: str) -> str:
    """The address that a saved page states for itself, or ""."""
    for pattern, attribute in (
        (r"<!-- saved from url=\(\d+\)(\S+)", ""),
        (r"<link\b[^>]*\brel=[\"']?canonical\b[^>]*>", "href"),
        (r"<meta\b[^>]*\bproperty=[\"']?og:url\b[^>]*>", "content"),
    ):
        found = re.search(pattern, page, re.I)
        if found and attribute:
            found = re.search(rf"\b{attribute}=[\"']?(https?://[^\"'\s>]+)", found.group(), re.I)
        if found and found.group(1).startswith("http"):
            return html_entities.unescape(found.group(1))
    return ""


def pages(members: dict[str, bytes], package: str) -> list[Row]:
    """Saved pages of 2.5 KB to 1.2 MB; smaller ones are test stubs, larger ones are nearly all script."""
    rows: list[Row] = []
    for path, content in members.items():
        if 2_500 <= len(content) <= 1_200_000:
            page = content.decode("utf-8")
            name = f"{package}/{path}"
            rows.append({"id": name, "url": page_url(page) or f"https://saved.invalid/{name}", "html": page})
    return rows


def wiki(summaries: bytes, language: str) -> list[Row]:
    rows: list[Row] = []
    for i, entry in enumerate(json.loads(summaries).values()):
        title = urllib.parse.quote(entry["title"].replace(" ", "_"), safe="/:,()'!*~$@;")
        url = f"https://{language}.wikipedia.org/wiki/{title}"
        rows.append({"id": f"wiki_{language}-{i:06d}", "url": url, "text": entry["extract"], "title": entry["title"]})
    return rows


def recrawl(rows: Sequence[Row]) -> list[Row]:
    """3 % of the rows again, as a second visit finds them: another address, other spaces and punctuation."""
    again: list[Row] = []
    for row in rows:
        if share(row["text"], "recrawl") >= 0.03:
            continue
        form = len(again) % 3
        url = (
            row["url"] + "#History",
            row["url"] + "?utm_source=newsletter&utm_medium=email",
            row["url"].replace(".wikipedia.org", ".m.wikipedia.org"),
        )[form]
        text = row["text"].replace(". ", ".  ").replace(" – ", " - ").rstrip(".") + " ."
        again.append({**row, "id": row["id"] + "-again", "url": url, "text": text})
    return again


def strip_marks(line: str) -> str:
    """`新年/t  讲话/n` -> `新年讲话`; a space stays between two words in ASCII letters or digits."""
    text = ""
    for word in (marked.rpartition("/")[0] for marked in line.split()):
        glued = text[-1:].isascii() and text[-1:].isalnum() and word[:1].isascii() and word[:1].isalnum()
        text += f" {word}" if glued else word
    return text


def news_articles(marked: str) -> list[str]:
    """Articles of the marked newspaper, a paragraph a line.

    An article begins at a headline (at most 45 characters, no end punctuation, or a picture's title) once the one
    before it has had a paragraph; so headline, subtitle and author stay together.
    """
    articles: list[list[str]] = [[]]
    has_body = False
    for line in filter(None, map(strip_marks, marked.splitlines())):
        picture = line.endswith("（图片）")
        headline = len(line) <= 45 and (line[-1] not in SENTENCE_ENDS or picture or "（附图片" in line[1:])
        if headline and (has_body or picture) and articles[-1]:
            articles.append([])
            has_body = False
        articles[-1].append(line)
        has_body = has_body or not headline
    return ["\n".join(article) for article in articles if article]


def chapters(document: bytes) -> list[str]:
    return ["\n".join(filter(None, map(str.strip, text.splitlines()))) for text in json.loads(document)]


def rulings(cases: Sequence[bytes]) -> list[Row]:
    """Court rulings: number, question, ruling and reasons."""
    rows: list[Row] = []
    for case in (case for content in cases for case in json.loads(content).values()):
        parts = (
            case["case_number"],
            case.get("issues") or case.get("issue_summary"),
            case["main_text"],
            case["reasoning"],
        )
        text = "\n".join(part.strip() for part in parts if part)
        rows.append({"id": f"traditional_zh-{len(rows):06d}", "url": case["source_url"], "text": text})
    return rows


# ---- supervised ---------------------------------------------------------------------------------------------------


def choice_zh(identity: str, context: str, question: str, options: list[str], answer: int) -> Row:
    listed = " ".join(f"{letter}.{option}" for letter, option in zip("ABCD", options, strict=False))
    text = f"问题:{context}\n{question}\n{listed}\n回答:答案：{'ABCD'[answer]}.{options[answer]}"
    return choice(identity, text, context, question, options, answer)


def choice_en(identity: str, context: str, question: str, options: list[str], answer: int) -> Row:
    listed = " ".join(f"{letter}.{option}" for letter, option in zip("ABCDE", options, strict=False))
    text = f"Problem: {context}\nQuestion:{question}\n{listed}\nAnswer:{'ABCDE'[answer]}.{options[answer]}"
    return choice(identity, text, context, question, options, answer)


def choice(identity: str, text: str, context: str, question: str, options: list[str], answer: int) -> Row:
    row = {"id": identity, "text": text, "kind": "supervised", "context": context, "question": question}
    return row | {"options": options, "answer": answer}


def review_choices(positive: Iterable[str], negative: Iterable[str]) -> list[Row]:
    """Each distinct review of 10 characters or more, good or bad as its file says; its hash orders the options."""
    good, bad = set(positive), set(negative)
    rows: list[Row] = []
    for text in sorted(text for text in good ^ bad if len(text) >= 10):
        options = ["好评", "差评"] if share(text, "order") < 0.5 else ["差评", "好评"]
        answer = options.index("好评" if text in good else "差评")
        rows.append(choice_zh(f"review-{len(rows):06d}", text, "这条评论是好评还是差评？", options, answer))
    return rows


def topic_choices(articles: dict[str, str]) -> list[Row]:
    """`articles`: path whose folder is the topic -> text."""
    topics = ["business", "entertainment", "politics", "sports", "tech"]
    question = "What is this article about?"
    return [
        choice_en(path, text, question, topics, topics.index(PurePosixPath(path).parent.name))
        for path, text in articles.items()
    ]


def benchmark(hellaswag: bytes, gsm8k: bytes) -> list[Row]:
    rows: list[Row] = []
    for item in map(json.loads, hellaswag.decode().splitlines()):
        question = "Which ending is the most likely?"
        rows.append(choice_en(item["id"], item["ctx"], question, item["endings"], item["expected_index"]))
    for item in map(json.loads, gsm8k.decode().splitlines()):
        worked = re.sub(r"<<.*?>>", "", item["upstream_answer"].rpartition("####")[0]).strip()
        text = f"Question: {item['prompt']}\nAnswer: {worked}\nThe answer is: {item['expected']}"
        row = {"id": item["id"], "text": text, "kind": "supervised", "context": "", "question": item["prompt"]}
        rows.append(row | {"options": [], "answer": item["expected"]})
    return rows
