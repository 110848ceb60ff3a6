"""Forward and backward pass of a batch, captured once and replayed as one CUDA graph."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from litchar.device import capture

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, idx, targets) -> () float32


class ReplayedLoss:
    """A batch's loss and gradients as a single launch: launching a step's hundreds of kernels one
    by one takes longer than running them.

    A replay reads the batch from static buffers and leaves the gradients in the graph's memory,
    where the next replay overwrites them.

    Args:
        mean_loss: the loss to capture, with its backward pass.
        model: in training mode, on a GPU.
        shape: of a batch: (B, T)
        precision: returns the context to compute the loss in.

    Raises:
        Exception: whatever `mean_loss` raises, or that it synchronises with the GPU and so cannot
            be captured.
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
        if self._trained() != self._captured:  # e.g. a layer has been frozen
            del self.graph, self.loss, self.gradients  # there may be no room for two
            with torch.random.fork_rng([self.device]):  # warming up must not change what is dropped
                self._capture()
        self.idx.copy_(idx)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.loss

    def backward(self) -> None:
        """Give the parameters the gradients of the last batch."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def __deepcopy__(self, memo: object) -> Loss:
        """Return the plain loss without the graph, for a copy that averages weights, say."""
        return self.mean_loss

    def _trained(self) -> list[int]:
        """Return each parameter's address, 0 if frozen: the graph is valid only for these."""
        return [p.data_ptr() if p.requires_grad else 0 for p in self.parameters]

    def _capture(self) -> None:
        def forward_and_backward() -> None:
            with self.precision():
                loss = self.mean_loss(self.model, self.idx, self.targets)
            torch.autograd.backward(loss)
            self.loss = loss.detach()

        def forget() -> None:
            self.model.zero_grad(set_to_none=True)
            torch.clear_autocast_cache()  # or the graph would not cast the weights again
            torch.cuda.empty_cache()  # or the graph's memory would come on top of the warm-up's

        forget()
        forward_and_backward()  # what happens only once, such as compiling, may synchronise
        forget()
        # Code that synchronises cannot be captured, and torch does not recover from the attempt.
        torch.cuda.set_sync_debug_mode("error")
        try:
            forward_and_backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        forget()
        self.graph = capture(forward_and_backward, self.device, undo=forget)
        self.gradients = [p.grad for p in self.parameters]
        self._captured = self._trained()
