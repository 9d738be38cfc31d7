"""Two tokenizers over the same held-out texts: how many tokens they need, and how fast they are."""

import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ziya_data.tokenizer.corpus import batches, corpus_files, read_texts
from ziya_data.tokenizer.model_file import write_file
from ziya_data.tokenizer.tokenizer import Tokenizer

PROGRESS_SECONDS = 30.0

# Ziya2, section 4.1: LLaMA2 spells a Chinese character with 2 to 4 pieces; on 10 GB of Chinese text the widened
# tokenizer is about 34 % more efficient.
PAPER = (
    "Ziya2's paper: 2-4 pieces for a Chinese character that LLaMA2 lacks, 1 after widening; "
    "about 34 % better encoding on 10 GB of Chinese text"
)


@dataclass
class Measure:
    """What one tokenizer did with the texts of one language. Speeds are on one core, per CPU second."""

    tokenizer: str
    language: str
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / self.characters

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    @property
    def byte_share(self) -> float:
        """Share of the tokens that are byte pieces, the last resort for what has no piece."""
        return self.byte_tokens / self.tokens

    @property
    def encode_mb_per_second(self) -> float:
        return self.bytes / 1e6 / max(self.encode_seconds, 1e-9)

    @property
    def decode_mb_per_second(self) -> float:
        return self.bytes / 1e6 / max(self.decode_seconds, 1e-9)


COLUMNS = {
    "tokens_per_character": ("tokens/char", ".3f"),
    "bytes_per_token": ("bytes/token", ".2f"),
    "byte_share": ("byte fallback", ".1%"),
    "encode_mb_per_second": ("encode MB/s", ".1f"),
    "decode_mb_per_second": ("decode MB/s", ".1f"),
}


@dataclass(frozen=True)
class Comparison:
    """The measures of tokenizers `names[0]` and `names[1]`, by language."""

    names: tuple[str, str]
    measures: dict[str, tuple[Measure, Measure]] = field(default_factory=dict)

    def saved(self, language: str) -> float:
        """Share of the first tokenizer's tokens that the second does not need."""
        first, second = self.measures[language]
        return 1 - second.tokens / first.tokens

    def table(self) -> str:
        """A line a tokenizer and language, then what the second one saves, and the paper's claim."""
        width = max(len("tokenizer"), *(len(name) for name in self.names))
        head = f"{'language':<10}{'tokenizer':<{width + 2}}{'MB':>8}{'tokens':>13}"
        lines = [head + "".join(f"{title:>15}" for title, _ in COLUMNS.values())]
        for measure in itertools.chain.from_iterable(self.measures.values()):
            cells = "".join(f"{getattr(measure, name):>15{form}}" for name, (_, form) in COLUMNS.items())
            start = f"{measure.language:<10}{measure.tokenizer:<{width + 2}}"
            lines.append(f"{start}{measure.bytes / 1e6:>8.1f}{measure.tokens:>13,}{cells}")
        lines += [
            f"{language}: {self.names[1]} needs {self.saved(language):.1%} fewer tokens than {self.names[0]} "
            f"({1 / (1 - self.saved(language)) - 1:.1%} more text a token)"
            for language in self.measures
        ]
        return "\n".join([*lines, PAPER])

    def to_json(self) -> dict[str, Any]:
        """Counts, and the ratios that the table shows, by language and tokenizer."""
        return {
            "tokenizers": list(self.names),
            "paper": PAPER,
            "languages": {
                language: {
                    "tokens_saved": self.saved(language),
                    "measures": [
                        vars(measure) | {name: getattr(measure, name) for name in COLUMNS} for measure in pair
                    ],
                }
                for language, pair in self.measures.items()
            },
        }


def compare(first: Path, second: Path, texts: Mapping[str, Sequence[Path]]) -> Comparison:
    """Runs both tokenizers over `texts` (language to files). Raises ValueError where a language has no text."""
    names = _names(first, second)
    tokenizers = (Tokenizer.load(first), Tokenizer.load(second))
    byte_pieces = [
        np.array([tokenizer.is_byte(token) for token in range(tokenizer.vocab_size)]) for tokenizer in tokenizers
    ]
    comparison = Comparison(names)
    for language, paths in texts.items():
        pair = (Measure(names[0], language), Measure(names[1], language))
        shown = time.monotonic()
        for batch in batches(itertools.chain.from_iterable(read_texts(path) for path in corpus_files(paths))):
            for tokenizer, is_byte, measure in zip(tokenizers, byte_pieces, pair, strict=True):
                _measure(tokenizer, is_byte, batch, measure)
            if time.monotonic() - shown > PROGRESS_SECONDS:
                print(f"{language}: {pair[0].bytes / 1e6:,.0f} MB compared", file=sys.stderr, flush=True)
                shown = time.monotonic()
        if not pair[0].tokens:
            raise ValueError(f"no text for language {language!r} in {', '.join(map(str, paths))}; give files with text")
        comparison.measures[language] = pair
    return comparison


def _measure(tokenizer: Tokenizer, is_byte: np.ndarray, batch: Sequence[str], measure: Measure) -> None:
    """Adds what `tokenizer`, whose byte pieces `is_byte` [vocabulary] marks, does with `batch` to `measure`."""
    start = time.process_time()
    ids = tokenizer.encode_batch(batch, threads=1)
    encoded = time.process_time()
    tokenizer.decode_batch(ids, threads=1)
    measure.decode_seconds += time.process_time() - encoded
    measure.encode_seconds += encoded - start
    flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64)
    measure.tokens += len(flat)
    measure.byte_tokens += int(is_byte[flat].sum())
    measure.characters += sum(len(text) for text in batch)
    measure.bytes += sum(len(text.encode()) for text in batch)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The shortest names that tell the two apart: the folder's, else the whole path."""
    short = [path.resolve().name if path.is_dir() else path.resolve().parent.name for path in (first, second)]
    if short[0] == short[1]:
        return str(first), str(second)
    return short[0], short[1]


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Writes `out/comparison.json` and the picture `out/comparison.png`."""
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "comparison.json", json.dumps(comparison.to_json(), ensure_ascii=False, indent=2).encode())
    write_file(out / "comparison.png", _picture(comparison))


def _picture(comparison: Comparison) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "tokens_per_character": ("Tokens per character", "{:.2f}"),
        "bytes_per_token": ("UTF-8 bytes per token", "{:.2f}"),
        "byte_share": ("Share of byte-fallback tokens", "{:.1%}"),
    }
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    languages = list(comparison.measures)
    places = np.arange(len(languages))
    for axes, (name, (title, form)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for side, label in enumerate(comparison.names):
            heights = [getattr(comparison.measures[language][side], name) for language in languages]
            bars = axes.bar(places + (side - 0.5) * 0.38, heights, 0.36, label=label)
            axes.bar_label(bars, [form.format(height) for height in heights], fontsize=8)
        axes.set_title(title)
        axes.set_xticks(places, languages)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()
