"""Adds characters, and words of them, to a tokenizer, behind the old ids (vocabulary.py says why no old id moves).

The new SentencePiece scores continue below the lowest old one: characters in order of frequency, then words in the
order in which SentencePiece found them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ziya_data.tokenizer.corpus import CODE_POINTS, corpus_files, count_characters
from ziya_data.tokenizer.vocabulary import Vocabulary, open_vocabulary, unreachable
from ziya_data.tokenizer.words import frequent_words

PADDING_MULTIPLE = 128
"""Ziya2 pads 39,410 rows to 39,424 = 128 * 308, so that the embedding divides over tensor-parallel ranks."""
ZIYA2_COUNT = 7400
"""Characters that Ziya2 adds to LLaMA2's vocabulary (paper, section 4.1)."""

IDEOGRAPHS = ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAD9), (0x20000, 0x323AF))
"""Unicode's blocks of CJK ideographs: the ideographic zero, extension A, unified, compatibility, extensions B to I."""
PUNCTUATION = (
    "、。〃〈〉《》「」『』【】〔〕〖〗〝〞～·‘’“”—…‥※"
    "！＂＃％＆＇（）＊＋，－．／：；＜＝＞？＠［＼］＾＿｀｛｜｝～｟｠｡｢｣､￥"
)


@dataclass(frozen=True)
class Expansion:
    """What `expand` did."""

    base_fingerprint: str
    base_size: int
    size: int
    padded_size: int
    requested: int | None
    duplicates: int
    already_present: int
    bound: int
    """Characters left out because longer old pieces hold them (byte-level BPE only)."""
    added: int
    """Characters."""
    words: int
    """Words."""
    unreachable: list[str]
    """Words that SentencePiece found and no text would be spelled with; left out."""
    covered_before: float | None
    """Share of the corpus's Chinese characters (by occurrence) that were one piece; None without a corpus."""
    covered_after: float | None
    pieces: dict[str, list[int]]
    """Each new piece, in order of id from `base_size` on, and the old ids that spelled it."""

    def to_json(self) -> str:
        """The content of `expansion.json`: one line a piece."""
        head = {name: value for name, value in vars(self).items() if name != "pieces"}
        head["padding_multiple"] = PADDING_MULTIPLE
        rows = ",\n".join(
            f"    {json.dumps(piece, ensure_ascii=False)}: {json.dumps(ids)}" for piece, ids in self.pieces.items()
        )
        return json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "pieces": {{\n{rows}\n  }}\n}}\n'


def expand(
    base: Path,
    out: Path,
    *,
    corpus: Sequence[Path] = (),
    characters: Iterable[str] = (),
    count: int | None = None,
    words: int = 0,
) -> Expansion:
    """Writes `out`, the tokenizer `base` with at most `count` more characters (None: all of them) and `words` words.

    `corpus`: files whose Chinese characters and punctuation are added, the most frequent first, and whose frequent
    words. `characters`: added after those, in the order given. What is a piece already is kept and counted.
    Raises ValueError for a base that is neither SentencePiece BPE nor byte-level BPE, for nothing to add, for a lone
    surrogate.
    """
    if count is not None and count < 1:
        raise ValueError(f"count={count} must be at least 1; Ziya2 added {ZIYA2_COUNT}")
    if words < 0 or (words and not corpus):
        raise ValueError(f"words={words} needs a corpus to find them in, and must be 0 or more")
    if out.exists() and out.resolve() in (base.resolve(), base.resolve().parent):
        raise ValueError(f"{out} is the base's own folder, which would be overwritten; give another folder")
    old = open_vocabulary(base)
    files = corpus_files(corpus)
    counts = count_characters(files)
    ranked = rank_chinese(counts)
    listed = [_checked(character) for character in characters]
    wanted = list(dict.fromkeys([*ranked, *listed]))
    present, bound = old.present(), old.bound()
    new = [character for character in wanted if character not in present and character not in bound]
    if not new and not words:
        raise ValueError(f"nothing to add: each of the {len(wanted)} characters is in {base} already or none was given")
    new = new[:count]
    found, never = add_words(old, new, files, words)
    widened = old.widened([*new, *found])
    result = Expansion(
        base_fingerprint=old.tokenizer().fingerprint(),
        base_size=len(old.pieces),
        size=len(widened.pieces),
        padded_size=padded(len(widened.pieces)),
        requested=count,
        duplicates=len(listed) - len(set(listed)),
        already_present=sum(character in present for character in wanted),
        bound=sum(character in bound for character in wanted),
        added=len(new),
        words=len(found),
        unreachable=never,
        covered_before=_covered(counts, ranked, present),
        covered_after=_covered(counts, ranked, present | set(new)),
        pieces=dict(zip([*new, *found], old.spell([*new, *found]), strict=True)),
    )
    assert not unreachable(widened, [*new, *found]), "a new piece is not spelled as itself"
    widened.write(out, {"expansion.json": result.to_json()})
    return result


