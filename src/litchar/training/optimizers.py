"""Optimisers: each is built from a model and its settings, and knows which parameters decay."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step

from litchar.device import capture
from litchar.models.checks import (
    check_betas,
    check_choice,
    check_not_negative,
    check_shares,
    check_sizes,
)


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
        weight_decay: decoupled; a step multiplies a weight by 1 - lr * weight_decay.
        betas: decay rates of the running means of gradients and of their squares.
        eps: added to the square root in the denominator.
        decay: `matrices` spares biases and gains; `all` spares nothing, as torch does by default.

    Raises:
        ValueError: a setting is out of range.
    """
    check_choice("decay", decay, ("matrices", "all"))
    check_not_negative(weight_decay=weight_decay)  # torch checks the rest
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = [p for p in parameters if p.ndim < 2 and decay == "matrices"]
    decayed = [p for p in parameters if p.ndim >= 2 or decay == "all"]
    check_betas(betas)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        fused=True,
    )
    # A fused step can unscale float16 gradients itself. Lightning then refuses to clip them, even
    # in bfloat16, where nothing is scaled; with this flag off, it unscales them before the step.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def muon(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    polar_steps: int = 5,
    embedding_lr_factor: float = 1.0,
    betas: Sequence[float] = (0.9, 0.99),
    eps: float = 1e-8,
) -> "Muon":
    """Return Muon for the hidden matrices of `model`, AdamW for its embeddings, head and vectors.

    The head is `model.head`. A bigram model is just an embedding, so AdamW trains all of it.

    Args:
        lr: of both; a Muon step is as large as an AdamW step would be.
        weight_decay: of the matrices alone; a step multiplies them by 1 - lr * weight_decay.
        momentum: of Muon.
        polar_steps: iterations of Muon's orthogonalisation.
        embedding_lr_factor: on the learning rate of embeddings, of which a step moves few rows.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ValueError: a setting is out of range.
    """
    check_sizes(polar_steps=polar_steps)
    check_shares(momentum=momentum)
    check_betas(betas)
    check_not_negative(lr=lr, weight_decay=weight_decay, eps=eps)
    check_not_negative(embedding_lr_factor=embedding_lr_factor)
    # Deduplicated: two of them may share a weight.
    embeddings = list({m.weight: None for m in model.modules() if isinstance(m, nn.Embedding)})
    head = getattr(model, "head", None)
    of_head = head.parameters() if isinstance(head, nn.Module) else [head]
    outside = {id(p) for p in (*embeddings, *of_head)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in outside]
    stepped = {id(p) for p in (*matrices, *embeddings)}
    # `fused` tells torch, when it loads a state, to keep the step counts on the device.
    adam = {"kind": "adamw", "fused": True}
    groups = [
        {"kind": "muon", "params": matrices, "lr": lr, "weight_decay": weight_decay},
        adam | {"params": embeddings, "lr": lr * embedding_lr_factor},
        adam | {"params": [p for p in parameters if id(p) not in stepped], "lr": lr},
    ]
    return Muon(
        [group for group in groups if group["params"]],
        {
            "weight_decay": 0.0,
            "momentum": momentum,
            "polar_steps": polar_steps,
            "betas": tuple(betas),
            "eps": eps,
        },
    )


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps (Muon; Jordan et al., 2024), alongside AdamW.

    A matrix takes the step U V^T, where U S V^T is the SVD of its Nesterov momentum: all directions
    count equally. The step is scaled to the root mean square of AdamW's (Liu et al., 2025, "Muon is
    scalable for LLM training"), so that one learning rate suits both. `torch.optim.Muon` steps one
    matrix after the other; here all matrices of one shape are orthogonalised as a batch.

    Each parameter group has a `kind`: `muon` (matrices only) or `adamw`.
    """

    def __init__(self, params: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        # By number and shape of the matrices: inputs, outputs and the graph that computes them.
        self._graphs: dict[Any, tuple[list[Tensor], list[Tensor], torch.cuda.CUDAGraph]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state, of a copy or a checkpoint; CUDA graphs are captured anew."""
        super().__setstate__(state)
        self._graphs = {}

    @torch.no_grad()
    def step(  # type: ignore[override]  # one signature, where torch has two overloads
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take a step; `closure`, if given, computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["kind"] == "muon":
                self._step_muon(parameters, group)
            elif parameters:
                self._step_adamw(parameters, group)
        return loss

    def _step_muon(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self._state(p, "momentum_buffer") for p in matrices]
        gradients = [p.grad for p in matrices if p.grad is not None]  # all have one: see `step`
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        # Nesterov momentum. FSDP's tensors have no out-of-place lerp before torch 2.13.
        updates = torch._foreach_mul(gradients, 1 - momentum)
        torch._foreach_add_(updates, buffers, alpha=momentum)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])

        def shape(pair: tuple[Tensor, Tensor]) -> tuple[int, ...]:
            return min(pair[0].shape), *pair[0].shape  # the shorter side first: see `orthogonalize`

        by_shape = sorted(zip(matrices, updates, strict=True), key=shape)
        alike = [tuple(zip(*pairs, strict=True)) for _, pairs in groupby(by_shape, key=shape)]
        all_steps = self._orthogonalize([updates for _, updates in alike], group["polar_steps"])
        for (parameters, _), steps in zip(alike, all_steps, strict=True):
            scale = 0.2 * math.sqrt(max(steps.shape[1:]))
            each = [steps[i] for i in range(len(steps))]  # in torch 2.9, FSDP's have no `unbind`
            torch._foreach_add_(list(parameters), each, alpha=-group["lr"] * scale)

    def _orthogonalize(self, alike: list[tuple[Tensor, ...]], polar_steps: int) -> list[Tensor]:
        """Orthogonalise matrices, in groups of one shape: (N, R, C) each.

        On a GPU, the hundred kernel launches take longer than the kernels, unless the matrices are
        large; so they are captured once and replayed. (FSDP's gradients cannot be captured.)
        """
        gradients = [gradient for each in alike for gradient in each]
        small = sum(gradient.numel() for gradient in gradients) <= 1 << 25
        if not (small and all(g.is_cuda and type(g) is Tensor for g in gradients)):
            return orthogonalize([torch.stack(each) for each in alike], polar_steps)
        key = (polar_steps, *((len(each), *each[0].shape) for each in alike))
        if key not in self._graphs:
            given = [torch.stack(each) for each in alike]
            steps: list[Tensor] = []

            def work() -> None:
                steps[:] = orthogonalize(given, polar_steps)

            self._graphs[key] = given, steps, capture(work, gradients[0].device)
        given, steps, graph = self._graphs[key]
        for stacked, each in zip(given, alike, strict=True):
            torch.stack(each, out=stacked)
        graph.replay()
        return steps

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        adamw_step(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self._state(p, "exp_avg") for p in parameters],
            [self._state(p, "exp_avg_sq") for p in parameters],
            [],
            [self._steps(p) for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        """Return the state `name` of `parameter`: zeros of its shape at first."""
        state: dict[str, Tensor] = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]

    def _steps(self, parameter: Tensor) -> Tensor:
        """Return the number of AdamW steps: () float32, whatever the parameter's dtype."""
        state: dict[str, Tensor] = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return state["step"]


