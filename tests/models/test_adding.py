"""Adding a new model exactly as docs/models.md describes."""

import re
import shutil

import hydra
import numpy as np
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf

import litchar.models
from conftest import ROOT, summary
from litchar.analysis.evaluate import run as evaluate
from litchar.checkpoints import Checkpoint
from litchar.checkpoints.export import run as export
from litchar.generation.run import run as generate
from litchar.training.run import run as train

DOCUMENT = (ROOT / "docs" / "models.md").read_text()


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of conf/ and a directory on litchar.models' path, with the document's two files."""
    (python, module, yaml, config) = re.search(
        r"`src/litchar/models/(\w+\.py)`:\n\n```python\n(.*?)```\n\n"
        r"and `conf/model/(\w+\.yaml)`:\n\n```yaml\n(.*?)```",
        DOCUMENT,
        re.DOTALL,
    ).groups()
    assert len((module + config).splitlines()) <= 30
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    (conf / "model" / yaml).write_text(config)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / python).write_text(module)
    monkeypatch.setattr(
        litchar.models, "__path__", [*litchar.models.__path__, str(tmp_path / "models")]
    )
    return conf


def test_the_documents_model_is_trained_sampled_scored_and_exported(
    conf, text_file, tmp_path, capsys
):
    OmegaConf.register_new_resolver("unique", lambda: "test", replace=True)
    run_dir = tmp_path / "outputs" / "runs" / "new"
    run_dir.mkdir(parents=True)
    setting = ("model=cnn", "model.n_embd=16", f"data.path={text_file}", "data.block_size=16")
    steps = ("trainer.max_steps=60", "trainer.accelerator=cpu", "optimizer.lr=1e-2")
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        train(hydra.compose("train", ["name=test", *setting, *steps]), run_dir)
        for script, run in (("generate", generate), ("evaluate", evaluate), ("export", export)):
            config = OmegaConf.load(conf / f"{script}.yaml")
            config.checkpoint = str(run_dir)
            if script == "generate":
                config.prompt = "1 and 2"
            if script == "export":
                config.output = str(tmp_path / "cnn.onnx")
            run(config)
    assert summary(run_dir)["val_loss"] < 1.5
    out = capsys.readouterr().out
    assert "1 and 2" in out
    assert "bits per character" in out
    checkpoint = Checkpoint.load(run_dir / "checkpoints/best.ckpt")
    ids = np.random.default_rng(0).integers(len(checkpoint.vocabulary), size=(3, 9))
    session = onnxruntime.InferenceSession(tmp_path / "cnn.onnx")
    with torch.inference_mode():
        ours = checkpoint.build_model()(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(session.run(None, {"ids": ids})[0], ours, atol=1e-5)
