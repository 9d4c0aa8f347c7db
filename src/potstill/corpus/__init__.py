"""Turn documents into token blocks of one length, and read these blocks for training: their order and their masks."""

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
