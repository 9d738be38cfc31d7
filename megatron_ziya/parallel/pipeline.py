"""The one executor of any schedule: takes a stage's list of actions and runs it, message by message.

Letters: t tokens of a micro-batch that this rank holds between matrices, H hidden.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ziya.model.linear import Deferred, add_weight_gradient
from megatron_ziya.model.llama import Llama, MicroBatch
from megatron_ziya.parallel.collectives import Pending
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.parallel.schedule import Action, Message, Schedule
from megatron_ziya.parallel.trace import Trace


class Live(NamedTuple):
    """What a forward leaves for its backward."""

    input: Tensor | None
    """None on the first slice, which takes tokens."""
    output: Tensor


class Pipeline:
    """This rank's chunks of the model and its list of actions.

    Hidden states between stages are `[t, H]` in the weights' type. Every line (one stage sending to another) has its
    own group, see `Mesh.lines`. Receives are posted in the order of the sends, `ahead` of them before they are needed:
    NCCL matches messages by order alone.
    """

    def __init__(
        self,
        chunks: Sequence[Llama],
        mesh: Mesh,
        schedule: Schedule,
        ahead: int,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:
        """`ahead` receives are kept posted per sending stage; `verify` says how many the schedule needs."""
        self.chunks, self.mesh = chunks, mesh
        self.shape, self.dtype, self.stage = shape, dtype, mesh.pipeline.index
        self.follow(schedule, ahead)
        self.trace: Trace | None = None
        """Set for a step that is to be written down."""
        self.deferred = [Deferred() for _ in chunks]
        for chunk, deferred in zip(chunks, self.deferred, strict=True):
            for weight in chunk.parameters():
                weight.deferred = deferred  # type: ignore[attr-defined]

    def follow(self, schedule: Schedule, ahead: int) -> None:
        """Take up another schedule, for another number of micro-batches."""
        self.schedule, self.ahead = schedule, ahead
        self.actions = schedule.actions[self.stage]

    def run(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Forward and backward of one step.

        Returns the loss of each token `[T]` a micro-batch, on the stage that holds the last slice.
        """
        step = _Step(self, batches)
        if self.trace is not None:
            self.trace.begin()
        for action in self.actions:
            message = step.take(action)
            if self.trace is not None:
                self.trace.start(action)
            step.give(action, step.perform(action, message))
            if self.trace is not None:
                self.trace.end(len(step.live) + len(step.waiting))
        while step.sends:
            step.sends.popleft().wait()
        assert not (step.live or step.waiting or step.arrived), "a schedule leaves nothing behind"
        return [losses for _, losses in sorted(step.losses.items())]


class _Step:
    """What is under way in one step."""

    def __init__(self, pipeline: Pipeline, batches: Sequence[MicroBatch]) -> None:
        self.pipeline, self.batches = pipeline, batches
        self.live: dict[tuple[int, int], Live] = {}  # (micro-batch, chunk) -> between F and B
        self.waiting: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor, bool]]] = {}  # between B and W
        self.losses: dict[int, Tensor] = {}
        self.sends: deque[Pending] = deque()
        self.arrived: dict[Message, Pending] = {}  # posted receives, and what this stage made for itself
        stage, schedule = pipeline.stage, pipeline.schedule
        others = [other for other in range(schedule.stages) if other != stage]
        self.coming = {other: deque(schedule.line(other, stage)) for other in others}  # not posted yet
        for other in others:
            for _ in range(pipeline.ahead):
                self._post(other)

    def take(self, action: Action) -> Tensor | None:
        """Wait for what an action needs from another slice, and post the next receive of that line."""
        schedule, stage = self.pipeline.schedule, self.pipeline.stage
        message = schedule.takes(stage, action)
        if message is None:
            return None
        source = schedule.source(message)
        while message not in self.arrived:  # only when it is taken in another order than sent
            self._post(source)
        tensor = self.arrived.pop(message).wait()
        if source != stage:
            self._post(source)
        return tensor

    def perform(self, action: Action, message: Tensor | None) -> Tensor | None:
        """Returns what the action makes for another slice."""
        pipeline, key = self.pipeline, (action.micro_batch, action.chunk)
        if action.kind == "W":
            with torch.no_grad():
                for item in self.waiting.pop(key):
                    add_weight_gradient(*item)
            return None
        if action.kind == "F":
            batch = self.batches[action.micro_batch]
            x = batch.tokens.flatten() if message is None else message.requires_grad_()
            output = pipeline.chunks[action.chunk](x, batch)
            if isinstance(output, tuple):
                output, self.losses[action.micro_batch] = output
            self.live[key] = Live(message, output)
            return output.detach()
        deferred, live = pipeline.deferred[action.chunk], self.live.pop(key)
        deferred.open = pipeline.schedule.split
        torch.autograd.backward(live.output, message)
        deferred.open = False
        if pipeline.schedule.split:
            self.waiting[key] = deferred.take()
        return None if live.input is None else live.input.grad

    def give(self, action: Action, tensor: Tensor | None) -> None:
        """Send what an action has made, or keep it when the slice that takes it is on this stage too."""
        schedule, stage = self.pipeline.schedule, self.pipeline.stage
        message = schedule.sends(stage, action)
        if message is None:
            return
        assert tensor is not None
        target = schedule.stage_of[message.slice]
        if target == stage:
            self.arrived[message] = Pending(tensor)
            return
        tensor = tensor.contiguous()
        other, group, tag = self._line(message, target)
        self.sends.append(Pending(tensor, dist.isend(tensor, dst=other, group=group, tag=tag)))
        if len(self.sends) > 4 * schedule.stages:  # safe: the schedule is proven to run even if every send blocks
            self.sends.popleft().wait()

    def _post(self, source: int) -> None:
        """Start receiving the next message of a stage, if there is one."""
        if self.coming[source]:
            message = self.coming[source].popleft()
            buffer = torch.empty(self.pipeline.shape, dtype=self.pipeline.dtype, device=self.pipeline.mesh.device)
            other, group, tag = self._line(message, source)
            self.arrived[message] = Pending(buffer, dist.irecv(buffer, src=other, group=group, tag=tag))

    def _line(self, message: Message, other: int) -> tuple[int, dist.ProcessGroup | None, int]:
        """The other rank, the group and the tag of a message."""
        mesh, schedule = self.pipeline.mesh, self.pipeline.schedule
        group = mesh.lines[schedule.source(message), schedule.stage_of[message.slice]]
        tag = (message.micro_batch * schedule.slices + message.slice) * 2 + (message.kind == "B")
        return mesh.pipeline.ranks[other], group, tag
