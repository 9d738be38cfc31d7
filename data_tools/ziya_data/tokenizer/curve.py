"""What each size of vocabulary would cost and give, before anything is trained.

Characters come first, the most frequent before the rest, then words, as `ziya tokenizer expand` adds them. Every size
is measured on held-out text. Costs are those of a LLaMA of the given shape, V rows (padded), hidden size H:

- memory of the rows: V * H weights for the embedding and as many for the head (once where they are tied), 2 bytes each
  in BF16; 18 in training (weight 2, FP32 gradient 4, master 4, AdamW's two moments 8);
- training FLOPs a character: tokens a character * 6 * (weights of the layers + V * H of the head). 6 a weight and
  token, forward and backward, as Kaplan et al. count (arXiv 2001.08361); the embedding is a look-up; attention's own
  products are left out.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ziya_data.tokenizer.corpus import batches, corpus_files, count_characters, read_texts
from ziya_data.tokenizer.expand import add_words, padded, rank_chinese
from ziya_data.tokenizer.model_file import Pieces, write_file
from ziya_data.tokenizer.vocabulary import SentencePieceVocabulary, Vocabulary, open_vocabulary, unreachable

LLAMA2_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
"""The model that Ziya2 continues."""
SERVING_BYTES, TRAINING_BYTES = 2, 18
SHOWN = 20


@dataclass(frozen=True)
class Shape:
    """What a model's cost depends on."""

    name: str
    hidden: int
    layers: int
    """Weights of all layers and the last norm."""
    tables: int
    """1 where embedding and head are one table, else 2."""


@dataclass(frozen=True)
class Point:
    """One size of vocabulary. GB are 10^9 bytes."""

    characters: int
    words: int
    pieces: int
    rows: int
    tokens_per_character: dict[str, float]
    flops_per_character: dict[str, float]
    rows_gb: float
    rows_training_gb: float


@dataclass(frozen=True)
class Curve:
    """All sizes, smallest first, and what can never be reached."""

    shape: Shape
    points: list[Point]
    held_out_characters: dict[str, int]
    unreachable_old: list[str] | None
    """Pieces of the base that no text is spelled with; None for byte-level BPE, where neighbours decide."""
    unreachable_words: list[str]
    """Words that SentencePiece found and that would not be reached; they are left out."""

    def cheapest(self, language: str) -> Point:
        """Where a character of the language takes the fewest FLOPs."""
        return min(self.points, key=lambda point: point.flops_per_character[language])

    def table(self) -> str:
        """A line a size, then the cheapest size of each language and the pieces that are never reached."""
        first = self.points[0]
        head = [f"{'characters':>10}{'words':>9}{'pieces':>9}{'rows':>9}"]
        head += [f"{language + ' tok/char':>15}{'FLOPs/char':>12}" for language in first.tokens_per_character]
        head += [f"{'rows, GB':>10}{'in training':>13}"]
        lines = [f"a model as {self.shape.name}; FLOPs of training a character, beside the base's", "".join(head)]
        for point in self.points:
            cells = [f"{point.characters:>10,}{point.words:>9,}{point.pieces:>9,}{point.rows:>9,}"]
            for language, rate in point.tokens_per_character.items():
                share = point.flops_per_character[language] / first.flops_per_character[language]
                cells.append(f"{rate:>15.4f}{share:>12.1%}")
            lines.append("".join([*cells, f"{point.rows_gb:>10.3f}{point.rows_training_gb:>13.3f}"]))
        for language in first.tokens_per_character:
            best = self.cheapest(language)
            lines.append(
                f"{language}: cheapest with {best.characters:,} characters and {best.words:,} words, "
                f"{best.pieces:,} pieces"
            )
        if self.unreachable_old is not None:
            lines.append(_said("pieces of the base that no text is ever spelled with", self.unreachable_old))
        lines.append(_said("words found that would never be reached, left out", self.unreachable_words))
        return "\n".join(lines)


def _said(what: str, pieces: Sequence[str]) -> str:
    some = " ".join(map(repr, pieces[:SHOWN])) + (" …" if len(pieces) > SHOWN else "")
    return f"{len(pieces):,} {what}" + (f": {some}" if pieces else "")


