"""`ziya tokenizer from-gguf`, `ziya tokenizer expand`, `ziya tokenizer compare`."""

import argparse
from pathlib import Path


def _parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"ziya tokenizer {name}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def from_gguf(argv: list[str]) -> int:
    """Rebuilds the LLaMA vocabulary of a llama.cpp file as a tokenizer folder."""
    parser = _parser(
        "from-gguf",
        "Rebuild the LLaMA vocabulary of a llama.cpp .gguf file as a tokenizer folder.",
        "ziya tokenizer from-gguf ggml-vocab-llama-spm.gguf --out base-tokenizer",
    )
    parser.add_argument("gguf", type=Path, help="a llama.cpp vocabulary; cases beside it (.inp, .out) are checked")
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer folder to write")
    arguments = parser.parse_args(argv)

    from ziya_data.tokenizer.build import from_gguf as rebuild

    tokenizer, cases = rebuild(arguments.gguf, arguments.out)
    checked = f"all {cases} cases shipped with it are reproduced" if cases else "no cases lie beside it to check"
    print(f"{arguments.out}: {tokenizer.vocab_size:,} pieces; {checked}")
    return 0


def expand(argv: list[str]) -> int:
    """Adds Chinese characters to a SentencePiece BPE model."""
    from ziya_data.tokenizer import expand as expansion
    from ziya_data.tokenizer.corpus import corpus_files

    parser = _parser(
        "expand",
        "Add Chinese characters to a LLaMA tokenizer, the most frequent first; old ids stay.",
        "ziya tokenizer expand --base base-tokenizer --corpus kept/*.jsonl.zst --count 7400 --out wide-tokenizer",
    )
    parser.add_argument("--base", type=Path, required=True, help="a tokenizer.model or a folder that holds one")
    parser.add_argument(
        "--corpus", type=Path, nargs="+", default=[], help=".txt or .jsonl files (.gz, .zst), or folders"
    )
    parser.add_argument("--characters", type=Path, help="a text file of characters, added after the corpus's")
    parser.add_argument(
        "--count",
        type=int,
        help=f"at most so many new characters (default {expansion.ZIYA2_COUNT}; without a corpus, the whole list)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer folder to write")
    arguments = parser.parse_args(argv)
    if not arguments.corpus and arguments.characters is None:
        raise ValueError("neither --corpus nor --characters is given; give one, or both")
    files = corpus_files(arguments.corpus)
    if files:
        print(f"counting the characters of {len(files)} files", flush=True)
    count = arguments.count
    if count is None and files:
        count = expansion.ZIYA2_COUNT
    result = expansion.expand(
        arguments.base,
        arguments.out,
        corpus=files,
        characters=expansion.read_characters(arguments.characters) if arguments.characters else (),
        count=count,
    )
    print(
        f"{result.added:,} characters added; {result.already_present:,} were pieces already and keep their ids; "
        f"{result.duplicates:,} duplicates in the list"
    )
    if count is not None and result.added < count:
        print(f"{count:,} were asked for; there are no more new ones in what was given")
    if result.covered_before is not None:
        print(
            f"Chinese characters of the corpus that are one piece: {result.covered_before:.2%} before, "
            f"{result.covered_after:.2%} now"
        )
    print(
        f"{arguments.out}: {result.base_size:,} -> {result.size:,} pieces, padded to a multiple of "
        f"{expansion.PADDING_MULTIPLE}: {result.padded_size:,}"
    )
    return 0


def compare(argv: list[str]) -> int:
    """Measures two tokenizers over the same texts."""
    parser = _parser(
        "compare",
        "Measure two tokenizers on held-out text: tokens per character, byte fallback, speed.",
        "ziya tokenizer compare base-tokenizer wide-tokenizer --text zh=heldout/zh.jsonl --out compared",
    )
    parser.add_argument("first", type=Path, help="a tokenizer.model or a folder that holds one")
    parser.add_argument("second", type=Path, help="the tokenizer to set against it")
    parser.add_argument("--text", nargs="+", required=True, metavar="LANGUAGE=FILE", help="texts, by language")
    parser.add_argument("--out", type=Path, help="folder for comparison.json and comparison.png")
    arguments = parser.parse_args(argv)
    texts: dict[str, list[Path]] = {}
    for pair in arguments.text:
        language, equals, file = pair.partition("=")
        if not (language and equals and file):
            raise ValueError(f"--text {pair} is not LANGUAGE=FILE; write for example zh={pair}")
        texts.setdefault(language, []).append(Path(file))

    from ziya_data.tokenizer.compare import compare as measure
    from ziya_data.tokenizer.compare import write_comparison

    comparison = measure(arguments.first, arguments.second, texts)
    print(comparison.table())
    if arguments.out is not None:
        write_comparison(comparison, arguments.out)
        print(f"written: {arguments.out}/comparison.json, {arguments.out}/comparison.png")
    return 0
