"""The servers under test: real ones in a thread, on a free local port."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from litchar import checkpoints
from litchar.checkpoints.checkpoint import make_card
from litchar.models import Transformer
from litchar.serving import host
from litchar.text import Vocabulary

SIZES = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32}


def save(path: Path, vocabulary: Vocabulary, model: torch.nn.Module, **data) -> Path:
    """Write a checkpoint of a transformer of `SIZES`."""
    settings = {"_target_": "litchar.models.Transformer", "vocab_size": len(vocabulary), **SIZES}
    content = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "global_step": 7,
        "litchar": make_card(vocabulary, settings, {"seed": 1, "data": data}),
    }
    checkpoints.save(content, path)
    return path


def untrained(vocabulary: Vocabulary, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(len(vocabulary), **SIZES, init="torch").eval()


@contextlib.contextmanager
def running(app, close) -> Iterator[str]:
    """Serve `app` in a thread; yield its URL."""
    with host.bind("127.0.0.1", 0) as listening:
        server = host.Server(app, listening, "", 0, close)
        thread = threading.Thread(target=server.serve_until_signal)
        thread.start()
        try:
            yield host.address(listening)
        finally:
            server.should_exit = True
            thread.join()
