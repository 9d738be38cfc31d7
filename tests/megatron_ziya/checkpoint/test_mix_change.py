"""A run whose mix is changed on the way goes on at each source's counter; and every knob of a source in real runs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks, run_recipe

from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.config import Checkpoint, Data, Log, Model, Optimizer, Parallel, Precision, Recipe, Run, Source
from ziya_data.indexed import commands
from ziya_data.indexed.mix import Mix
from ziya_data.indexed.mix import Source as MixSource
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.trace import trace
from ziya_data.indexed.writer import IndexedDatasetWriter

S, BATCH = 16, 12


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("index")
    draw = np.random.default_rng(0)
    for name in "abc":
        lengths = draw.integers(2, 40, size=60)
        with IndexedDatasetWriter(folder / name, vocabulary_size=96) as writer:
            writer.add(draw.integers(3, 96, size=int(lengths.sum())), lengths, lengths // 2)
    return [str(folder / name) for name in "abc"]


def recipe(directory: Path, steps: int, sources: tuple[Source, ...], **data: object) -> Recipe:
    return Recipe(
        run=Run(directory=str(directory), steps=steps, device="cpu"),
        model=Model(vocabulary_size=96, hidden_size=32, intermediate_size=48, layers=2, heads=4, max_positions=S),
        parallel=Parallel(bucket_mib=0.01),
        data=Data(sequence_length=S, global_batch_size=BATCH, sources=sources, **data),
        optimizer=Optimizer(learning_rate=1e-2, schedule="constant"),
        precision=Precision(weights="fp32"),
        checkpoint=Checkpoint(every=1, keep=99),
        log=Log(tensorboard=False, report=False, peak_tflops=1.0),
    )


def rows_of(directory: Path, step: int) -> list[tuple[str, list[int]]]:
    """(source, tokens) of each row, found by the trace alone."""
    rows = []
    for origins in trace(directory, step):
        parts = [IndexedDataset(o.path)[o.document][o.first : o.first + o.tokens] for o in origins]
        rows.append((origins[0].source, np.concatenate(parts).tolist()))
    return rows


def test_a_changed_mix_neither_repeats_nor_loses(tmp_path, prefixes):
    a, b, c = (Source(name, (prefix,)) for name, prefix in zip("abc", prefixes, strict=True))
    run = tmp_path / "run"
    run_ranks(1, run_recipe, recipe(run, 2, (a, b)))
    changed = (dataclasses.replace(b, weight=3.0), c)
    run_ranks(2, run_recipe, recipe(run, 4, changed))
    run_ranks(1, run_recipe, recipe(run, 5, changed))  # unchanged: no new mix begins
    run_ranks(1, run_recipe, recipe(run, 6, (a, b, c)))  # a comes back
    manifest = Reader(run / "checkpoints/step_000006").manifest
    assert [entry["first"] for entry in manifest["mix"]] == [0, 2 * BATCH, 5 * BATCH]
    seen: dict[str, list[list[int]]] = {"a": [], "b": [], "c": []}
    for step in range(1, 7):
        for source, tokens in rows_of(run, step):
            seen[source].append(tokens)
    assert manifest["consumed_samples"] == {name: len(rows) for name, rows in seen.items()}
    for name, prefix in zip("abc", prefixes, strict=True):
        alone = Mix([MixSource(name, (prefix,))], S, len(seen[name]), 1234, 0)
        assert seen[name] == [sample.tokens.tolist() for sample in alone]


def test_changed_data_and_batches_are_refused(tmp_path, prefixes):
    a = Source("a", (prefixes[0],))
    run_ranks(1, run_recipe, recipe(tmp_path, 1, (a,)))
    from megatron_ziya import train

    grown = dataclasses.replace(a, paths=tuple(prefixes))
    with pytest.raises(ValueError, match="another content than when the run drew 12 samples"):
        train.check(recipe(tmp_path, 2, (grown,)), 1)
    other = recipe(tmp_path, 2, (a,))
    other = dataclasses.replace(other, data=dataclasses.replace(other.data, global_batch_size=6))
    with pytest.raises(ValueError, match=r"drawn 12 samples, this recipe's batches would make it 6"):
        train.check(other, 1)


def test_every_knob_of_a_source_runs_and_goes_on(tmp_path, prefixes, capsys):
    sources = (
        Source("a", (prefixes[0],), order="megatron", prompt_loss=False),
        Source("b", (prefixes[1],), packing="documents", tokens=400.0),
        Source("c", (prefixes[2],), replay=0.5, max_epochs=1.0),
    )
    whole, halves, cache = tmp_path / "whole", tmp_path / "halves", tmp_path / "cache"
    run_ranks(1, run_recipe, recipe(whole, 4, sources))
    first = recipe(halves, 4, sources, cache=str(cache), check_reads=True)
    run_ranks(1, run_recipe, dataclasses.replace(first, checkpoint=Checkpoint(every=2, keep=9)))
    for step in (3, 4):  # as if it had been killed after step 2
        folder = halves / "checkpoints" / f"step_{step:06}"
        for file in sorted(folder.rglob("*"), reverse=True) if folder.exists() else ():
            file.unlink() if file.is_file() else file.rmdir()
        if folder.exists():
            folder.rmdir()
    run_ranks(2, run_recipe, first)
    assert commands.prepare([str(halves)]) == 0
    assert "a: " in capsys.readouterr().out
    for name in ("mix", "consumed_samples"):
        one, two = (Reader(run / "checkpoints/step_000004").manifest[name] for run in (whole, halves))
        assert one == two
    assert rows_of(whole, 3) == rows_of(halves, 3)
