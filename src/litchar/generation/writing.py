"""From sampled ids to text: streaming, stop strings and the ends of documents."""

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
    r"""Return `text`, typed on one line, with escapes resolved: `\n` newline, `\\` backslash."""
    return re.sub(r"\\([n\\])", lambda match: "\n" if match[1] == "n" else "\\", text)


@dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """How a text is generated: how its tokens are sampled, and what ends it.

    Attributes:
        max_new_tokens: the maximum length, prompt excluded.
        stop: a string or several; the text ends before the first that occurs.
        seed: of the text; of several texts for one prompt, the first one's.
        unknown: what to do with characters of a prompt that are not in the vocabulary, see
            `Vocabulary.encode`.

    Raises:
        UserError: a setting is out of range.
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
            raise UserError(f"stop={self.stop}: must be a non-empty text, or a list of them")

    @property
    def stops(self) -> Sequence[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class Writing:
    """A text being written: iterate it for its pieces, after which its attributes are final.

    It is written once: a second iteration continues where the first stopped. Ids may also be added
    one by one, without steps.

    Args:
        steps: each sampled id, with the model's log-probability of it.
        stop: strings before the first of which the text ends.
        prompt: the ids of the prompt: (T,)
        seed: the seed of its random numbers.

    Attributes:
        text: the text so far, without the prompt and the stop string.
        log_probs: log-probability of each sampled id in nats, including those of a stop string.
        ids: the sampled ids.
        finish: why it ended: `end` of the document, `stop` (a stop string), or `length`; None
            before.
        prompt: the prompt, as the model read it.
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
        self.finish: str | None = None
        self._decode = vocabulary.decoder()
        self._held = ""  # the end of the text, which may be the start of a stop string

    def __iter__(self) -> Iterator[str]:
        for token, log_prob in self.steps:
            yield self.add(token, log_prob)
            if self.finish:
                return
        if not self.finish:
            yield self.end("length")

    def add(self, token: int, log_prob: float) -> str:
        """Add a sampled id; return the part of the text that is final now."""
        self.ids.append(token)
        self.log_probs.append(log_prob)
        if self.vocabulary.document and token == BOUNDARY:
            return self.end("end")
        self._held += self._decode([token])
        found = [at for stop in self.stop if (at := self._held.find(stop)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            return self.end("stop")
        ready = len(self._held) - max((_overlap(self._held, s) for s in self.stop), default=0)
        piece, self._held = self._held[:ready], self._held[ready:]
        self.text += piece
        return piece

    def end(self, finish: str) -> str:
        """End the text for the reason `finish`; return what was held back of it."""
        if finish != "stop":
            self._held += self._decode([], final=True)
        piece, self._held = self._held, ""
        self.text += piece
        self.finish = finish
        # The generator suspended in `steps` would keep the KV cache alive as long as this text.
        self.steps = iter(())
        return piece

    def whole(self) -> str:
        """Write to the end and return the text."""
        for _ in self:
            pass
        return self.text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


def beginning(vocabulary: Vocabulary, prompt: np.ndarray) -> np.ndarray:
    """Return the ids that the model reads first: (T,) -> (T,) or (T + 1,).

    An empty prompt starts from id 0, as in the teaching script. So does every document: id 0 is
    the boundary before it.
    """
    return np.insert(prompt, 0, 0) if vocabulary.document or not len(prompt) else prompt


def write(
    model: nn.Module | Prepared,
    vocabulary: Vocabulary,
    prompt: np.ndarray,
    settings: Settings = Settings(),
    num_samples: int = 1,
) -> Iterator[Writing]:
    """Yield texts that continue `prompt`, with consecutive seeds from `settings.seed`.

    On a CPU, or for a single text, each is sampled as it is iterated, one after the other.
    Otherwise they are sampled as one batch before the first is yielded.

    Args:
        prompt: its ids: (T,)
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
        steps.close()  # what it holds on the GPU is no longer needed
        for row, seed in enumerate(batch):
            yield writing(iter([(int(i[row]), float(p[row])) for i, p in pairs]), seed)
