"""Documents in, fixed-length token blocks out; and what training reads of them: blocks, their order, their masks."""

from potstill.corpus.blocks import Blocks, Corpus, ShuffledSampler
from potstill.corpus.labelling import LabelledBlocks, next_tokens
from potstill.corpus.manifest import Manifest
from potstill.corpus.masking import Masking
from potstill.corpus.prepare import prepare
from potstill.corpus.splitting import BlockSplitter
from potstill.corpus.tokenizer import load_tokenizer

__all__ = [
    "BlockSplitter",
    "Blocks",
    "Corpus",
    "LabelledBlocks",
    "Manifest",
    "Masking",
    "ShuffledSampler",
    "load_tokenizer",
    "next_tokens",
    "prepare",
]
