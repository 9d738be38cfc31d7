"""Types of numbers, and the loss scale that FP16 needs."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from megatron_ziya import config

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass
class LossScale:
    """FP16 loses what is below 6e-8, so the loss is multiplied by `value` and the gradients divided (arXiv 1710.03740).

    `value` halves at each overflow and doubles after `window` good steps in a row, as torch.amp.GradScaler does. With
    any other type it stays 1.
    """

    value: float = 1.0
    window: int = 0
    """0 = does not change."""
    good: int = 0

    @classmethod
    def of(cls, options: config.Precision) -> "LossScale":
        return cls(options.loss_scale, options.loss_scale_window) if options.weights == "fp16" else cls()

    def update(self, finite: bool) -> bool:
        """Takes note of a step. Returns whether a smaller scale may mend what was not finite."""
        if not self.window:
            return False
        if not finite:
            mends, self.value, self.good = self.value > 1.0, max(1.0, self.value / 2), 0
            return mends
        self.good += 1
        if self.good == self.window:
            self.value, self.good = self.value * 2, 0
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"value": self.value, "good": self.good}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; a run that does not use FP16 ignores it."""
        if self.window and state:
            self.value, self.good = float(state["value"]), int(state["good"])


def unhealthy(loss: float, norm: float) -> str:
    """What of a step is not finite, in words; empty when all is well."""
    if not math.isfinite(loss):
        return f"loss {loss}"
    return "" if math.isfinite(norm) else f"gradient norm {norm}"
