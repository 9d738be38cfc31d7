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
from megatron_ziya.model.recompute import backward
from megatron_ziya.parallel.collectives import Pending
from megatron_ziya.parallel.cross_entropy import Scores, SpreadHead
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

    @property
    def share_of_head(self) -> SpreadHead:
        head = self.chunks[0].share_of_head
        assert isinstance(head, SpreadHead), "S and T are actions of a schedule with a spread head"
        return head

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
            messages = step.take(action)
            if self.trace is not None:
                self.trace.start(action)
            step.give(action, step.perform(action, messages))
            if self.trace is not None:
                self.trace.end(len(step.live) + len(step.waiting))
        while step.sends:
            step.sends.popleft().wait()
        assert not (step.live or step.waiting or step.scores or step.arrived), "a schedule leaves nothing behind"
        return [losses for _, losses in sorted(step.losses.items())]


class _Step:
    """What is under way in one step."""

    def __init__(self, pipeline: Pipeline, batches: Sequence[MicroBatch]) -> None:
        self.pipeline, self.batches = pipeline, batches
        self.live: dict[tuple[int, int], Live] = {}  # (micro-batch, chunk) -> between F and B
        self.waiting: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor, bool]]] = {}  # between B and W
        self.scores: dict[int, Scores] = {}  # between S and T
        self.losses: dict[int, Tensor] = {}
        self.sends: deque[Pending] = deque()
        self.arrived: dict[Message, Pending] = {}  # posted receives, and what this stage made for itself
        stage, schedule = pipeline.stage, pipeline.schedule
        others = [other for other in range(schedule.stages) if other != stage]
        self.coming = {other: deque(schedule.line(other, stage)) for other in others}  # not posted yet
        for other in others:
            for _ in range(pipeline.ahead):
                self._post(other)

    def take(self, action: Action) -> list[Tensor]:
        """Wait for what an action needs from others, and post the next receive of each line."""
        schedule, stage, tensors = self.pipeline.schedule, self.pipeline.stage, []
        for message in schedule.takes(stage, action):
            source = schedule.source(message)
            while message not in self.arrived:  # only when it is taken in another order than sent
                self._post(source)
            tensors.append(self.arrived.pop(message).wait())
            if source != stage:
                self._post(source)
        if action.kind == "T":
            self.scores[action.micro_batch].numbers.wait()
        return tensors

    def perform(self, action: Action, messages: list[Tensor]) -> Tensor | None:
        """Returns what the action makes for others."""
        pipeline, key = self.pipeline, (action.micro_batch, action.chunk)
        if action.kind == "W":
            with torch.no_grad():
                for item in self.waiting.pop(key):
                    add_weight_gradient(*item)
            return None
        if action.kind == "S":
            batch = self.batches[action.micro_batch]
            arguments = batch.targets.flatten(), batch.loss_mask.flatten(), batch.loss_scale
            self.scores[action.micro_batch] = pipeline.share_of_head(messages[0], *arguments)
            return None
        if action.kind == "T":
            d_hidden, losses = pipeline.share_of_head.gradient(self.scores.pop(action.micro_batch))
            if pipeline.schedule.stage_of[pipeline.schedule.slices - 1] == pipeline.stage:
                self.losses[action.micro_batch] = losses
            return d_hidden
        return self._forward(key, messages) if action.kind == "F" else self._backward(key, messages)

    def _forward(self, key: tuple[int, int], messages: list[Tensor]) -> Tensor:
        micro_batch, chunk = key
        batch = self.batches[micro_batch]
        x = messages[0].requires_grad_() if messages else batch.tokens.flatten()
        output = self.pipeline.chunks[chunk](x, batch)
        if isinstance(output, tuple):
            output, self.losses[micro_batch] = output
        self.live[key] = Live(x if messages else None, output)
        return output.detach()

    def _backward(self, key: tuple[int, int], messages: list[Tensor]) -> Tensor | None:
        live, deferred, split = self.live.pop(key), self.pipeline.deferred[key[1]], self.pipeline.schedule.split
        deferred.open = split
        gradient = messages[0] if messages else None
        if len(messages) > 1:  # a part from every stage's share of the head, in their order; rounded once
            gradient = torch.stack(messages).sum(0)
        backward(live.output, gradient)
        deferred.open = False
        if split:
            self.waiting[key] = deferred.take()
        return None if live.input is None else live.input.grad

    def give(self, action: Action, tensor: Tensor | None) -> None:
        """Send what an action has made, or keep it when this stage takes it itself."""
        schedule, stage = self.pipeline.schedule, self.pipeline.stage
        for message in schedule.sends(stage, action):
            assert tensor is not None
            target = schedule.target(message)
            if target == stage:
                self.arrived[message] = Pending(tensor)
                continue
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
        group = mesh.lines[schedule.source(message), schedule.target(message)]
        tag = (message.micro_batch * schedule.slices + message.place) * 4 + "FBST".index(message.kind)
        return mesh.pipeline.ranks[other], group, tag
