"""All suites for sentence encoders and rerankers. A new suite needs one entry here and a file next to this one."""

from potstill.evaluation import rerank, retrieval, sts
from potstill.evaluation.suite import EncoderSuite

ENCODER_SUITES: dict[str, EncoderSuite] = {suite.name: suite for suite in (sts.SUITE, retrieval.SUITE, rerank.SUITE)}
"""Name → declaration, in the order of help and messages."""
