"""The forward kernel of attention.py, which holds the formula; also which keys a block of queries sees."""

import triton
import triton.language as tl


@triton.jit
def visible(query: tl.tensor, key: tl.tensor, start: tl.tensor, DOCUMENTS: tl.constexpr) -> tl.tensor:
    """query [M, 1], key [1, N], start [M, 1] -> bool [M, N]."""
    seen = key <= query
    if DOCUMENTS:
        seen = seen & (key >= start)
    return seen


@triton.jit
def key_range(
    starts_ptr: tl.tensor,
    first: tl.tensor,
    length: tl.tensor,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """For queries first..first+QUERIES: (low, full_low, full_high, high), multiples of KEYS but for high.

    Keys low..high are seen by some query; blocks in full_low..full_high are seen whole by every one.
    """
    high = tl.minimum(first + QUERIES, length)
    full_high = first // KEYS * KEYS
    low = 0
    full_low = 0
    if DOCUMENTS:
        low = tl.load(starts_ptr + first) // KEYS * KEYS
        full_low = tl.minimum(tl.cdiv(tl.load(starts_ptr + high - 1), KEYS) * KEYS, full_high)
    return low, full_low, full_high, high


@triton.jit
def _forward_block(
    acc: tl.tensor,
    total: tl.tensor,
    top: tl.tensor,
    q: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_tile: tl.tensor,
    v_tile: tl.tensor,
    k_token: tl.tensor,
    v_token: tl.tensor,
    block: tl.tensor,
    query: tl.tensor,
    start: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    key = block + tl.arange(0, KEYS)
    offset = tl.cast(block, tl.int64)
    if MASKED:
        bound = (key < length)[:, None]
        k = tl.load(k_ptr + offset * k_token + k_tile, mask=bound, other=0.0)
        v = tl.load(v_ptr + offset * v_token + v_tile, mask=bound, other=0.0)
    else:
        k = tl.load(k_ptr + offset * k_token + k_tile)
        v = tl.load(v_ptr + offset * v_token + v_tile)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(visible(query[:, None], key[None, :], start[:, None], DOCUMENTS), scores, -float("inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    p = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, total, higher


@triton.jit
def attention_forward_kernel(
    q_ptr: tl.tensor,  # [B, S, N, D], last stride 1
    k_ptr: tl.tensor,  # [B, S, K, D]
    v_ptr: tl.tensor,  # [B, S, K, D]
    out_ptr: tl.tensor,  # [B, S, N, D] contiguous
    lse_ptr: tl.tensor,  # [B, N, S] float32
    starts_ptr: tl.tensor,  # [B, S] int32, not read unless DOCUMENTS
    length: tl.tensor,  # S
    scale: tl.tensor,  # log2(e) / sqrt(D)
    q_row: tl.tensor,  # strides
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_row: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_row: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    N: tl.constexpr,
    GROUP: tl.constexpr,  # N / K
    D: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    # the last queries have the most keys: they start first, so that no program is left alone at the end
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    row = (tl.program_id(1) // N).to(tl.int64)
    head = (tl.program_id(1) % N).to(tl.int64)
    column = tl.arange(0, D)[None, :]
    tile_row = tl.arange(0, QUERIES)
    query = first + tile_row
    bound = query < length
    q_ptr += row * q_row + head * q_head + tl.cast(first, tl.int64) * q_token
    q = tl.load(q_ptr + tile_row[:, None] * q_token + column, mask=bound[:, None], other=0.0)
    k_ptr += row * k_row + head // GROUP * k_head
    v_ptr += row * v_row + head // GROUP * v_head
    key_row = tl.arange(0, KEYS)[:, None]
    k_tile = key_row * k_token + column
    v_tile = key_row * v_token + column
    starts_ptr += row * length
    start = query
    if DOCUMENTS:
        start = tl.load(starts_ptr + query, mask=bound, other=0)
    low, full_low, full_high, high = key_range(starts_ptr, first, length, DOCUMENTS, QUERIES, KEYS)
    top = tl.full([QUERIES], -1e30, dtype=tl.float32)  # finite: a block that a query does not see gives 0, not NaN
    total = tl.zeros([QUERIES], dtype=tl.float32)
    acc = tl.zeros([QUERIES, D], dtype=tl.float32)
    for block in range(full_low, full_high, KEYS):
        acc, total, top = _forward_block(
            acc, total, top, q, k_ptr, v_ptr, k_tile, v_tile, k_token, v_token, block, query, start, length, scale,
            False, DOCUMENTS, KEYS,
        )  # fmt: skip
    skip = full_high - full_low  # one loop over both edges, low..full_low and full_high..high
    for edge in range(low, high - skip, KEYS):
        block = tl.where(edge < full_low, edge, edge + skip)
        acc, total, top = _forward_block(
            acc, total, top, q, k_ptr, v_ptr, k_tile, v_tile, k_token, v_token, block, query, start, length, scale,
            True, DOCUMENTS, KEYS,
        )  # fmt: skip
    out = acc / total[:, None]
    base = (row * length + first) * N + head
    out_ptr += base * D + tile_row[:, None] * (N * D) + column
    tl.store(out_ptr, out.to(out_ptr.dtype.element_ty), mask=bound[:, None])
    tl.store(lse_ptr + (row * N + head) * length + query, top + tl.log2(total), mask=bound)
