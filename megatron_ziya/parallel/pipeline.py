"""The one executor of any schedule: takes a stage's list of actions and runs it, message by message.

Letters: t tokens of a micro-batch that this rank holds between matrices, H hidden.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ziya.model.llama import Llama, MicroBatch
from megatron_ziya.parallel.collectives import Pending
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.parallel.schedule import Action


class Pipeline:
    """This rank's chunks of the model and its list of actions.

    Hidden states between stages are `[t, H]` in the weights' type. Activations and gradients travel on a group each.
    """

    def __init__(
        self, chunks: Sequence[Llama], mesh: Mesh, actions: Sequence[Action], shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.chunks, self.mesh, self.actions, self.shape, self.dtype = chunks, mesh, actions, shape, dtype
        self.slices = len(chunks) * mesh.pipeline.size

    def run(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Forward and backward of one step. Returns the loss of each token `[T]` a micro-batch, on the last stage."""
        losses: list[Tensor] = []
        live: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}  # (micro-batch, chunk) -> (input, output)
        sends: list[Pending] = []
        posted = self._post(self.actions[0])
        for position, action in enumerate(self.actions):
            message = posted.wait() if posted else None
            following = self.actions[position + 1 : position + 2]
            posted = self._post(following[0]) if following else None  # arrives while this action computes
            key = (action.micro_batch, action.chunk)
            if action.kind == "F":
                live[key] = self._forward(action, batches[action.micro_batch], message, losses)
            else:
                message = self._backward(*live.pop(key), message)
            outgoing = live[key][1].detach() if action.kind == "F" else message
            sends += self._send(action, outgoing)
        for send in sends:
            send.wait()
        return losses

    def _forward(
        self, action: Action, batch: MicroBatch, message: Tensor | None, losses: list[Tensor]
    ) -> tuple[Tensor | None, Tensor]:
        x = batch.tokens.flatten() if message is None else message.requires_grad_()
        output = self.chunks[action.chunk](x, batch)
        if isinstance(output, tuple):
            output, token_losses = output
            losses.append(token_losses)
        return message, output

    def _backward(self, x: Tensor | None, output: Tensor, message: Tensor | None) -> Tensor | None:
        """Returns the gradient of the input, None on the first slice."""
        torch.autograd.backward(output, message)
        return None if x is None else x.grad

    def _slice(self, action: Action) -> int:
        return action.chunk * self.mesh.pipeline.size + self.mesh.pipeline.index

    def _post(self, action: Action) -> Pending | None:
        """Start receiving what an action needs."""
        step = -1 if action.kind == "F" else 1
        if not 0 <= self._slice(action) + step < self.slices:
            return None
        buffer = torch.empty(self.shape, dtype=self.dtype, device=self.mesh.device)
        source, group, tag = self._line(action, step, self._slice(action))
        return Pending(buffer, dist.irecv(buffer, src=source, group=group, tag=tag))

    def _send(self, action: Action, tensor: Tensor | None) -> list[Pending]:
        step = 1 if action.kind == "F" else -1
        slice_ = self._slice(action) + step
        if not 0 <= slice_ < self.slices:
            return []
        assert tensor is not None
        target, group, tag = self._line(action, step, slice_)
        tensor = tensor.contiguous()
        return [Pending(tensor, dist.isend(tensor, dst=target, group=group, tag=tag))]

    def _line(self, action: Action, step: int, slice_: int) -> tuple[int, dist.ProcessGroup | None, int]:
        """The other rank, the group and the tag of a message: the tag names the slice that takes it."""
        axis = self.mesh.pipeline
        other = axis.ranks[(axis.index + step) % axis.size]
        group = axis.group if action.kind == "F" else self.mesh.backward_group
        return other, group, action.micro_batch * self.slices + slice_
