"""Optimisers: each takes a model and its settings, and says which parameters decay."""

from collections.abc import Sequence

import torch
from torch import nn


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.1,
    betas: Sequence[float] = (0.9, 0.99),
    eps: float = 1e-8,
    decay: str = "matrices",
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter, 2019) over the parameters of `model`.

    Args:
        weight_decay: the share of a weight that lr = 1 would take off in a step.
        decay: `matrices` spares biases and gains; `all` spares nothing, as torch does by default.

    Raises:
        ValueError: `decay` is neither.
    """
    if decay not in ("matrices", "all"):
        raise ValueError(f"decay={decay} is not one of matrices, all")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = [p for p in parameters if p.ndim < 2] if decay == "matrices" else []
    decayed = [p for p in parameters if not any(p is other for other in spared)]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=tuple(betas),
        eps=eps,
        fused=True,
    )
    # A fused step could undo the scaling of float16 gradients itself. Lightning then refuses to
    # clip them, even in bfloat16, where nothing is scaled; without the mark it undoes it first.
    optimizer._step_supports_amp_scaling = False
    return optimizer
