"""Train a character-level language model: `python scripts/train.py model.n_layer=6`."""

from litchar.cli import hydra_main
from litchar.training.resume import redirect

if __name__ == "__main__":
    hydra_main(__file__, "train", "litchar.training.run:main", before=redirect)
