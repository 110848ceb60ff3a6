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
            newest run under `outputs/`, or under `$LITCHAR_OUTPUTS`.
        device: `cpu`, `cuda` or `mps`; by default the best available.

    Raises:
        litchar.errors.UserError: the checkpoint does not exist or is damaged, or there is no such
            device.
        PermissionError: the checkpoint must not be read.
    """
    from litchar.generation.text_model import TextModel  # imports torch, which takes seconds

    return TextModel.load(checkpoint, device)
