import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from ziya_data.indexed.writer import IndexedDatasetWriter

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "人工智能正在改变世界，语言模型需要大量的文本。",
    "Numbers: 12, 345 and 6789; a tab\tand a line\nbreak.",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
]


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of tiny datasets are written here; half the time would go into fsync, which no test can see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """write(documents, name="data", **options of the writer) -> prefix"""

    def write_documents(documents: Sequence[Sequence[int]], name: str = "data", **options: object) -> str:
        prefix = str(tmp_path / name)
        options.setdefault("vocabulary_size", 60_000)
        with IndexedDatasetWriter(prefix, **options) as writer:  # type: ignore[arg-type]
            writer.add([token for document in documents for token in document], [len(d) for d in documents])
        return prefix

    return write_documents


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model of LLaMA's kind: byte fallback, ids 0 1 2 for unk bos eos."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(TEXTS, rng.integers(1, 6))) for _ in range(200)]


@pytest.fixture
def jsonl(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(texts)))
    return path
