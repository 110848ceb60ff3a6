"""`scripts/export.py`: export a trained model to a format that other tools read."""

import errno
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from litchar.atomic import atomic_write
from litchar.checkpoints.checkpoint import Checkpoint, find
from litchar.checkpoints.huggingface import check_place, write_huggingface
from litchar.errors import UserError, extra, first_line
from litchar.models import block_size_of
from litchar.terminal import Terminal

FULL = os.strerror(errno.ENOSPC)
MOST_ONNX_BYTES = 1_500_000_000  # of weights; beyond that torch moves some to a second file
MOST_DIFFERENCE = 1e-4  # between the logits of an exported model and ours
Logits = Callable[[np.ndarray], np.ndarray]  # (B, T) int64 -> (B, T, V) float32


def run(config: DictConfig) -> None:
    """Write the model of a checkpoint to `output`, in `format`, if its logits match ours.

    Raises:
        UserError: the checkpoint, the format or the output path is invalid, a package is missing,
            or the logits differ by more than `MOST_DIFFERENCE`.
    """
    if config.format not in FORMATS:
        raise UserError(f"format={config.format}: must be one of {', '.join(FORMATS)}")
    chosen = FORMATS[config.format]
    output = Path(os.path.expanduser(config.output or chosen.output))
    suffix = output.suffix.lower()
    if SUFFIXES.get(suffix, config.format) != config.format:
        raise UserError(
            f"output={output}: format={config.format} is not what {suffix} stands for; set "
            f"format={SUFFIXES[suffix]}, or choose another name"
        )
    if suffix == ".safetensors":
        raise UserError(
            f"output={output}: name the directory that format=huggingface writes such a file to"
        )
    checkpoint = Checkpoint.load(find(config.checkpoint, Path(config.outputs_dir)))
    try:
        output = Path(os.path.realpath(output)) if output.is_symlink() else output
        if output.is_symlink():
            raise UserError(f"output={output}: is a loop of links")
        if not output.parent.is_dir():
            raise UserError(f"output={output}: there is no directory {output.parent}")
        chosen.check_place(output)
        model = checkpoint.build_model()
        with extra(chosen.extra, f"format={config.format}"), atomic_write(output) as draft:
            difference = largest_difference(model, chosen.write(checkpoint, model, draft))
            if not difference <= MOST_DIFFERENCE:
                raise UserError(
                    f"{checkpoint.path}: its logits in {chosen.tool} differ by {difference:.1e}; "
                    "nothing was kept"
                )
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror})") from None
    except Exception as error:
        if FULL not in str(error):  # safetensors and tokenizers raise their own kinds of error
            raise
        raise UserError(f"output={output}: cannot be written ({FULL})") from None
    Terminal().say(f"{output}: logits in {chosen.tool} within {difference:.1e} of the model's own")


def largest_difference(model: nn.Module, theirs: Logits) -> float:
    """Return the largest absolute difference of an exported model's logits from ours, on windows of
    length 1 and of the full block size."""
    vocab_size = model(torch.zeros((1, 1), dtype=torch.int64)).shape[-1]
    generator = np.random.default_rng(0)
    differences = []
    for shape in ((1, 1), (3, block_size_of(model))):
        ids = generator.integers(vocab_size, size=shape)
        with torch.inference_mode():
            ours = model(torch.from_numpy(ids)).numpy()
        differences.append(np.abs(ours - theirs(ids)).max())
    return float(np.max(differences))


