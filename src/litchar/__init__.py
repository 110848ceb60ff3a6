"""litchar: a bench for character-level language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from litchar.generation.text_model import TextModel

__version__ = "0.1.0"
__all__ = ["load"]


def load(checkpoint: "str | PathLike[str]" = "latest", device: str | None = None) -> "TextModel":
    """Return a trained model that reads and writes text.

    Args:
        checkpoint: a file, a run's directory (its best checkpoint), or `latest`: the best of the
            newest run under `outputs/`, or where the environment's LITCHAR_OUTPUTS says.
        device: `cpu`, `cuda`, `mps`; by default the best there is.

    Raises:
        litchar.errors.UserError: there is no such checkpoint, it is not whole, or there is no such
            device.
    """
    from litchar.generation.text_model import TextModel  # torch, which takes seconds

    return TextModel.load(checkpoint, device)
