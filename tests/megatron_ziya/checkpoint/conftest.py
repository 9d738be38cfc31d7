"""A dataset for tiny runs."""

import numpy as np
import pytest

from ziya_data.indexed.writer import IndexedDatasetWriter


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> str:
    prefix = tmp_path_factory.mktemp("index") / "random"
    draw = np.random.default_rng(0)
    with IndexedDatasetWriter(prefix, vocabulary_size=96) as writer:
        writer.add(draw.integers(3, 96, size=4000), np.full(200, 20))
    return str(prefix)
