"""Frequent words of a corpus, found by SentencePiece's own BPE training over runs of ideographs.

Each word is the join of two pieces that were there before it, so all the pieces on the way to a word come before it.
"""

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ziya_data.tokenizer.corpus import read_texts

LONGEST = 4
"""Characters of a word: an idiom's. Longer strings that come often are mostly boilerplate."""
RUN = 1000
"""Characters of a run at most: SentencePiece leaves out lines of more than 4,192 bytes."""
LIMIT = 20_000_000
"""Ideographs that are trained on; of a larger corpus every so many-th text."""
SPARE = 1.2
"""So many more words are trained than asked for: some are pieces already, some are never reached."""


def frequent_words(corpus: Sequence[Path], letters: Iterable[str], count: int, limit: int = LIMIT) -> list[str]:
    """About 1.2 * `count` words of `letters` in the texts of `corpus`, in the order in which BPE training joins them.

    Fewer where the corpus has no more that come twice. Raises ValueError where it has none.
    """
    runs = count_runs(corpus, letters, limit)
    if not runs:
        raise ValueError("the corpus has no two of the characters side by side; give Chinese texts to find words in")
    singles = {character for run in runs for character in run}
    return [piece for piece in _train(runs, 3 + len(singles) + int(SPARE * count) + 1) if len(piece) > 1]


def count_runs(corpus: Sequence[Path], letters: Iterable[str], limit: int = LIMIT) -> Counter[str]:
    """How often each run of two or more `letters` occurs, in every n-th text if there are more than `limit` letters."""
    inside = re.compile(f"[{''.join(map(re.escape, letters))}]{{2,{RUN}}}")
    total = sum(len(run) for text in _texts(corpus) for run in inside.findall(text))
    every = max(-(-total // limit), 1)
    return Counter(
        run for number, text in enumerate(_texts(corpus)) if number % every == 0 for run in inside.findall(text)
    )


def _texts(corpus: Sequence[Path]) -> Iterable[str]:
    return (text for path in corpus for text in read_texts(path))


def _train(runs: Counter[str], size: int) -> list[str]:
    """The pieces of a SentencePiece BPE model of `size` pieces, or fewer where the runs give no more, in order."""
    import sentencepiece

    from ziya_data.tokenizer.model_file import NORMAL, new_model

    made = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as table:
        table.writelines(f"{run}\t{count}\n" for run, count in runs.items())
        table.flush()
        sentencepiece.SentencePieceTrainer.train(
            input=table.name,
            input_format="tsv",
            model_writer=made,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentencepiece_length=LONGEST,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            minloglevel=2,
        )
    model = new_model().FromString(made.getvalue())
    return [piece.piece for piece in model.pieces if piece.type == NORMAL]
