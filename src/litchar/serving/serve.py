"""`scripts/serve.py`: serve a trained model over the OpenAI completions protocol."""

from pathlib import Path

from omegaconf import DictConfig

from litchar.checkpoints import Checkpoint, find
from litchar.device import choose_device
from litchar.errors import check_integer
from litchar.generation.readers import Prepared
from litchar.serving import completions, host
from litchar.text.vocabulary import printable


def run(config: DictConfig) -> None:
    """Serve requests until a signal arrives.

    Raises:
        UserError: the checkpoint, the address or a limit is invalid.
    """
    for name in ("max_tokens", "max_prompt", "at_once", "body_bytes"):
        check_integer(name, config[name], least=1)
    for name in ("waiting", "shutdown_seconds"):
        check_integer(name, config[name], least=0)
    device = choose_device(config.device)
    with host.bind(config.host, config.port) as listening:
        path = find(config.checkpoint, Path(config.outputs_dir))
        checkpoint = Checkpoint.load(path)
        model = Prepared(checkpoint.build_model(device))
        name = str(config.name or model_name(path))
        served = completions.Completions(checkpoint, model, name, config)
        url = host.address(listening)
        said = f"{path}, step {checkpoint.step:,}\nmodel {name} at {url}/v1, Ctrl-C ends"
        app, close = completions.build(served), served.batcher.close
        host.Server(app, listening, said, config.shutdown_seconds, close).serve_until_signal()


def model_name(path: Path) -> str:
    """Return the name of a checkpoint: that of its run, or of its file if it is not in a run."""
    run = path.resolve().parent
    return printable(run.parent.name if run.name == "checkpoints" else path.stem)
