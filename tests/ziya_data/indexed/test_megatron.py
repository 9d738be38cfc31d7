"""Against megatron-core itself where it is installed (`pip install megatron-core --no-deps`); else the golden bytes of
test_format.py stand for it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed.mix import Mix, Source
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


@pytest.mark.parametrize(("length", "samples"), [(1, 40), (16, 10), (16, 200), (64, 130), (100, 61), (5000, 3)])
@pytest.mark.parametrize("seed", [0, 1234, 2**32 - 1])
def test_the_order_of_samples_is_theirs_to_the_bit(tmp_path: Path, length: int, samples: int, seed: int) -> None:
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset")
    utils = pytest.importorskip("megatron.core.datasets.utils")
    rng = np.random.default_rng(samples)
    lengths = rng.integers(0, 60, 50)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    for count in lengths:
        parts = [count // 2, count - count // 2] if count % 5 == 0 else [count]  # some documents of two sequences
        builder.add_document(torch.tensor(rng.integers(0, 60_000, count)), [int(part) for part in parts])
    builder.finalize(str(tmp_path / "a.idx"))

    class Tokenizer:
        vocab_size, eod, pad = 60_000, 0, 1

        @property
        def unique_identifiers(self) -> dict[str, str]:
            return {}

    config = gpt.GPTDatasetConfig(
        random_seed=seed,
        sequence_length=length,
        blend=([str(tmp_path / "a")], None),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=Tokenizer(),
    )
    low = megatron.IndexedDataset(str(tmp_path / "a"))
    everything = np.arange(low.sequence_lengths.size, dtype=np.int32)
    theirs = gpt.GPTDataset(low, str(tmp_path / "a"), everything, samples, utils.Split.train, config)
    mix = Mix([Source("a", (str(tmp_path / "a"),), order="megatron")], length, samples, seed, 0)
    ours = mix._numbered[0]
    for name in ("document_index", "sample_index", "shuffle_index"):
        mine, other = getattr(ours, name), np.asarray(getattr(theirs, name))
        assert (mine.dtype, mine.tolist()) == (other.dtype, other.tolist())
    for i in range(samples):
        item = theirs[i]
        assert mix[i].tokens[:-1].tolist() == item["tokens"].tolist()
        assert mix[i].tokens[1:].tolist() == item["labels"].tolist()
