"""From the mix of indexed datasets to the micro-batches of a step, read ahead in a thread.

A batch is a pure function of (recipe, seed, step): global sample `rows_before(step) + i` is row i of the step (without
ramp-up `step * global_batch_size + i`), and a data-parallel rank takes a contiguous share of the rows. No layout
changes which samples a step has.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from megatron_ziya.config import Architecture, Data, Recipe
from megatron_ziya.model.llama import MicroBatch
from megatron_ziya.parallel.mesh import Mesh
from ziya_data.indexed.history import continued
from ziya_data.indexed.mix import Mix, Source

READ_AHEAD = 2  # steps


def open_mix(recipe: Recipe, a: Architecture, history: Sequence[dict[str, Any]] = (), at: int = 0) -> Mix:
    """The samples of the whole run. Raises ValueError or FileNotFoundError when a dataset is not what it should be.

    history, at: of the checkpoint that the run goes on from; a mix that was changed since goes on at the counters.
    """
    d = recipe.data
    sources = [Source(**dataclasses.asdict(s)) for s in d.sources]
    samples = recipe.data.rows_before(recipe.run.steps)
    options: dict[str, Any] = {"cache": d.cache or None, "check_reads": d.check_reads}
    mix = continued(list(history), at, sources, d.sequence_length, samples, recipe.run.seed, d.pad_id, **options)
    if mix.vocabulary_size > a.vocabulary_size:
        raise ValueError(
            f"the data is made of {mix.vocabulary_size} token ids, the model has {a.vocabulary_size}; "
            "index the text with the model's tokenizer, or grow the model (ziya convert grow-vocabulary)"
        )
    return mix


def read_step(mix: Mix, step: int, data: Data, mesh: Mesh) -> tuple[list[MicroBatch], int]:
    """This rank's micro-batches of a step, and how many of its tokens count in the loss."""
    share = data.rows(step) // mesh.data.size
    first = data.rows_before(step) + mesh.data.index * share
    samples = [mix[i] for i in range(first, first + share)]
    tokens = torch.from_numpy(np.stack([s.tokens for s in samples]))
    starts = torch.from_numpy(np.stack([s.starts for s in samples])) if data.document_mask else None
    mask = torch.from_numpy(np.stack([s.loss_mask for s in samples]))
    counted = int(mask.sum())
    tokens, mask = tokens.to(mesh.device, non_blocking=True), mask.to(mesh.device, non_blocking=True)
    starts = None if starts is None else starts.to(mesh.device, non_blocking=True)
    scale = 1.0 / (data.rows(step) * data.sequence_length)  # the true count is known once all ranks have read
    batches = []
    for row in range(0, share, data.micro_batch_size):
        rows = slice(row, row + data.micro_batch_size)
        inputs, targets = tokens[rows, :-1].contiguous(), tokens[rows, 1:].contiguous()
        batches.append(MicroBatch(inputs, targets, mask[rows], None if starts is None else starts[rows], scale))
    return batches, counted


def steps(mix: Mix, first: int, recipe: Recipe, mesh: Mesh) -> Iterator[tuple[list[MicroBatch], int]]:
    """The batches of steps `first`, `first + 1`, … of the run, the next ones read while one is worked on."""
    ahead: deque[Future[tuple[list[MicroBatch], int]]] = deque()
    with ThreadPoolExecutor(1, "batches") as reader:
        for number in range(first, recipe.run.steps):
            ahead.append(reader.submit(read_step, mix, number, recipe.data, mesh))
            if len(ahead) > READ_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