def add_words(
    old: Vocabulary, characters: Sequence[str], corpus: Sequence[Path], count: int
) -> tuple[list[str], list[str]]:
    """(`count` frequent words of the corpus, or as many as there are; words left out because none of them is reached).

    Words are made of ideographs that are pieces once `characters` have been added to `old`.
    """
    if not count:
        return [], []
    present = old.present()
    letters = [character for character in {*present, *characters} if is_ideograph(character)]
    candidates = [word for word in frequent_words(corpus, letters, count) if word not in present]
    never: list[str] = []
    while True:  # a word left out may have been the way to a longer one
        chosen = candidates[:count]
        lost = set(unreachable(old.widened([*characters, *chosen]), chosen))
        if not lost:
            return chosen, never
        never += [word for word in chosen if word in lost]
        candidates = [word for word in candidates if word not in lost]


def is_ideograph(text: str) -> bool:
    """Whether a text is one CJK ideograph."""
    return len(text) == 1 and any(first <= ord(text) <= last for first, last in IDEOGRAPHS)


def rank_chinese(counts: np.ndarray) -> list[str]:
    """The ideographs and Chinese punctuation marks that occur in `counts` [0x110000], most frequent first; equal
    counts by code point."""
    chinese = np.zeros(CODE_POINTS, bool)
    for first, last in IDEOGRAPHS:
        chinese[first : last + 1] = True
    chinese[[ord(mark) for mark in PUNCTUATION]] = True
    points = np.flatnonzero(chinese & (counts > 0))
    return [chr(point) for point in points[np.lexsort((points, -counts[points]))]]


def read_characters(path: Path) -> list[str]:
    """The characters of a UTF-8 text file, in order, white space left out."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a text file of characters")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start} ({error.reason}); convert the file") from None
    return [character for character in text if not character.isspace()]


def row_sources(source: Path | tuple[Path, Path]) -> list[list[int]]:
    """For each new id, in order, the old ids that spelled it: where new embedding and head rows come from.

    `source`: a folder written by `expand`, or (old tokenizer, new tokenizer). Padding rows beyond the new vocabulary
    are not in the list. Raises ValueError where an old id means another piece in the new tokenizer.
    """
    if isinstance(source, Path):
        file = source / "expansion.json"
        if not file.is_file():
            raise FileNotFoundError(f"no {file}; give a folder written by `ziya tokenizer expand`, or both tokenizers")
        return list(json.loads(file.read_text(encoding="utf-8"))["pieces"].values())
    old, new = (open_vocabulary(path) for path in source)
    if len(new.pieces) < len(old.pieces):
        raise ValueError(
            f"the new tokenizer has {len(new.pieces)} pieces, the old {len(old.pieces)}; give old, then new"
        )
    for token, (before, after) in enumerate(zip(old.pieces, new.pieces, strict=False)):
        if before != after:
            raise ValueError(
                f"id {token} is {before!r} in {source[0]} and {after!r} in {source[1]}; "
                "rows can be carried over only where old ids stay"
            )
    return old.spell(new.pieces[len(old.pieces) :])


def padded(size: int) -> int:
    """`size` rounded up to a multiple of 128."""
    return -(-size // PADDING_MULTIPLE) * PADDING_MULTIPLE


def _checked(character: str) -> str:
    if len(character) != 1 or character.isspace():
        raise ValueError(f"{character!r} is not one character; give single characters that are not white space")
    if 0xD800 <= ord(character) <= 0xDFFF:
        raise ValueError(f"U+{ord(character):04X} is a lone surrogate, which is no character; take it out of the list")
    return character


def _covered(counts: np.ndarray, ranked: Sequence[str], pieces: set[str]) -> float | None:
    if not ranked:
        return None
    total = sum(int(counts[ord(character)]) for character in ranked)
    return sum(int(counts[ord(character)]) for character in ranked if character in pieces) / total