def write_onnx(checkpoint: Checkpoint, model: nn.Module, output: Path) -> Logits:
    """Write an ONNX file for any batch size and length.

    Its input `ids` is (batch, time) int64, its output `logits` (batch, time, vocabulary) float32.
    Its metadata holds, as JSON, `litchar.symbols` (what each id stands for), `litchar.vocabulary`
    and `litchar.block_size` (the largest time).
    """
    import onnx_ir
    import onnxruntime

    if (size := sum(weight.nbytes for weight in model.parameters())) > MOST_ONNX_BYTES:
        raise UserError(
            f"format=onnx: weights of {size:,} bytes do not fit into one file; try format=torch"
        )
    idx, dynamic_shapes = any_size(model)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, about its own internals
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program: Any = torch.onnx.export(
                model,
                (idx,),
                input_names=["ids"],
                output_names=["logits"],
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:  # of a model of one's own
        raise UserError(
            f"format=onnx: torch cannot export {_named(checkpoint, model)} for inputs of any "
            f"length: {first_line(error.__cause__ or error)}"
        ) from None
    # After a recurrent layer torch records the example's length, though any length works: drop the
    # recorded shapes, which onnxruntime infers. Stack traces would reveal paths of this machine.
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        for value in node.outputs:
            value.shape = None
    length = "time" if block_size_of(model) > 1 else 1
    program.model.graph.inputs[0].shape = onnx_ir.Shape(["batch", length])
    shape = onnx_ir.Shape(["batch", length, len(checkpoint.vocabulary)])
    program.model.graph.outputs[0].shape = shape
    program.model.metadata_props.update(metadata(checkpoint, model))
    program.save(output)
    session = onnxruntime.InferenceSession(output)
    return lambda ids: session.run(["logits"], {"ids": ids})[0]


def write_torch(checkpoint: Checkpoint, model: nn.Module, output: Path) -> Logits:
    """Write a `torch.export` program for any batch size and length.

    It takes ids (batch, time) int64 and returns logits (batch, time, vocabulary) float32. Its extra
    files hold what the ONNX file has as metadata, under the same names.
    """
    idx, dynamic_shapes = any_size(model)
    fixed = (
        f"format=torch: torch.export fixes the input length of {_named(checkpoint, model)}; try "
        "format=onnx"
    )
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, about its own internals
            program = torch.export.export(model, (idx,), dynamic_shapes=dynamic_shapes)
    except torch._dynamo.exc.UserError:  # from a recurrent layer, for instance
        raise UserError(fixed) from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # reveals paths of this machine
    content = io.BytesIO()  # since torch does not report why writing to a file failed
    torch.export.save(program, content, extra_files=metadata(checkpoint, model))
    output.write_bytes(content.getbuffer())
    with open(output, "rb") as file:
        loaded = torch.export.load(file).module()

    def logits(ids: np.ndarray) -> np.ndarray:
        try:
            found: np.ndarray = loaded(torch.from_numpy(ids)).detach().numpy()
        except AssertionError:  # lengths that the model treats differently, such as the longest
            raise UserError(fixed) from None
        return found

    return logits


def _named(checkpoint: Checkpoint, model: nn.Module) -> str:
    return f"a {type(model).__name__} (model._target_={checkpoint.model_settings['_target_']})"


def any_size(model: nn.Module) -> tuple[torch.Tensor, Any]:
    """Return example ids to trace `model` with, and dynamic shapes for any batch and length."""
    longest = block_size_of(model)
    dim = torch.export.Dim
    time = dim.DYNAMIC(max=longest) if longest > 1 else dim.STATIC
    idx = torch.zeros((2, min(2, longest)), dtype=torch.int64)
    return idx, ({0: dim("batch"), 1: time},)


def metadata(checkpoint: Checkpoint, model: nn.Module) -> dict[str, str]:
    """Return the metadata of an exported file: enough to encode and decode text."""
    return {
        "litchar.vocabulary": json.dumps(checkpoint.vocabulary.to_json()),
        "litchar.symbols": json.dumps(checkpoint.vocabulary.symbols),
        "litchar.block_size": json.dumps(block_size_of(model)),
    }


def _check_file(output: Path) -> None:
    if output.is_dir():
        raise UserError(f"output={output}: is a directory; give a file name")


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        write: writes a model to a path, reads it back, and returns the function of its logits.
        output: the default path.
        tool: the tool that reads it.
        extra: the extra of this package that installs the tool.
        check_place: raises UserError for a path that must not be written to.
    """

    write: Callable[[Checkpoint, nn.Module, Path], Logits]
    output: str
    tool: str
    extra: str
    check_place: Callable[[Path], None] = _check_file


FORMATS = {
    "huggingface": Format(write_huggingface, "huggingface", "transformers", "hf", check_place),
    "onnx": Format(write_onnx, "model.onnx", "onnxruntime", "onnx"),
    "torch": Format(write_torch, "model.pt2", "torch.export", ""),
}
SUFFIXES = {Path(FORMATS[name].output).suffix: name for name in ("onnx", "torch")}
