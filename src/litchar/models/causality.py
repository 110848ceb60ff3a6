"""Whether what a model predicts depends on anything but what precedes."""

import torch
from torch import Tensor, nn

from litchar.errors import UserError

WINDOWS = 4  # that are tried at once


@torch.no_grad()
def check_causal(model: nn.Module, idx: Tensor) -> None:
    """Raise UserError if a model sees what it is to predict, and so has a loss that means nothing.

    Each window is read a second time with another id from some position on, a different one per
    window, and the logits before that position compared. They may differ by rounding, as those of
    a convolution by FFT do: by the root of the precision, relative to the largest of the same id.
    So what is seen is missed while it hardly matters, as when what it passes through begins at
    zero.

    Args:
        model: in evaluation mode.
        idx: windows of a validation batch: (B, T) int64.
    """
    idx = idx[:WINDOWS]
    B, T = idx.shape  # noqa: N806
    position, window = (torch.arange(size, device=idx.device) for size in (T, B))
    start = (1 + window) * T // (B + 1) | 1  # odd, or all might lie between chunks of a model
    before = position < start[:, None]  # (B, T)
    other = torch.where(before, idx, torch.where(idx == 0, idx.max(), 0))
    logits, others = model(idx), model(other)
    moved, largest = (logits - others).abs()[before], logits.abs().amax((0, 1))
    if (moved > _precision(model, logits) ** 0.5 * largest).any():
        raise UserError(
            f"model: what {type(model).__name__} predicts depends on later characters (or on the "
            "other windows of a batch, or on chance), so its loss means nothing; logits must "
            "depend only on the ids up to their position (docs/models.md)"
        )


def _precision(model: nn.Module, logits: Tensor) -> float:
    """Return the lowest precision that a part of the model may compute in, at best float32's."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtypes |= {torch.float32, logits.dtype}
    if torch.is_autocast_enabled(logits.device.type):
        dtypes.add(torch.get_autocast_dtype(logits.device.type))
    return max(torch.finfo(dtype).eps for dtype in dtypes)
