"""A model so small that its probabilities are written out, for tests that compute by hand."""

from types import SimpleNamespace

import torch


class NextToken:
    """A model of four tokens that depends on the last token only: row i holds the probabilities after token i."""

    CHANCES = [
        [1 / 2, 1 / 4, 1 / 8, 1 / 8],
        [1 / 4, 1 / 4, 1 / 4, 1 / 4],
        [1 / 8, 1 / 8, 1 / 2, 1 / 4],
        [1 / 4, 1 / 4, 1 / 8, 3 / 8],
    ]
    device, training = "cpu", True

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def __call__(self, input_ids, attention_mask, use_cache):
        assert not self.training, "dropout must be off while measuring"
        return SimpleNamespace(logits=torch.log(torch.tensor(self.CHANCES))[input_ids])
