"""What one model family tells the rest of the package about its models.

All that is particular to an architecture stands in its family. Everything else asks the family, and never what a model
is called.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.student.counting import matrix_weights
from potstill.student.rows import Rows
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States


@dataclass(frozen=True)
class VocabularyHead:
    """What turns last hidden states into logits: `transform(hidden) @ weight.T + bias`.

    The tensors are the model's own, so gradients reach it. Handing out the parts, not the logits, is what lets the
    objective go over the vocabulary in chunks and at selected tokens only.

    Attributes:
        transform: (..., H) → (..., H): dense, activation, LayerNorm.
        weight: (V, H); the word embeddings themselves where the model ties them.
        bias: (V,), or None.
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Shape:
    """What is asked of a new model, in words that hold for every architecture.

    Attributes:
        vocab_size: V, entries of the vocabulary.
        hidden_size: H, width of the hidden states.
        num_hidden_layers: depth.
        num_attention_heads: heads of each layer.
        intermediate_size: width of the feed-forward layers.
        usable_length: longest text that the model can read, in tokens.
        dropout: of hidden states and attention.
        pad_token_id: of the tokenizer; None if it has no token to pad with.
        bos_token_id: likewise, of the token that begins a text.
        eos_token_id: likewise, of the token that ends it.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    usable_length: int
    dropout: float
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None


@dataclass(frozen=True)
class LayerWidths:
    """The modules of a layer in which its attention heads and its feed-forward neurons lie.

    They are linear layers or GPT-2's `Conv1D`, by their names inside a layer. A module that computes several things at
    once (queries, keys and values, or a feed-forward layer and its gate) has these one after the other in its output.
    All other tensors of a model that depend on its width go over the dimensions of its hidden states.

    Attributes:
        heads_out: what makes queries, keys and values, in this order. Their outputs are heads side by side.
        heads_in: what reads the mixed values of the heads.
        neurons_out: what makes the neurons.
        neurons_in: what reads them.
        head_counts: attributes of modules, likewise by their names inside a layer, that hold the number of heads.
        head_spans: attributes that hold the number of heads times the width of a head.
    """

    heads_out: tuple[str, ...]
    heads_in: tuple[str, ...]
    neurons_out: tuple[str, ...]
    neurons_in: tuple[str, ...]
    head_counts: tuple[str, ...] = ()
    head_spans: tuple[str, ...] = ()


class TokenizerKind(ABC):
    """The kind of tokenizer that goes with a new model: how it is trained.

    Attributes:
        name: what the kind is called.
    """

    name: str

    @abstractmethod
    def train(
        self,
        documents: Callable[[], Iterable[bytes]],
        vocab_size: int,
        lowercase: bool | None,
        model_max_length: int,
    ) -> PreTrainedTokenizerFast:
        """Train a tokenizer. The same documents give the same one.

        Args:
            documents: called for each pass over the text, gives the documents in UTF-8.
            vocab_size: entries of the vocabulary, special tokens included.
            lowercase: whether text is lower-cased and stripped of accents; None for what is usual for the kind.
            model_max_length: what the tokenizer is to state as the longest input of its model, in tokens.

        Raises:
            PotstillError: the text does not give such a vocabulary, or the kind cannot lower-case.
        """

    @abstractmethod
    def meaningless(self, vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
        """Return a tokenizer of the kind's special tokens and of entries that mean nothing, for random text.

        Args:
            vocab_size: entries in all.
            model_max_length: what the tokenizer is to state as the longest input of its model, in tokens.
        """


def is_headless(model: PreTrainedModel) -> bool:
    """Whether a model is an encoder alone, as `AutoModel` loads it, without the head of a language model or a task."""
    is_base = id(getattr(model, "base_model", None)) == id(model)  # not `is`, which would narrow the type
    return is_base and model.get_output_embeddings() is None


class Family(ABC):
    """One architecture: how its models compute, what a student of one is, what a new one is.

    To add a family, write a subclass in a file of its own, and add it to `FAMILIES`. The abstract methods have to be
    there. The others say what holds for most architectures.

    B is the number of blocks, L their length in tokens, H the hidden size, D the width of queries, keys and values, V
    the vocabulary.

    Attributes:
        model_type: The `model_type` of its configs.
        layer_prefix: What the name of every tensor of a layer begins with, up to the layer's number, in a model with a
            head.
        auto_class: The class of transformers that loads its language models.
        causal: Whether a token sees only the tokens before it. The hard loss is then the cross-entropy of the next
            token at every position, and nothing is masked.
        dropouts: Names that its configs have for the dropouts of hidden states and attention.
        tokenizer: The kind of tokenizer that a new model of the family gets; None if no new ones are made.
        widths: Where heads and neurons lie in a layer; None if a model of the family cannot be made narrower.
        intermediate_name: Name that its configs have for the width of the feed-forward layers.
        encodes_whole: Whether `encode` runs all of a model but its projection onto the vocabulary. The transform of its
            head is then the identity.
        shows_attention: Whether `attention_inputs` knows where the layers make queries, keys and values.
        reads_rows: Whether its models can read several texts in a block: see `encode_rows`.
        exports_plainly: Whether its models take a mask of (B, 1, 1, L) that is added to the attention scores, and an
            attention function of ours. An export then has neither the look-up of a mask nor fused attention in it,
            which not every runtime knows. Such a family has `after_attention`.
        stand_ins: Modules that a layer of its models has not, though other layers have them → the module that does
            their work. A copy of the layer in another place of a grown model gets a copy of that.
    """

    model_type: str
    layer_prefix: str
    auto_class: Any = AutoModelForMaskedLM
    causal: bool = False
    dropouts: tuple[str, ...]
    tokenizer: TokenizerKind | None = None
    widths: LayerWidths | None = None
    intermediate_name: str = "intermediate_size"
    encodes_whole: bool = False
    shows_attention: bool = True
    reads_rows: bool = False
    exports_plainly: bool = False
    stand_ins: Mapping[str, str] = MappingProxyType({})

    # What its models can be, and read.

    def removable(self, config: PreTrainedConfig) -> LayerWidths | None:
        """Where the heads and neurons lie that one layer alone can lose; None if there are none.

        It names no heads if the layers of a model must all have the same ones.
        """
        return self.widths

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """Why a model with this config cannot be used, ready to follow "it …", or None when it can."""
        return None

    def usable_length(self, config: PreTrainedConfig) -> int | None:
        """How many tokens a model reads at most; None if there is no limit."""
        return config.max_position_embeddings

    def takes_token_types(self, config: PreTrainedConfig) -> bool:
        """Whether a model tells two texts apart by their `token_type_ids`."""
        return (getattr(config, "type_vocab_size", None) or 0) >= 2

    def restore(self, model: PreTrainedModel, missing: set[str]) -> set[str]:
        """Set those of the `missing` tensors that files of this family leave out by design; return their names."""
        return set()

    def read_names(self, config: PreTrainedConfig, names: Collection[str]) -> str | None:
        """Set in a config what it leaves out and the names of the model's tensors in its files say.

        Returns:
            Why these files cannot be used, ready to follow "it …", or None when they can.
        """
        return None

    def headless_because(self, config: PreTrainedConfig, names: Collection[str]) -> str | None:
        """Why files hold no trained language-model head although they may seem to, ready to follow "it …"; or None."""
        return None

    def unusable(self, model: PreTrainedModel) -> str | None:
        """Why a model cannot be used that only the model itself tells, ready to follow "it …", or None when it can."""
        return None

    # How its models compute.

    def prefix_in(self, model: PreTrainedModel) -> str:
        """What the name of every tensor of a layer begins with in this model, which may have a head or none."""
        headless = model.base_model is model
        return self.layer_prefix.removeprefix(f"{model.base_model_prefix}.") if headless else self.layer_prefix

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The layers of a model with or without a head, from the first to the last."""
        return model.get_submodule(self.prefix_in(model).rstrip("."))

    @abstractmethod
    def embed(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """Embedding output (B, L, H) of `input_ids` (B, L), after LayerNorm and dropout: what layer 0 reads.

        It may not wait for the device, and has to be what the model itself computes. CUDA graphs record it.
        """

    @abstractmethod
    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """Hidden states and attention inputs of `input_ids` (B, L), those in `keep` alone: see `run_layers`.

        Blocks hold no padding, so there is no mask for it; all tokens are segment 0; and the vocabulary head is not
        computed. It may not wait for the device: CUDA graphs record it.
        """

    def encode_rows(self, model: PreTrainedModel, input_ids: Tensor, rows: Rows, keep: Reads = LAST_HIDDEN) -> States:
        """Hidden states of blocks of whole texts, of which none attends to another. Needed if `reads_rows` is set.

        Args:
            model: With `rows.ATTENTION` as its attention.
            input_ids: (B, L) int64.
            rows: The texts in them.
            keep: See `encode`.
        """
        raise NotImplementedError

    @abstractmethod
    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """Queries, keys and values that `layer`, one of a model's layers, makes of its input `hidden` (B, L, H).

        Args:
            layer: of a model.
            hidden: (B, L, H).
            asking: (B, K, H), the part of `hidden` that queries are made of; all of it if None.
        """

    def attended(self, config: PreTrainedConfig, layer: int, length: int) -> float:
        """How many tokens each token of a block sees in a layer, itself included: the mean over the block.

        Args:
            config: Of the model.
            layer: Its number, from 0.
            length: L, tokens of the block.
        """
        return (length + 1) / 2 if self.causal else length

    def attention_dropout(self, layer: nn.Module) -> float | None:
        """The probability with which attention leaves out a token in training; None if the family does not say.

        If it does and `exports_plainly` is set, its layers read nothing but hidden states. Then a training may compute
        the last layer at some tokens alone: see `LastLayer`.
        """
        return None

    def after_attention(self, layer: nn.Module, mixed: Tensor, hidden: Tensor) -> Tensor:
        """The output (B, K, H) of a layer, from what its attention made of values, (B, K, D), and from its input.

        Needed where `exports_plainly` is set.

        Args:
            layer: of a model.
            mixed: (B, K, D), values mixed by attention, the heads side by side.
            hidden: (B, K, H), the layer's input at the same tokens.
        """
        raise NotImplementedError

    def layer_flops(self, model: PreTrainedModel, layer: int, length: int) -> float:
        """FLOPs per token of the matrix products of a layer: with its weights, queries × keys, attention × values.

        Args:
            model: Of the family.
            layer: Its number, from 0.
            length: L, tokens of the block.
        """
        attended = self.attended(model.config, layer, length)
        return 2 * matrix_weights(self.layers(model)[layer]) + 4 * attended * model.config.hidden_size

    @abstractmethod
    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """The language-model head of `model`."""

    def fuse_gelu(self, model: PreTrainedModel) -> None:  # noqa: B027 - a family may leave its layers as they are
        """Let the feed-forward layers of a frozen model compute their GELU in the matrix product: see `LinearGelu`.

        What has another activation stays as it is.
        """

    # What is made of them.

    def adjust_layers(self, config: PreTrainedConfig, layers: list[int]) -> list[int]:
        """The layers to copy in place of those that a rule chose, where layers are of several kinds.

        Args:
            config: Of the teacher.
            layers: Teacher layers in ascending order, one for each student layer.

        Returns:
            As many teacher layers, also in ascending order. Their kinds are in the teacher's order.
        """
        return layers

    def grown_from(self, config: PreTrainedConfig, place: int) -> int:
        """The layer that a grown model copies to a place, which is that layer's own number if it has the place.

        Args:
            config: Of the model that grows.
            place: Number of a layer of the grown model.
        """
        return place % config.num_hidden_layers

    def grown_config(self, config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
        """Config of a model that has grown; everything but the depth is as it was.

        Args:
            config: Of the model that grows; left as it is.
            depth: Layers of the grown model.
        """
        grown = copy.deepcopy(config)
        grown.num_hidden_layers = depth
        return grown

    @abstractmethod
    def student_config(self, teacher_config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
        """Config of a student with as many layers as `layers` lists; everything else is as the teacher's.

        Args:
            teacher_config: Of the teacher.
            layers: The teacher layer that each student layer copies. A config that says something of each layer (the
                kind of its attention, for example) says it of the copies.

        Raises:
            PotstillError: The family has no student with these layers.
        """

    @abstractmethod
    def copy_weights(
        self, teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int], fold_token_types: bool
    ) -> None:
        """Write every weight of `student` from `teacher`.

        Args:
            teacher: The model copied from; left as it is.
            student: A model of `student_config`.
            layers: The teacher layer that each student layer copies.
            fold_token_types: Add the segment-0 embedding into the position embeddings, where the teacher has segments
                and the student has not.
        """

    def new_config(self, shape: Shape) -> PreTrainedConfig:
        """Config of a new model. Needed where `tokenizer` is set.

        Raises:
            PotstillError: the family has no model of this shape.
        """
        raise NotImplementedError
