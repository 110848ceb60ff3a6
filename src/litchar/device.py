"""Which device a model is used on."""

import torch

from litchar.errors import UserError


def choose_device(name: str | None) -> torch.device:
    """Return the device called `name`, or the best there is for None.

    Raises:
        UserError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device={name}: not to be had on this machine; try device=cpu") from None
    return device
