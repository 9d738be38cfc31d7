"""The backward kernels of attention.py: rowsum(O dO), then one that owns keys and one that owns queries."""

import triton
import triton.language as tl

from ziya_kernels.attention_forward import key_range, visible


@triton.jit
def attention_delta_kernel(
    out_ptr: tl.tensor,  # [B, S, N, D] contiguous
    grad_ptr: tl.tensor,  # [B, S, N, D] contiguous
    delta_ptr: tl.tensor,  # [B, N, S] float32: rowsum(O dO)
    length: tl.tensor,  # S
    N: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
) -> None:
    row = (tl.program_id(1) // N).to(tl.int64)
    head = tl.program_id(1) % N
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    bound = query < length
    offset = ((row * length + query)[:, None] * N + head) * D + tl.arange(0, D)[None, :]
    out = tl.load(out_ptr + offset, mask=bound[:, None], other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offset, mask=bound[:, None], other=0.0).to(tl.float32)
    tl.store(delta_ptr + (row * N + head) * length + query, tl.sum(out * grad, 1), mask=bound)


@triton.jit
def _backward_keys_block(
    grad_k: tl.tensor,
    grad_v: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    q_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    q_tile: tl.tensor,
    grad_tile: tl.tensor,
    q_token: tl.tensor,
    grad_token: tl.tensor,
    block: tl.tensor,
    key: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    query = block + tl.arange(0, QUERIES)
    offset = tl.cast(block, tl.int64)
    bound = query < length
    if MASKED:
        q = tl.load(q_ptr + offset * q_token + q_tile, mask=bound[:, None], other=0.0)
        grad = tl.load(grad_ptr + offset * grad_token + grad_tile, mask=bound[:, None], other=0.0)
        lse = tl.load(lse_ptr + query, mask=bound, other=0.0)
        delta = tl.load(delta_ptr + query, mask=bound, other=0.0)
    else:
        q = tl.load(q_ptr + offset * q_token + q_tile)
        grad = tl.load(grad_ptr + offset * grad_token + grad_tile)
        lse = tl.load(lse_ptr + query)
        delta = tl.load(delta_ptr + query)
    # scores are held transposed, [keys, queries], so that P^T and dS^T need no shuffle before their products
    p = tl.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * scale - lse[None, :])
    if MASKED:
        start = query
        if DOCUMENTS:
            start = tl.load(starts_ptr + query, mask=bound, other=0)
        # queries past the end need no bound: their gradient was loaded as 0, so they add nothing
        seen = visible(query[None, :], key[:, None], start[None, :], DOCUMENTS)
        p = tl.where(seen, p, 0.0)
    grad_v = tl.dot(p.to(grad.dtype), grad, grad_v, input_precision="ieee")
    grad_p = tl.dot(v, tl.trans(grad), input_precision="ieee")
    grad_scores = p * (grad_p - delta[None, :])
    grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision="ieee")
    return grad_k, grad_v


