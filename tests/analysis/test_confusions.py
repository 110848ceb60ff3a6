import numpy as np
import torch
from torch import nn

from litchar.analysis.confusions import Confusion, most_confused, predictions
from litchar.data.windows import SequentialWindows


class Next(nn.Module):
    """Predicts the last id + 1, but only in evaluation mode."""

    def forward(self, idx):
        return nn.functional.one_hot((idx + 1) % 5, 5).float() * (-1 if self.training else 1)


def test_each_target_is_predicted_once():
    tokens = torch.tensor([0, 1, 2, 3, 4, 0, 1, 1, 2, 3, 3])
    windows = SequentialWindows(tokens, block_size=4, batch_size=2)
    model = Next()
    actual, predicted = predictions(model, map(windows.__getitem__, range(2)), torch.device("cpu"))
    assert actual.tolist() == tokens[1:].tolist()
    assert predicted.tolist() == ((tokens[:-1] + 1) % 5).tolist()
    assert model.training
    assert most_confused(actual, predicted, 9) == [
        Confusion(actual=1, predicted=2, times=1, share=1 / 3),
        Confusion(actual=3, predicted=4, times=1, share=1 / 3),
    ]


def test_the_pairs_that_are_confused_most_come_first():
    actual = np.array([7, 7, 7, 7, 2, 2, 3, 3, 3])
    predicted = np.array([7, 1, 1, 2, 2, 2, 7, 7, 7])
    assert most_confused(actual, predicted, 2) == [
        Confusion(3, 7, times=3, share=1.0),
        Confusion(7, 1, times=2, share=0.5),
    ]
    assert most_confused(actual, actual, 2) == []
