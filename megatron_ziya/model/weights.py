"""Names and shapes of the logical weights: the same whatever the layout, and what a checkpoint holds.

Matrices are `[outputs, inputs]` and rotary pairs are half a head apart, both as Hugging Face has them.
"""

from megatron_ziya.config import Architecture


def shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Every logical weight of the model, in the order of the forward pass."""
    h, f, keys = a.hidden_size, a.intermediate_size, a.kv_heads * a.head_size
    found: dict[str, tuple[int, ...]] = {"embedding.weight": (a.vocabulary_size, h)}
    for i in range(a.layers):
        layer = f"layers.{i}."
        found |= {
            layer + "attention_norm.weight": (h,),
            layer + "attention.query.weight": (h, h),
            layer + "attention.key.weight": (keys, h),
            layer + "attention.value.weight": (keys, h),
            layer + "attention.output.weight": (h, h),
            layer + "mlp_norm.weight": (h,),
            layer + "mlp.gate.weight": (f, h),
            layer + "mlp.up.weight": (f, h),
            layer + "mlp.down.weight": (h, f),
        }
    found["norm.weight"] = (h,)
    if not a.tied:
        found["head.weight"] = (a.vocabulary_size, h)
    return found
