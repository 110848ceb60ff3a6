"""From ids to text: texts as they are written, and what stops them."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn

from litchar.generation.sampling import Sampling, generate
from litchar.text import Vocabulary
from litchar.text.vocabulary import BOUNDARY


class Writing:
    """A text under way. Iterated, it yields the text piece by piece; then its attributes stand.

    Args:
        steps: each sampled id, with the log-probability that the model gave it.
        stop: strings before the first of which the text ends.

    Attributes:
        text: what was written, without the prompt and the stop string.
        log_probs: of each sampled id in nats, those of a stop string included.
        ids: that were sampled.
        finish: `end` of the document, `stop`, or `length`.
    """

    def __init__(
        self, steps: Iterator[tuple[int, float]], vocabulary: Vocabulary, stop: Sequence[str] = ()
    ) -> None:
        self.steps = steps
        self.vocabulary = vocabulary
        self.stop = stop
        self.text = ""
        self.log_probs: list[float] = []
        self.ids: list[int] = []
        self.finish = "length"

    def __iter__(self) -> Iterator[str]:
        decode = self.vocabulary.decoder()
        held = ""  # the end of the text, which may be the beginning of a stop string
        for token, log_prob in self.steps:
            self.log_probs.append(log_prob)
            self.ids.append(token)
            if self.vocabulary.document and token == BOUNDARY:
                self.finish = "end"
                held += decode([], final=True)
                break
            held += decode([token])
            found = [at for stop in self.stop if (at := held.find(stop)) >= 0]
            if found:
                self.finish = "stop"
                held = held[: min(found)]
                break
            ready = len(held) - max((_overlap(held, stop) for stop in self.stop), default=0)
            self.text += held[:ready]
            yield held[:ready]
            held = held[ready:]
        else:
            held += decode([], final=True)
        self.text += held
        yield held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop` with which `text` ends."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


def write(
    model: nn.Module,
    vocabulary: Vocabulary,
    prompt: np.ndarray,
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    stop: Sequence[str] = (),
) -> Iterator[Writing]:
    """Yield a text that goes on from `prompt` for each seed.

    An empty prompt begins as the teaching script does, from id 0; and so does every document, of
    which that is the boundary.

    On a CPU one after the other, each as it is sampled. Elsewhere all are sampled together before
    the first one is shown, unless it is the only one.

    Args:
        prompt: ids: (T,)
    """
    if vocabulary.document or not len(prompt):
        prompt = np.concatenate(([0], prompt))
    alone = next(model.parameters()).device.type == "cpu" or len(seeds) == 1
    for batch in [[seed] for seed in seeds] if alone else [seeds]:
        idx = np.repeat(prompt[None], len(batch), axis=0)
        steps = generate(model, idx, max_new_tokens, sampling, batch)
        if len(batch) == 1:
            lazily = ((int(step.ids[0]), float(step.log_probs()[0])) for step in steps)
            yield Writing(lazily, vocabulary, stop)
            continue
        pairs = []
        ended = np.zeros(len(batch), dtype=bool)
        for step in steps:
            pairs.append((step.ids, step.log_probs()))
            ended |= vocabulary.document is not None and step.ids == BOUNDARY
            if ended.all():
                break
        for row in range(len(batch)):
            yield Writing(((int(i[row]), float(p[row])) for i, p in pairs), vocabulary, stop)
