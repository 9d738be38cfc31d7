"""How layers are cut into slices, and what slices cost."""

import pytest

from megatron_ziya import checks
from megatron_ziya.config import Architecture, Data, Parallel, Recipe, Source
from megatron_ziya.parallel.slices import cut, flops, halves

A = Architecture(hidden_size=64, intermediate_size=96, layers=10, heads=4, kv_heads=2, vocabulary_size=100)


def sizes(**parallel) -> list[float]:
    return [len(part) / 2 for part in halves(Parallel(**parallel), 10)]


def test_whole_layers_by_default_and_the_rest_in_the_middle():
    assert cut(10, 4) == (2, 3, 3, 2)
    assert sizes(pipeline=4) == [2, 3, 3, 2]


def test_the_stages_of_a_v_are_even_though_its_slices_are_not():
    assert sizes(pipeline=2, virtual=2, schedule="zb-v") == [3, 3, 2, 2]


def test_a_cut_between_attention_and_mlp():
    assert halves(Parallel(pipeline=2, layout=(5.5, 4.5)), 10) == [range(0, 11), range(11, 20)]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ((5.5, 5.0), "adds up to 10.5; the model has 10 layers"),
        ((5.25, 4.75), "must be half layers"),
        ((10.0, 0.0), "must be half layers"),
        ((10.0,), "one number for each of the 2 slices"),
    ],
)
def test_a_layout_that_does_not_fit(layout, message):
    recipe = Recipe(
        parallel=Parallel(pipeline=2, layout=layout), data=Data(sequence_length=16, sources=(Source("a", ("x",)),))
    )
    with pytest.raises(ValueError, match=message):
        checks.check(recipe, A, 2)


def test_flops_of_the_slices_add_up_to_those_of_the_model():
    for parallel in (Parallel(), Parallel(pipeline=2, layout=(5.5, 4.5)), Parallel(pipeline=5)):
        total = sum(map(sum, flops(A, 32, halves(parallel, 10))))
        norms = 6 * (21 * 64)  # 6 N counts a norm's weights as if they were a matrix
        assert total == pytest.approx(A.flops_per_token(32) - norms)
