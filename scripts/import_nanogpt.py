"""Import a model trained with nanoGPT: `import_nanogpt.py checkpoint=ckpt.pt meta=meta.pkl`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "import_nanogpt", "litchar.checkpoints.nanogpt:run")
