"""`scripts/export.py`: a trained model in a form that other tools open."""

import json
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console

from litchar.checkpoints.checkpoint import Checkpoint, find
from litchar.checkpoints.files import DRAFT
from litchar.errors import UserError
from litchar.models import block_size_of

MOST_DIFFERENCE = 1e-4  # of logits, between an exported model and ours


def run(config: DictConfig, output_dir: Path) -> None:
    """Write the model of a checkpoint to `output`, in `format`.

    Raises:
        UserError: the checkpoint, the format or the place is unfit, or a package is missing.
    """
    if config.format not in FORMATS:
        raise UserError(f"format={config.format}: there are {', '.join(FORMATS)}")
    checkpoint = Checkpoint.load(find(config.checkpoint, Path(config.outputs_dir)))
    output = Path(config.output).expanduser()
    if not output.parent.is_dir():
        raise UserError(f"output={output}: there is no directory {output.parent}")
    if output.is_dir():
        raise UserError(f"output={output}: is a directory; give a file's name")
    try:
        said = FORMATS[config.format](checkpoint, output)
    except ModuleNotFoundError as error:
        raise UserError(
            f"format={config.format} needs the package {error.name}: "
            f'pip install "litchar[{config.format}]"'
        ) from None
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror})") from None
    Console(highlight=False).print(said, soft_wrap=True, markup=False)


def write_onnx(checkpoint: Checkpoint, output: Path) -> str:
    """Write an ONNX file of any batch size and length, and compare its logits with ours.

    Its input `ids` is (batch, time) int64, its output `logits` (batch, time, vocabulary) float32;
    its metadata hold `litchar.vocabulary` and `litchar.block_size`, the longest time, as JSON.

    Returns:
        what was written, in a line.

    Raises:
        UserError: the file does not compute what the model does; it is not kept.
    """
    import onnx_ir
    import onnxruntime

    model = checkpoint.build_model()
    block_size = block_size_of(model)
    vocab_size = len(checkpoint.vocabulary)
    idx = torch.zeros((2, min(2, block_size)), dtype=torch.int64)
    time = torch.export.Dim("time", max=block_size) if block_size > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            (idx,),
            input_names=["ids"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch"), 1: time},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None: of the exporter that dynamo=True replaces
    # Behind a recurrent layer the example's length is recorded, though any length runs: what is
    # recorded of sizes is dropped, and onnxruntime infers them.
    for node in program.model.graph:
        for value in node.outputs:
            value.shape = None
    length = "time" if time else 1
    program.model.graph.outputs[0].shape = onnx_ir.Shape(["batch", length, vocab_size])
    program.model.metadata_props.update(
        {
            "litchar.vocabulary": json.dumps(checkpoint.vocabulary.to_json()),
            "litchar.block_size": json.dumps(block_size),
        }
    )
    draft = output.with_name(f"{DRAFT}{os.getpid()}-{output.name}")
    try:
        program.save(draft)
        session = onnxruntime.InferenceSession(draft)
        generator = np.random.default_rng(0)
        difference = 0.0
        for shape in ((1, 1), (3, block_size)):
            ids = generator.integers(vocab_size, size=shape)
            with torch.inference_mode():
                ours = model(torch.from_numpy(ids)).numpy()
            theirs = session.run(["logits"], {"ids": ids})[0]
            difference = max(difference, float(np.abs(ours - theirs).max()))
        if not difference <= MOST_DIFFERENCE:
            raise UserError(
                f"{checkpoint.path}: in onnxruntime its logits differ by {difference:.1e}; "
                "nothing was kept"
            )
        os.replace(draft, output)
    finally:
        draft.unlink(missing_ok=True)
    return f"{output}: ONNX, logits in onnxruntime within {difference:.1e} of the model's own"


FORMATS = {"onnx": write_onnx}
