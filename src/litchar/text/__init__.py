"""Text <-> ids: vocabularies, corpora and the token store (without torch)."""

from litchar.text.corpus import Corpus
from litchar.text.split import Text
from litchar.text.store import Encoding, TokenStore, open_store
from litchar.text.vocabulary import ByteVocabulary, Vocabulary

__all__ = [
    "ByteVocabulary",
    "Corpus",
    "Encoding",
    "Text",
    "TokenStore",
    "Vocabulary",
    "open_store",
]
