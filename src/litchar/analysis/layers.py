"""What the layers of a model do: how far a step moves their weights, how large outputs are."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from litchar.models import evaluating


def layer_of(parameter: str) -> str:
    """Return the layer that a parameter, given by its name, belongs to.

    That is its module, or, where modules are numbered, the first numbered one: of
    `blocks.0.attention.qkv.weight` it is `blocks.0`, of `head.weight` it is `head`. torch's own
    recurrent layers share a module and number their parameters: `layers.weight_hh_l1` belongs to
    `layers.l1`.
    """
    numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", parameter)
    if numbered:
        return numbered[0]
    module, _, name = parameter.rpartition(".")
    recurrent = re.search(r"_(l\d+)(?:_reverse)?$", name)
    return f"{module}.{recurrent[1]}" if module and recurrent else module or name


def parameters_by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that are trained, by layer, in the model's order."""
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
        weights: of each layer, each as it is after the step, and as it was before.
    """
    norm = torch.nn.utils.get_total_norm
    return {
        layer: norm([new - old for new, old in pairs])
        / norm([new for new, _ in pairs]).clamp_min(1e-12)
        for layer, pairs in weights.items()
    }


@torch.no_grad()
def activation_statistics(model: nn.Module, idx: Tensor) -> dict[str, tuple[float, float]]:
    """Return the root mean square of each layer's output, and its largest magnitude.

    The model is run once, as in evaluation, with nothing compiled. Layers that are not called as
    modules, such as an embedding that is indexed, have no entry.

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
    """Run `model` once, in evaluation mode, and take its hooks away.

    Args:
        idx: (B, T) int64
    """
    with evaluating(model):
        try:
            model(idx)
        finally:
            for hook in hooks:
                hook.remove()
