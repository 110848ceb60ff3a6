"""Export a trained model for other tools: `python scripts/export.py format=onnx`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "export", "litchar.checkpoints.export:run")
