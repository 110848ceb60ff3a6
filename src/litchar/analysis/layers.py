"""Per-layer statistics of a model: update-to-weight ratios and the size of activations."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from litchar.models import evaluating


def layer_of(parameter: str) -> str:
    """Return the layer that a parameter, given by its name, belongs to.

    That is the outermost numbered module around it, or its own module if none is numbered:
    `blocks.0` for `blocks.0.attention.qkv.weight`, `head` for `head.weight`. torch's recurrent
    layers share a module and number their parameters: `layers.weight_hh_l1` belongs to
    `layers.l1`.
    """
    numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", parameter)
    if numbered:
        return numbered[0]
    module, _, name = parameter.rpartition(".")
    recurrent = re.search(r"_(l\d+)(?:_reverse)?$", name)
    return f"{module}.{recurrent[1]}" if module and recurrent else module or name


def parameters_by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters by layer, in the model's order."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(layer_of(name), []).append(parameter)
    return layers


@torch.no_grad()
def update_ratios(
    weights: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
) -> dict[str, Tensor]:
    """Return by layer how far a step moved the weights, relative to their norm: () each.

    A layer that is far from the others is worth a look.

    Args:
        weights: of each layer, as pairs: after the step, and before it.
    """
    norm = torch.nn.utils.get_total_norm
    return {
        layer: norm([new - old for new, old in pairs])
        / norm([new for new, _ in pairs]).clamp_min(1e-12)
        for layer, pairs in weights.items()
    }


@torch.no_grad()
def activation_statistics(model: nn.Module, idx: Tensor) -> dict[str, tuple[float, float]]:
    """Return the root mean square and the largest magnitude of each layer's output.

    The model is run once, in evaluation mode and uncompiled. Layers that are not called as modules,
    such as an embedding that is indexed directly, have no entry.

    Args:
        idx: (B, T) int64
    """
    modules = dict(model.named_modules())
    watched = {layer: modules[layer] for layer in parameters_by_layer(model) if layer in modules}
    found: dict[str, Tensor] = {}

    def note(layer: str, output: object) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor) and output.is_floating_point():
            output = output.detach().float()
            found[layer] = torch.stack((output.square().mean().sqrt(), output.abs().max()))

    hooks = [
        module.register_forward_hook(lambda _, __, output, layer=layer: note(layer, output))
        for layer, module in watched.items()
    ]
    run_hooked(model, idx, hooks)
    figures = torch.stack(list(found.values())).tolist() if found else []
    return {layer: (rms, most) for layer, (rms, most) in zip(found, figures, strict=True)}


def run_hooked(model: nn.Module, idx: Tensor, hooks: Iterable[RemovableHandle]) -> None:
    """Run `model` once in evaluation mode, then remove its hooks.

    Args:
        idx: (B, T) int64
    """
    with evaluating(model):
        try:
            model(idx)
        finally:
            for hook in hooks:
                hook.remove()
