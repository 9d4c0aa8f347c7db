"""Small sentence encoders, every parameter of them random, and texts for them."""

from collections.abc import Iterable
from itertools import pairwise

import torch
from families_samples import CONFIGS, LENGTH
from samples import VOCABULARY, written_text
from transformers import AutoModel, BertTokenizer, PreTrainedConfig, PreTrainedModel

from potstill.sentences import Dense, Pooling, SentenceEncoder

TEXTS = [line[: 9 * number] for number, line in enumerate(written_text(9, seed=4).splitlines(), 1)]
"""Nine texts, from one word on; the last ones are longer than the encoders read."""


def headless(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model without a head, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def small_encoder(
    model_type: str = "bert",
    modes: tuple[str, ...] = ("mean",),
    dense: Iterable[Dense] = (),
    max_length: int = LENGTH,
    **options: object,
) -> SentenceEncoder:
    """An encoder of 4 layers, 24 wide, that reads up to 19 tokens."""
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)})
    config = CONFIGS[model_type](vocab_size=len(VOCABULARY), pad_token_id=0)
    return SentenceEncoder(headless(config), tokenizer, max_length, Pooling(modes), dense, **options).eval()


def random_dense(*sizes: int, **options: object) -> list[Dense]:
    """Dense modules from each size to the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return [Dense(inputs, outputs, **options) for inputs, outputs in pairwise(sizes)]
