"""The debug mode's proof that no operation touches weights that are still on their way (`run.debug`).

Every operation of the forward and the backward pass goes through `StaleGuard`, so a module that forgot to wait for
its bucket is named at once instead of training on half-old weights (Megatron-LM #950, #663).
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from megatron_ziya.parallel.data import DataParallel


class StaleGuard(TorchDispatchMode):
    """Raises AssertionError when an operation takes a tensor of a bucket whose gather is not over."""

    def __init__(self, data: DataParallel) -> None:
        super().__init__()
        self.homes = {bucket.flat.untyped_storage().data_ptr(): bucket for bucket in data.buckets}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_iter((args, kwargs)):
            if not isinstance(value, torch.Tensor) or value.is_meta:
                continue
            bucket = self.homes.get(value.untyped_storage().data_ptr())
            assert bucket is None or bucket.gathering is None or _only_looks(function), (
                f"{function} reads stale weights: the gather of their bucket is not over"
            )
        return function(*args, **(kwargs or {}))


def _only_looks(function: Any) -> bool:
    """Views move no data."""
    return function in (torch.ops.aten.detach.default, torch.ops.aten.t.default, torch.ops.aten.view.default)
