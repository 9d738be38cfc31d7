"""Against megatron-core itself where it is installed (`pip install megatron-core --no-deps`); else the golden bytes of
test_format.py stand for it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.writer import IndexedDatasetWriter

megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
torch = pytest.importorskip("torch")

kinds = st.sampled_from([(np.uint16, 65_000), (np.int32, 2**31 - 1), (np.uint8, 256), (np.int64, 2**40)])


@settings(max_examples=50, deadline=None)
@given(kind=kinds, data=st.data())
def test_either_side_writes_and_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[type[np.integer], int], data: st.DataObject
) -> None:
    dtype, vocabulary = kind
    ids = st.integers(0, vocabulary - 1)
    documents = data.draw(st.lists(st.lists(ids, max_size=20), min_size=1, max_size=20).filter(any))
    folder: Path = tmp_path_factory.mktemp("m")

    builder = megatron.IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(str(folder / "theirs.idx"))
    with IndexedDatasetWriter(folder / "ours", vocabulary, dtype=dtype) as out:
        for document in documents:
            out.add(document, [len(document)])

    for suffix in ("bin", "idx"):
        assert (folder / f"ours.{suffix}").read_bytes() == (folder / f"theirs.{suffix}").read_bytes()
    assert [document.tolist() for document in IndexedDataset(folder / "theirs")] == documents
    theirs = megatron.IndexedDataset(str(folder / "ours"))
    assert [theirs[i].tolist() for i in range(len(documents))] == documents


@settings(max_examples=50, deadline=None)
@given(documents=st.lists(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=4), min_size=1, max_size=10))
def test_their_documents_of_several_sequences(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("m")
    builder = megatron.IndexedDatasetBuilder(str(folder / "a.bin"), dtype=np.uint16)
    whole = [[token for sequence in document for token in sequence] for document in documents]
    for document, tokens in zip(documents, whole, strict=True):
        builder.add_document(torch.tensor(tokens, dtype=torch.int64), [len(sequence) for sequence in document])
    builder.finalize(str(folder / "a.idx"))
    assert [document.tolist() for document in IndexedDataset(folder / "a")] == whole
