"""Forward and backward pass of a batch, replayed as one CUDA graph."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from litchar.device import capture

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a model on a batch: () float32


class ReplayedLoss:
    """The loss of a batch and its gradients, launched together: a step's hundreds of launches take
    longer than what they launch.

    A replay reads the batch from memory of the graph's own, and leaves the gradients in such
    memory, where the next one overwrites them.

    Args:
        mean_loss: what is captured, with its gradients.
        model: in training mode, on a GPU.
        shape: of the batches: (B, T)
        precision: what the loss is computed under.

    Raises:
        Exception: whatever `mean_loss` raises; or it waits for the GPU, and cannot be captured.
    """

    def __init__(
        self,
        mean_loss: Loss,
        model: nn.Module,
        shape: tuple[int, int],
        precision: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.mean_loss = mean_loss
        self.model = model
        self.precision = precision
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        self.idx, self.targets = (
            torch.zeros(shape, dtype=torch.long, device=self.device) for _ in range(2)
        )
        self._capture()

    def __call__(self, model: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch: () float32."""
        if self._trained() != self._captured:  # say, a layer has been frozen
            self._capture()
        self.idx.copy_(idx)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.loss

    def backward(self) -> None:
        """Let the parameters have the gradients of the last batch."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def __deepcopy__(self, memo: object) -> Loss:
        """Return what is left of it in a copy, say one that averages weights: no graph."""
        return self.mean_loss

    def _trained(self) -> list[int]:
        """Return where each parameter lies that is trained: what a graph holds for."""
        return [p.data_ptr() if p.requires_grad else 0 for p in self.parameters]

    def _capture(self) -> None:
        def forward_and_backward() -> None:
            with self.precision():
                loss = self.mean_loss(self.model, self.idx, self.targets)
            torch.autograd.backward(loss)
            self.loss = loss.detach()

        def forget() -> None:
            self.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()  # or the graph's memory would come on top of the warm-up's

        forget()
        # What waits for the GPU cannot be captured, and torch does not recover from the attempt.
        torch.cuda.set_sync_debug_mode("error")
        try:
            forward_and_backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        forget()
        self.graph = capture(forward_and_backward, self.device, undo=forget)
        self.gradients = [p.grad for p in self.parameters]
        self._captured = self._trained()
