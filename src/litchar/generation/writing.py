"""From ids to text: texts as they are written, and what stops them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from litchar.errors import UserError, check_integer
from litchar.generation.readers import Prepared
from litchar.generation.sampling import Sampling, generate
from litchar.text import Vocabulary
from litchar.text.vocabulary import BOUNDARY


def typed(text: str) -> str:
    r"""Return what is meant by `text`, typed in one line: `\n` is a new line, `\\` a backslash."""
    return re.sub(r"\\([n\\])", lambda match: "\n" if match[1] == "n" else "\\", text)


@dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """How a text is written: how its characters are chosen, and what ends it.

    Attributes:
        max_new_tokens: the longest text.
        stop: a string, or several, before the first of which the text ends.
        seed: of the text; of several for one prompt, the first one's.
        unknown: what becomes of a prompt's characters that the model never saw, see
            `Vocabulary.encode`.

    Raises:
        UserError: a setting is out of its range.
    """

    max_new_tokens: int = 500
    stop: str | Sequence[str] | None = None
    seed: int = 1337
    unknown: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("max_new_tokens", self.max_new_tokens, 1)
        check_integer("seed", self.seed, 0)
        if not isinstance(self.unknown, str):
            raise UserError(f"unknown={self.unknown}: must be error, skip, or one character")
        fit = isinstance(self.stop, Sequence | None)
        if not fit or not all(isinstance(text, str) and text for text in self.stops):
            raise UserError(
                f"stop={self.stop}: must be a text of at least one character, or a list"
            )

    @property
    def stops(self) -> Sequence[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class Writing:
    """A text under way. Iterated, it yields the text piece by piece; then its attributes stand.

    It is written once: iterated again, it goes on where that stopped.

    Args:
        steps: each sampled id, with the log-probability that the model gave it.
        stop: strings before the first of which the text ends.
        prompt: the ids before it: (T,)
        seed: of its random numbers.

    Attributes:
        text: what was written, without the prompt and the stop string.
        log_probs: of each sampled id in nats, those of a stop string included.
        ids: that were sampled.
        finish: `end` of the document, `stop`, or `length`.
        prompt: the text before it, as the model read it.
    """

    def __init__(
        self,
        steps: Iterator[tuple[int, float]],
        vocabulary: Vocabulary,
        stop: Sequence[str] = (),
        prompt: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.steps = steps
        self.vocabulary = vocabulary
        self.stop = stop
        self.prompt_ids = list(prompt)
        self.prompt = vocabulary.decode(self.prompt_ids)
        self.seed = seed
        self.text = ""
        self.log_probs: list[float] = []
        self.ids: list[int] = []
        self.finish = "length"
        # What iterating goes on from; a generator kept here would, as a cycle, keep the cache too.
        self._decode = vocabulary.decoder()
        self._held = ""  # the text's end, which may begin a stop string

    def __iter__(self) -> Iterator[str]:
        decode, held = self._decode, self._held
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
            piece, held = held[:ready], held[ready:]
            self.text, self._held = self.text + piece, held
            yield piece
        else:
            held += decode([], final=True)
        # What is suspended within `steps` would keep the cache as long as the text is kept.
        self.text, self._held, self.steps = self.text + held, "", iter(())
        yield held

    def whole(self) -> str:
        """Write to the end, and return the text."""
        for _ in self:
            pass
        return self.text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop` with which `text` ends."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


def beginning(vocabulary: Vocabulary, prompt: np.ndarray) -> np.ndarray:
    """Return the ids that a text with this prompt begins with: (T,) -> (T,) or (T + 1,).

    An empty prompt begins as the teaching script does, from id 0; and so does every document, of
    which that is the boundary.
    """
    return np.insert(prompt, 0, 0) if vocabulary.document or not len(prompt) else prompt


def write(
    model: nn.Module | Prepared,
    vocabulary: Vocabulary,
    prompt: np.ndarray,
    settings: Settings = Settings(),
    num_samples: int = 1,
) -> Iterator[Writing]:
    """Yield texts that go on from `prompt`, with the seeds `settings.seed` and those after it.

    On a CPU one after the other, each as it is sampled. Elsewhere all are sampled together before
    the first one is shown, unless it is the only one.

    Args:
        prompt: ids: (T,)
    """
    seeds = range(settings.seed, settings.seed + num_samples)
    begin = beginning(vocabulary, prompt)
    n_before = len(begin) - len(prompt)

    def writing(steps: Iterator[tuple[int, float]], seed: int) -> Writing:
        return Writing(steps, vocabulary, settings.stops, prompt.tolist(), seed)

    prepared = Prepared.of(model)
    alone = prepared.on_cpu or num_samples == 1
    for batch in ([seed] for seed in seeds) if alone else [seeds]:
        idx = np.repeat(begin[None], len(batch), axis=0)
        steps = generate(prepared, idx, settings.max_new_tokens, settings, batch, n_before)
        if len(batch) == 1:
            lazily = ((int(step.ids[0]), float(step.log_probs()[0])) for step in steps)
            yield writing(lazily, batch[0])
            continue
        pairs = []
        ended = np.zeros(len(batch), dtype=bool)
        for step in steps:
            pairs.append((step.ids, step.log_probs()))
            ended |= vocabulary.document is not None and step.ids == BOUNDARY
            if ended.all():
                break
        for row, seed in enumerate(batch):
            yield writing(iter([(int(i[row]), float(p[row])) for i, p in pairs]), seed)
