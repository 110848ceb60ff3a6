"""Which generated documents occur in the text that the model was trained on, and which are new."""

import shlex
from collections.abc import Sequence

import numpy as np

from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.generation.writing import Writing
from litchar.text import Text
from litchar.text.split import SPLIT_BY
from litchar.text.store import boundaries, has_document
from litchar.text.vocabulary import BOUNDARY, printable

MOST_SHOWN = 40  # characters of a document in the message


def known_documents(checkpoint: Checkpoint, texts: Sequence[Writing]) -> str:
    """Return one line on which generated documents occur in which split of the training text."""
    documents = [_last_document(text) for text in texts if text.finish == "end"]
    said = []
    if too_long := sum(text.finish == "length" for text in texts):
        said.append(f"{too_long} of {len(texts)} did not end; raise max_new_tokens.")
    splits = _splits(checkpoint)
    if splits is None:
        named = shlex.quote(f"checkpoint={checkpoint.path}")
        said.append(
            "Not compared with the training text, which is not in this machine's cache; python "
            f"scripts/evaluate.py {named} puts it there."
        )
    elif documents:
        rest, found = documents, []
        for name, tokens in splits.items():
            edges = boundaries(tokens)
            known = [ids for ids in rest if has_document(tokens, edges, ids)]
            rest = [ids for ids in rest if ids not in known]
            names = dict.fromkeys(checkpoint.vocabulary.decode(ids) for ids in known)
            shown = ", ".join(printable(name[:MOST_SHOWN]).replace("\n", " ") for name in names)
            found.append(f"{len(known)} in the {name} split" + (f" ({shown})" if shown else ""))
        many = "s" * (len(documents) > 1)
        said.append(f"Of {len(documents)} document{many}: {', '.join(found)}, {len(rest)} new.")
    return " ".join(said)


def _last_document(text: Writing) -> list[int]:
    """Return the ids of the document that `text` completes; its prompt may hold earlier ones."""
    ids = [*text.prompt_ids, *text.ids]
    start = max((i + 1 for i, token in enumerate(ids[:-1]) if token == BOUNDARY), default=0)
    return ids[start:-1]


def _splits(checkpoint: Checkpoint) -> dict[str, np.ndarray] | None:
    """Return the splits of the text that `checkpoint` was trained on, or None if not cached.

    No path or URL that the checkpoint names is opened: it may come from a stranger.
    """
    try:
        data = checkpoint.config["data"]
        text = Text(
            **{name: data[name] for name in ("unit", *SPLIT_BY)}, mixture=data.get("mixture")
        )
        store = text.cached(checkpoint.provenance["fingerprint"])
        if store is None or store.vocabulary != checkpoint.vocabulary:
            return None
        bounds = text.bounds_in(store)
    except (KeyError, TypeError, AttributeError, UserError):
        return None
    return {name: store.tokens[start:stop] for name, (start, stop) in bounds.items()}