def curve(
    base: Path,
    corpus: Sequence[Path],
    texts: Mapping[str, Sequence[Path]],
    characters: int,
    words: int,
    steps: int = 8,
    config: Path | None = None,
) -> Curve:
    """Measures `steps` sizes up to `characters` and `steps` more up to `words`, on `texts` (language to files).

    `corpus`: where characters and words come from. `config`: the model's config.json; LLaMA2-13B's shape without one.
    Raises ValueError, also where a held-out file is part of the corpus.
    """
    if min(characters, steps) < 1 or words < 0:
        raise ValueError(f"characters={characters} and steps={steps} must be 1 or more, words={words} 0 or more")
    files = corpus_files(corpus)
    held_out = {language: corpus_files(paths) for language, paths in texts.items()}
    for path in itertools.chain.from_iterable(held_out.values()):
        if path.resolve() in {file.resolve() for file in files}:
            raise ValueError(f"{path} is part of the corpus; measure on text that no piece was chosen from")
    shape = shape_of(config)
    old = open_vocabulary(base)
    known = old.present() | old.bound()
    new = [c for c in rank_chinese(count_characters(files)) if c not in known][:characters]
    found, never = add_words(old, new, files, words)
    if not new and not found:
        raise ValueError(f"nothing to add: the corpus has no Chinese character that is not in {base} already")
    cuts = [int(cut) for cut in np.linspace(0, len(new), steps + 1)]
    cuts += [len(new) + int(cut) for cut in np.linspace(0, len(found), steps + 1)]
    sizes = {language: _characters(paths) for language, paths in held_out.items()}
    points = []
    for cut in sorted(set(cuts)):
        widened = old.widened([*new, *found][:cut])
        rates = {language: _tokens(widened, paths) / sizes[language] for language, paths in held_out.items()}
        points.append(_point(min(cut, len(new)), max(cut - len(new), 0), len(widened.pieces), rates, shape))
    dead = unreachable(old, Pieces.of(old.model).normal()) if isinstance(old, SentencePieceVocabulary) else None
    return Curve(shape, points, sizes, dead, never)


def _texts(paths: Sequence[Path]) -> Iterable[list[str]]:
    return batches(itertools.chain.from_iterable(map(read_texts, paths)))


def _characters(paths: Sequence[Path]) -> int:
    found = sum(len(text) for batch in _texts(paths) for text in batch)
    if not found:
        raise ValueError(f"no text in {', '.join(map(str, paths))}; give held-out files with text")
    return found


def _tokens(vocabulary: Vocabulary, paths: Sequence[Path]) -> int:
    tokenizer = vocabulary.tokenizer()
    return sum(
        int(tokenizer.encode_arrays([text.encode() for text in batch], threads=-1)[1].sum()) for batch in _texts(paths)
    )


def _point(characters: int, words: int, pieces: int, rates: dict[str, float], shape: Shape) -> Point:
    rows = padded(pieces)
    table = rows * shape.hidden
    return Point(
        characters,
        words,
        pieces,
        rows,
        rates,
        {language: rate * 6 * (shape.layers + table) for language, rate in rates.items()},
        shape.tables * table * SERVING_BYTES / 1e9,
        shape.tables * table * TRAINING_BYTES / 1e9,
    )


def shape_of(config: Path | None) -> Shape:
    """The shape in a Hugging Face config.json of a LLaMA; LLaMA2-13B's for None. Raises ValueError for another file."""
    if config is None:
        given, name = dict(LLAMA2_13B), "LLaMA2-13B"
    else:
        config = config / "config.json" if config.is_dir() else config
        try:
            given, name = json.loads(config.read_text(encoding="utf-8")), str(config)
        except ValueError as error:
            raise ValueError(f"{config} is not JSON ({error}); give a model's config.json") from None
    if missing := [key for key in LLAMA2_13B if not isinstance(given.get(key), int)]:
        raise ValueError(f"{config} lacks {', '.join(missing)}; give the config.json of a LLaMA model")
    h, f, n, heads = (given[key] for key in LLAMA2_13B)
    keys = h // heads * (given.get("num_key_value_heads") or heads)
    layer = 2 * h * h + 2 * h * keys + 3 * h * f + 2 * h
    return Shape(name, h, n * layer + h, 1 if given.get("tie_word_embeddings") else 2)


def write_curve(found: Curve, out: Path) -> None:
    """Writes `out/curve.json` and the picture `out/curve.png`."""
    out.mkdir(parents=True, exist_ok=True)
    content = asdict(found) | {"cheapest": {name: asdict(found.cheapest(name)) for name in found.held_out_characters}}
    write_file(out / "curve.json", json.dumps(content, ensure_ascii=False, indent=2).encode())
    write_file(out / "curve.png", _picture(found))


def _picture(found: Curve) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points, first = found.points, found.points[0]
    added = [point.characters + point.words for point in points]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    rates, costs, memory = figure.subplots(1, 3)
    for language in found.held_out_characters:
        rates.plot(added, [point.tokens_per_character[language] for point in points], "o-", ms=3, label=language)
        base = first.flops_per_character[language]
        costs.plot(added, [p.flops_per_character[language] / base for p in points], "o-", ms=3, label=language)
    memory.plot(added, [point.rows_gb for point in points], "o-", ms=3, label="BF16 weights")
    memory.plot(added, [point.rows_training_gb for point in points], "o-", ms=3, label="with training state")
    rates.set_title("Tokens per character, held out")
    costs.set_title("Training FLOPs per character, base = 1")
    memory.set_title(f"GB of embedding and head, as {Path(found.shape.name).name}", fontsize=11)
    begin = max(point.characters for point in points)
    for axes in (rates, costs, memory):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("pieces added")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        if points[-1].words:
            axes.axvline(begin, color="grey", lw=0.8, ls=":")
            axes.text(begin, axes.get_ylim()[1] * 0.02, " words from here", fontsize=7, color="grey")
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()
