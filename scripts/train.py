"""Train a character-level language model: `python scripts/train.py model.n_layer=6`."""

from litchar.cli import hydra_main
from litchar.training.resume import redirect

if __name__ == "__main__":
    run = "litchar.training.run"
    hydra_main(__file__, "train", f"{run}:main", before=redirect, follow=f"{run}:follow")
