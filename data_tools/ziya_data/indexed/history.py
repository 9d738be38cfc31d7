"""A run whose mix is changed on its way: no sample of a source is repeated, none is lost.

Every source counts its own samples, so a changed mix begins where the old one stopped: at sample `first` of the run,
with each source's `start` at its counter. A history is the list of the mixes that a run has had (Mix.description of
each), as plain values; the trainer keeps it in the checkpoint and hands it over when it goes on. Weights, budgets, the
list of sources and the number of steps may change. A source's own data may not, for its order would be another one:
data that comes later is a source of its own. A source that is left out and comes back goes on at its counter.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ziya_data import _indexed

from .mix import Mix, Source

History = list[dict[str, Any]]


def continued(
    history: History, at: int, sources: Sequence[Source], sequence_length: int, samples: int, seed: int, pad_id: int,
    **options: Any,
) -> Mix:  # fmt: skip
    """The mix of a run that goes on at sample `at`, with its history from now on as `mix.history`.

    history: as the checkpoint has it ([] for a new run). The other arguments, and `options`, are Mix's, with every
    `start` 0. Raises ValueError for a change that would repeat or lose samples.
    """
    known = [entry for entry in history if entry["first"] < max(at, 1)]
    if not known:
        mix = Mix(sources, sequence_length, samples, seed, pad_id, **options)
        mix.history = [_entry(mix, {})]
        return mix
    last = known[-1]
    for name, given in (("sequence_length", sequence_length), ("seed", seed)):
        if given != last[name]:
            raise ValueError(f"{name}={given}, the run began with {last[name]}; its counters need the same to the end")
    try:
        same = _starting(sources, last["counters"])
        mix = Mix(same, sequence_length, samples, seed, pad_id, first=last["first"], **options)
        if _decides(mix.description()) == _decides(last):
            mix.history = [*known[:-1], _entry(mix, last["counters"])]
            return mix
    except ValueError:
        pass  # such a mix could not have begun there, so it is another one; what is wrong with it shows below
    counters = counters_at(last, at)
    mix = Mix(_starting(sources, counters), sequence_length, samples, seed, pad_id, first=at, **options)
    entry = _entry(mix, counters)
    _refuse_repeats(known, entry)
    mix.history = [*known, entry]
    return mix


def counters_at(entry: dict[str, Any], at: int) -> dict[str, int]:
    """Samples drawn of every source that the run has had, at sample `at` of the run."""
    drawn = _indexed.Interleave([source["unit"] for source in entry["sources"]]).counts(at - entry["first"])
    here = {source["name"]: source["start"] + count for source, count in zip(entry["sources"], drawn, strict=True)}
    return dict(entry["counters"]) | here


def mix_at(history: History, sample: int, pad_id: int) -> Mix:
    """The mix that gave this sample. Raises ValueError if a source's data has changed since."""
    entry = [entry for entry in history if entry["first"] <= sample][-1]
    names = {field.name for field in dataclasses.fields(Source)}
    sources = []
    for source in entry["sources"]:
        given: dict[str, Any] = {name: value for name, value in source.items() if name in names}
        sources.append(Source(**given | {"paths": tuple(given["paths"])}))
    mix = Mix(sources, entry["sequence_length"], entry["samples"], entry["seed"], pad_id, first=entry["first"])
    for now, then in zip(mix.description()["sources"], entry["sources"], strict=True):
        if now["content"] != then["content"]:
            raise ValueError(f"source {now['name']!r} holds other data than the run had; its samples cannot be traced")
    return mix


def _entry(mix: Mix, counters: dict[str, int]) -> dict[str, Any]:
    """counters: samples drawn, before this mix, of every source that the run has had."""
    return mix.description() | {"counters": counters}


def _starting(sources: Sequence[Source], counters: dict[str, int]) -> list[Source]:
    return [dataclasses.replace(source, start=counters.get(source.name, 0)) for source in sources]


def _decides(entry: dict[str, Any]) -> dict[str, Any]:
    """What of a description decides which sample is which: where data lies and a run's length may change freely."""
    whole = [source for source in entry["sources"] if source["order"] == "megatron"]
    kept = ("name", "packing", "order", "prompt_loss", "start", "unit", "content")
    return {
        "first": entry["first"],
        "samples": entry["samples"] if whole else None,
        "sources": [{name: source[name] for name in kept} for source in entry["sources"]],
    }


def _refuse_repeats(known: History, description: dict[str, Any]) -> None:
    for source in description["sources"]:
        if not source["start"]:
            continue
        if source["order"] == "megatron":
            raise ValueError(
                f"source {source['name']!r}: Megatron's order is of the whole run and cannot go on in a changed mix; "
                'use order = "ziya", or leave the mix and the number of steps as they were'
            )
        for earlier in (other for entry in known for other in entry["sources"] if other["name"] == source["name"]):
            for name in ("content", "packing", "order"):
                if earlier[name] != source[name]:
                    raise ValueError(
                        f"source {source['name']!r} has another {name} than when the run drew {source['start']} "
                        "samples of it; give new data a source of its own, with another name"
                    )
