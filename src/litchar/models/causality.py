"""Whether what a model predicts depends on anything but what precedes."""

import torch
from torch import Tensor, nn

from litchar.errors import UserError

WINDOWS = 4  # that are tried at once


@torch.no_grad()
def check_causal(model: nn.Module, idx: Tensor) -> None:
    """Refuse a model that sees what it is to predict, and so has a loss that means nothing.

    Each window is read a second time with other ids from some position on, a different one per
    window, and the logits before that position compared. They may differ by rounding, as those of
    a convolution by FFT do: by the root of the precision they are computed in, relative to the
    largest. So what is seen is missed while it hardly matters, as when what it passes through
    begins at zero.

    Args:
        model: in evaluation mode.
        idx: windows of a validation batch: (B, T) int64.

    Raises:
        UserError: the logits differ.
    """
    idx = idx[:WINDOWS]
    B, T = idx.shape  # noqa: N806
    position = torch.arange(T, device=idx.device)
    start = (1 + torch.arange(B, device=idx.device)) * T // (B + 1)
    before = position < start[:, None]  # (B, T)
    other = torch.where(before, idx, (idx + 1) % (idx.max() + 1))
    logits, others = model(idx), model(other)
    moved = (logits - others).abs().amax(-1)[before]
    device = idx.device.type
    mixed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if mixed else logits.dtype
    if (moved > torch.finfo(dtype).eps ** 0.5 * logits.abs().max()).any():
        raise UserError(
            f"model: what {type(model).__name__} predicts depends on later characters (or on the "
            "other windows of a batch, or on chance), so its loss means nothing; logits must "
            "depend only on the ids up to their position (docs/models.md)"
        )
