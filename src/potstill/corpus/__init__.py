"""Documents in, fixed-length token blocks out; and what training reads of them: blocks, their order, their masks."""

from potstill.corpus.blocks import Blocks, Corpus, ShuffledDraws
from potstill.corpus.cutting import Cutting
from potstill.corpus.manifest import Manifest
from potstill.corpus.masking import MaskedBlocks, Masking
from potstill.corpus.prepare import prepare
from potstill.corpus.tokenizer import load_tokenizer

__all__ = [
    "Blocks",
    "Corpus",
    "Cutting",
    "Manifest",
    "MaskedBlocks",
    "Masking",
    "ShuffledDraws",
    "load_tokenizer",
    "prepare",
]