Quintic = tuple[float, float, float]

# The quintics a x + b x^3 + c x^5 that, applied in turn, bring singular values in [0.001, 1]
# closest to 1 (Polar Express; Amsel et al., 2025).
POLAR_EXPRESS: Sequence[Quintic] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.875, -1.25, 0.375),  # repeated from here on
)


def orthogonalize(alike: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Return approximately the orthogonal polar factor of each matrix: (N, R, C) each.

    On a GPU it is computed in bfloat16, which is precise enough for a direction.

    Args:
        alike: matrices batched by shape: (N, R, C) each. Consecutive batches with the same shorter
            side may be processed together, see `_by_grams`.
        steps: number of iterations.
    """
    quintics = [POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] for step in range(steps)]
    wide = []
    for matrices in alike:
        x = matrices.bfloat16() if matrices.is_cuda else matrices
        x = x.mT if x.shape[-2] > x.shape[-1] else x
        least = torch.finfo(x.dtype).tiny  # for a matrix of zeros
        # No singular value may exceed 1; 1.01 leaves a margin for rounding.
        wide.append(x / (1.01 * torch.linalg.matrix_norm(x, keepdim=True).clamp_min(least)))
    factors: list[Tensor] = []
    for _, group in groupby(wide, key=lambda x: x.shape[-2]):
        together = list(group)
        # In 16 bits the small eigenvalues of X X^T are noise; FSDP's tensors have no diagonal to
        # add to.
        if together[0].element_size() > 2 and type(together[0]) is Tensor:
            factors += _by_grams(together, quintics)
        else:
            factors += [_by_matrix(x, quintics) for x in together]
    return [
        (x.mT if matrices.shape[-2] > matrices.shape[-1] else x).type_as(matrices)
        for x, matrices in zip(factors, alike, strict=True)
    ]


def _by_matrix(x: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """Iterate on the matrices themselves: (N, R, C)."""
    # bfloat16 rounding lifts some singular values above 1 at every step, and the next quintic would
    # blow them up: so each quintic is evaluated at x / 1.01.
    margin = 1.01 if x.dtype == torch.bfloat16 else 1.0
    for a, b, c in quintics:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b / margin**3, alpha=c / margin**5)
        x = torch.baddbmm(x, polynomial, x, beta=a / margin)  # a x + b A x + c A A x
    return x


def _by_grams(wide: Sequence[Tensor], quintics: Sequence[Quintic]) -> list[Tensor]:
    """Iterate on A = X X^T, which has one shape for all: (N, R, C) each, with equal R.

    This is less work where C > R, and takes fewer calls for small matrices (Gram Newton-Schulz;
    Zhang, Amsel, Chen and Dao, 2026).
    """
    # Rounding makes some zero eigenvalues of A negative, and the quintics gradually amplify them:
    # A is recomputed from X after every five.
    for start in range(0, len(quintics), 5):
        gram = torch.cat([x @ x.mT for x in wide])
        factor = polynomial = _polynomial(gram, *quintics[start])
        for quintic in quintics[start + 1 : start + 5]:
            gram = polynomial @ gram @ polynomial
            polynomial = _polynomial(gram, *quintic)
            factor = polynomial @ factor
        factors = torch.split(factor, [len(x) for x in wide])
        wide = [factor @ x for factor, x in zip(factors, wide, strict=True)]
    return list(wide)


def _polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """Return the factor by which a quintic multiplies X, a I + b A + c A A: (N, R, R)."""
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
    return polynomial
