"""The search space: from `conf/tune` to Optuna distributions, and from values to overrides."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from litchar.errors import UserError

Value = None | bool | int | float | str
# For each kind: its distribution, the required fields, and the optional ones.
KINDS: dict[str, tuple[type[BaseDistribution], dict[str, type], dict[str, type]]] = {
    "float": (FloatDistribution, {"low": float, "high": float}, {"log": bool, "step": float}),
    "int": (IntDistribution, {"low": int, "high": int}, {"log": bool, "step": int}),
    "categorical": (CategoricalDistribution, {"choices": list}, {}),
}


def read_space(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return an Optuna distribution for each dotted key of the search space.

    Args:
        space: `tune.space`, nested like the configuration or with dotted keys. A leaf has a `type`
            (float, int or categorical) and the arguments of Optuna's distribution of that name:
            `low`, `high`, `log` and `step`, or `choices`.

    Raises:
        UserError: the space is empty or malformed; the message names the key.
    """
    found = {key: _distribution(key, leaf) for key, leaf in _leaves(space, "")}
    if not found:
        raise UserError(
            "tune.space is empty; name keys to search, such as "
            "'+tune.space.optimizer.lr={type:float,low:1e-4,high:1e-2,log:true}'"
        )
    return found


def suggest(trial: Trial, space: Mapping[str, BaseDistribution]) -> dict[str, Value]:
    """Return the values that the sampler suggests for `trial`, or those that it already has."""
    suggested: dict[type[BaseDistribution], Callable[..., Value]] = {
        FloatDistribution: trial.suggest_float,
        IntDistribution: trial.suggest_int,
        CategoricalDistribution: trial.suggest_categorical,
    }
    return {key: suggested[type(kind)](key, **vars(kind)) for key, kind in space.items()}


def override(key: str, value: Value) -> str:
    """Return the Hydra override that sets `key` to `value`."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, str):
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return f"{key}={value}"


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, child in node.items():
        key = f"{prefix}{name}"
        if not isinstance(child, Mapping):
            raise UserError(
                f"tune.space.{key}={child}: must be a distribution, such as "
                "{type: float, low: 1e-4, high: 1e-2, log: true}"
            )
        if "type" in child or {"low", "high", "choices"} & set(child):
            yield key, child
        else:
            yield from _leaves(child, f"{key}.")


def _distribution(key: str, leaf: Mapping[str, Any]) -> BaseDistribution:
    place = f"tune.space.{key}"
    kind = leaf.get("type")
    if kind not in KINDS:
        raise UserError(f"{place}: type={kind}; choose from {', '.join(KINDS)}")
    made, needed, optional = KINDS[kind]
    given = {name: value for name, value in leaf.items() if name != "type" and value is not None}
    if missing := needed.keys() - given.keys():
        raise UserError(f"{place}: a {kind} needs {' and '.join(sorted(missing))}")
    for name, value in given.items():
        expected = (needed | optional).get(name)
        if expected is None:
            names = ", ".join([*needed, *optional])
            raise UserError(f"{place}: a {kind} has no {name}; it has {names}")
        fits = isinstance(value, int | float) if expected is float else isinstance(value, expected)
        if not fits or (expected is not bool and isinstance(value, bool)):
            raise UserError(f"{place}: {name}={value} must be a {expected.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{place}: {name}={value} must be finite")
    if kind == "categorical":
        for choice in given["choices"]:
            if not isinstance(choice, Value):
                raise UserError(f"{place}: the choice {choice} must be a number, a string, or null")
    try:
        return made(**given)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
