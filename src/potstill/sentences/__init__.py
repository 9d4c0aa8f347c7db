"""Sentence encoders: models that turn a text into one vector."""

from potstill.sentences.dense import Dense
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.pooling import MODES, Pooling
from potstill.sentences.student import build_sentence_student

__all__ = ["MODES", "Dense", "Pooling", "SentenceEncoder", "build_sentence_student"]
