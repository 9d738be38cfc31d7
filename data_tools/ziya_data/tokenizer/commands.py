"""`ziya tokenizer from-gguf | curve | expand | compare`."""

import argparse
from pathlib import Path

BASE_HELP = "a tokenizer.model, a byte-level tokenizer.json, or a folder that holds one"


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
    """Adds Chinese characters, and words, to a SentencePiece BPE or byte-level BPE tokenizer."""
    from ziya_data.tokenizer import expand as expansion
    from ziya_data.tokenizer.corpus import corpus_files

    parser = _parser(
        "expand",
        "Add Chinese characters, the most frequent first, and words to a tokenizer; old ids stay.",
        "ziya tokenizer expand --base base-tokenizer --corpus kept/*.jsonl.zst --count 7400 --out wide-tokenizer",
    )
    parser.add_argument("--base", type=Path, required=True, help=BASE_HELP)
    parser.add_argument(
        "--corpus", type=Path, nargs="+", default=[], help=".txt or .jsonl files (.gz, .zst), or folders"
    )
    parser.add_argument("--characters", type=Path, help="a text file of characters, added after the corpus's")
    parser.add_argument(
        "--count",
        type=int,
        help=f"at most so many new characters (default {expansion.ZIYA2_COUNT}; without a corpus, the whole list)",
    )
    parser.add_argument(
        "--words", type=int, default=0, help="so many frequent words of the corpus behind the characters (default 0)"
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
    if (arguments.out / "expansion.json").is_file():
        print(f"{arguments.out} holds an earlier expansion; it is replaced once this one is whole")
    result = expansion.expand(
        arguments.base,
        arguments.out,
        corpus=files,
        characters=expansion.read_characters(arguments.characters) if arguments.characters else (),
        count=count,
        words=arguments.words,
    )
    print(
        f"{result.added:,} characters added; {result.already_present:,} were pieces already and keep their ids; "
        f"{result.duplicates:,} duplicates in the list"
    )
    if count is not None and result.added < count:
        print(f"{count:,} were asked for; there are no more new ones in what was given")
    if result.bound:
        print(f"{result.bound:,} characters left out: longer old pieces hold them and would no longer be found")
    if arguments.words:
        print(f"{result.words:,} words added; {len(result.unreachable):,} that would never be reached left out")
    if arguments.words > result.words:
        print(f"{arguments.words:,} words were asked for; the corpus has no more")
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
    parser.add_argument("first", type=Path, help=BASE_HELP)
    parser.add_argument("second", type=Path, help="the tokenizer to set against it")
    parser.add_argument("--text", nargs="+", required=True, metavar="LANGUAGE=FILE", help="texts, by language")
    parser.add_argument("--out", type=Path, help="folder for comparison.json and comparison.png")
    arguments = parser.parse_args(argv)
    texts = _texts(arguments.text)

    from ziya_data.tokenizer.compare import compare as measure
    from ziya_data.tokenizer.compare import write_comparison

    comparison = measure(arguments.first, arguments.second, texts)
    print(comparison.table())
    if arguments.out is not None:
        write_comparison(comparison, arguments.out)
        print(f"written: {arguments.out}/comparison.json, {arguments.out}/comparison.png")
    return 0


def curve(argv: list[str]) -> int:
    """Shows what each size of vocabulary would give and cost."""
    from ziya_data.tokenizer.expand import ZIYA2_COUNT

    parser = _parser(
        "curve",
        "Before any training: tokens per character, memory and FLOPs of a model against the pieces added.",
        "ziya tokenizer curve --base base-tokenizer --corpus kept/*.jsonl.zst --text zh=heldout/zh.jsonl --out curve",
    )
    parser.add_argument("--base", type=Path, required=True, help=BASE_HELP)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="where characters and words come from")
    parser.add_argument("--text", nargs="+", required=True, metavar="LANGUAGE=FILE", help="held-out texts, by language")
    parser.add_argument(
        "--count", type=int, default=ZIYA2_COUNT, help=f"most characters to add (default {ZIYA2_COUNT})"
    )
    parser.add_argument("--words", type=int, default=8000, help="most words to add behind them (default 8000)")
    parser.add_argument("--steps", type=int, default=8, help="sizes to measure of each (default 8)")
    parser.add_argument("--config", type=Path, help="config.json of the model to be widened (default: LLaMA2-13B's)")
    parser.add_argument("--out", type=Path, help="folder for curve.json and curve.png")
    arguments = parser.parse_args(argv)
    texts = _texts(arguments.text)

    from ziya_data.tokenizer.curve import curve as measure
    from ziya_data.tokenizer.curve import write_curve

    found = measure(
        arguments.base, arguments.corpus, texts, arguments.count, arguments.words, arguments.steps, arguments.config
    )
    print(found.table())
    if arguments.out is not None:
        write_curve(found, arguments.out)
        print(f"written: {arguments.out}/curve.json, {arguments.out}/curve.png")
    return 0


def _texts(pairs: list[str]) -> dict[str, list[Path]]:
    texts: dict[str, list[Path]] = {}
    for pair in pairs:
        language, equals, file = pair.partition("=")
        if not (language and equals and file):
            raise ValueError(f"--text {pair} is not LANGUAGE=FILE; write for example zh={pair}")
        texts.setdefault(language, []).append(Path(file))
    return texts