@triton.jit
def attention_backward_keys_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    grad_ptr: tl.tensor,  # [B, S, N, D] contiguous
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    ends_ptr: tl.tensor,  # [B, S] int32: one past the last token of the document
    grad_k_ptr: tl.tensor,  # [B, S, K, D] contiguous
    grad_v_ptr: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,  # log2(e) / sqrt(D)
    q_row: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_row: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_row: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    N: tl.constexpr = K * GROUP
    first = tl.program_id(0) * KEYS
    row = (tl.program_id(1) // K).to(tl.int64)
    kv_head = (tl.program_id(1) % K).to(tl.int64)
    column = tl.arange(0, D)[None, :]
    tile_row = tl.arange(0, KEYS)
    key = first + tile_row
    bound = (key < length)[:, None]
    k_ptr += row * k_row + kv_head * k_head + tl.cast(first, tl.int64) * k_token
    v_ptr += row * v_row + kv_head * v_head + tl.cast(first, tl.int64) * v_token
    k = tl.load(k_ptr + tile_row[:, None] * k_token + column, mask=bound, other=0.0)
    v = tl.load(v_ptr + tile_row[:, None] * v_token + column, mask=bound, other=0.0)
    starts_ptr += row * length
    ends_ptr += row * length
    # queries low..diagonal and full_high..high need a mask; those between see every key of this block
    low = first // QUERIES * QUERIES
    full_end = length
    high = length
    if DOCUMENTS:
        full_end = tl.load(ends_ptr + first)
        high = tl.load(ends_ptr + tl.minimum(first + KEYS, length) - 1)
    diagonal = tl.cdiv(first + KEYS - 1, QUERIES) * QUERIES
    skip = tl.maximum(full_end // QUERIES * QUERIES - diagonal, 0)
    query_row = tl.arange(0, QUERIES)[:, None]
    q_tile = query_row * q_token + column
    grad_tile = query_row * (N * D) + column
    grad_k = tl.zeros([KEYS, D], dtype=tl.float32)
    grad_v = tl.zeros([KEYS, D], dtype=tl.float32)
    for member in range(0, GROUP):
        head = kv_head * GROUP + member
        q_base = q_ptr + row * q_row + head * q_head
        grad_base = grad_ptr + (row * length * N + head) * D
        lse_base = lse_ptr + (row * N + head) * length
        delta_base = delta_ptr + (row * N + head) * length
        for block in range(diagonal, diagonal + skip, QUERIES):
            grad_k, grad_v = _backward_keys_block(
                grad_k, grad_v, k, v, q_base, grad_base, lse_base, delta_base, starts_ptr, q_tile, grad_tile,
                q_token, N * D, block, key, length, scale, False, DOCUMENTS, QUERIES,
            )  # fmt: skip
        for edge in range(low, high - skip, QUERIES):
            block = tl.where(edge < diagonal, edge, edge + skip)
            grad_k, grad_v = _backward_keys_block(
                grad_k, grad_v, k, v, q_base, grad_base, lse_base, delta_base, starts_ptr, q_tile, grad_tile,
                q_token, N * D, block, key, length, scale, True, DOCUMENTS, QUERIES,
            )  # fmt: skip
    grad_k *= scale * 0.6931471805599453  # ln 2: back from powers of two
    out = ((row * length + first) * K + kv_head) * D + tile_row[:, None] * (K * D) + column
    tl.store(grad_k_ptr + out, grad_k.to(grad_k_ptr.dtype.element_ty), mask=bound)
    tl.store(grad_v_ptr + out, grad_v.to(grad_v_ptr.dtype.element_ty), mask=bound)


@triton.jit
def _backward_queries_block(
    grad_q: tl.tensor,
    q: tl.tensor,
    grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
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
) -> tl.tensor:
    key = block + tl.arange(0, KEYS)
    offset = tl.cast(block, tl.int64)
    if MASKED:
        bound = (key < length)[:, None]
        k = tl.load(k_ptr + offset * k_token + k_tile, mask=bound, other=0.0)
        v = tl.load(v_ptr + offset * v_token + v_tile, mask=bound, other=0.0)
    else:
        k = tl.load(k_ptr + offset * k_token + k_tile)
        v = tl.load(v_ptr + offset * v_token + v_tile)
    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * scale - lse[:, None])
    if MASKED:
        p = tl.where(visible(query[:, None], key[None, :], start[:, None], DOCUMENTS), p, 0.0)
    grad_p = tl.dot(grad, tl.trans(v), input_precision="ieee")
    grad_scores = p * (grad_p - delta[:, None])
    return tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision="ieee")


@triton.jit
def attention_backward_queries_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    grad_ptr: tl.tensor,  # [B, S, N, D] contiguous
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    grad_q_ptr: tl.tensor,  # [B, S, N, D] contiguous
    length: tl.tensor,
    scale: tl.tensor,  # log2(e) / sqrt(D)
    q_row: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_row: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_row: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    row = (tl.program_id(1) // N).to(tl.int64)
    head = (tl.program_id(1) % N).to(tl.int64)
    column = tl.arange(0, D)[None, :]
    tile_row = tl.arange(0, QUERIES)
    query = first + tile_row
    bound = query < length
    q_ptr += row * q_row + head * q_head + tl.cast(first, tl.int64) * q_token
    q = tl.load(q_ptr + tile_row[:, None] * q_token + column, mask=bound[:, None], other=0.0)
    out = ((row * length + first) * N + head) * D + tile_row[:, None] * (N * D) + column
    grad = tl.load(grad_ptr + out, mask=bound[:, None], other=0.0)
    statistics = (row * N + head) * length + query
    lse = tl.load(lse_ptr + statistics, mask=bound, other=0.0)
    delta = tl.load(delta_ptr + statistics, mask=bound, other=0.0)
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
    grad_q = tl.zeros([QUERIES, D], dtype=tl.float32)
    for block in range(full_low, full_high, KEYS):
        grad_q = _backward_queries_block(
            grad_q, q, grad, lse, delta, k_ptr, v_ptr, k_tile, v_tile, k_token, v_token, block, query, start,
            length, scale, False, DOCUMENTS, KEYS,
        )  # fmt: skip
    skip = full_high - full_low
    for edge in range(low, high - skip, KEYS):
        block = tl.where(edge < full_low, edge, edge + skip)
        grad_q = _backward_queries_block(
            grad_q, q, grad, lse, delta, k_ptr, v_ptr, k_tile, v_tile, k_token, v_token, block, query, start,
            length, scale, True, DOCUMENTS, KEYS,
        )  # fmt: skip
    grad_q *= scale * 0.6931471805599453
    tl.store(grad_q_ptr + out, grad_q.to(grad_q_ptr.dtype.element_ty), mask=bound[:, None])
