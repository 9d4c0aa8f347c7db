"""A sentence encoder: a model without a head, pooling, Dense modules, and normalisation."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError
from potstill.json_files import json_text
from potstill.report.sentence_card import sentence_card
from potstill.sentences.dense import Dense
from potstill.sentences.folder import FETCHED, MODULES, SETTINGS, TRANSFORMER, Layout, read_layout
from potstill.sentences.pooling import Pooling
from potstill.student import usable_length
from potstill.student.loading import check_vocabulary, load_headless
from potstill.student.model_files import model_folder

logger = logging.getLogger(__name__)

TOKENISED_AT_ONCE = 1024
"""Texts that go to the tokenizer together: their tokens are kept as arrays, which take less memory than lists."""

NO_LIMIT = 10**9
"""A tokenizer that does not know how long a text may be states a larger number than this."""

Report = Callable[[int], None]


class SentenceEncoder(nn.Module):
    """A model that turns a text into one vector, as sentence-transformers computes it (Reimers and Gurevych 2019).

    B is the number of texts, L their length in tokens, H the hidden size, P the pooled width, D the width of the
    embeddings.

    Attributes:
        model: without a head.
        pooling: last hidden states → pooled vector.
        dense: the Dense modules, applied in this order; it may be empty.
        normalize: whether embeddings have length 1.
        tokenizer: of the model.
        max_length: tokens that a text is cut to, special tokens included.
        prompts: name → the text that is put in front of a text.
        default_prompt_name: the prompt that is used if none is asked for.
        similarity_fn_name: how embeddings are compared ("cosine", "dot", …); None if nobody said.
        lower_case: whether texts are lower-cased whatever the tokenizer's own files say.
        cut: texts that the last call of `encode` cut to `max_length`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        pooling: Pooling | None = None,
        dense: Iterable[Dense] = (),
        normalize: bool = True,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = "cosine",
        lower_case: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.pooling = pooling or Pooling()
        self.dense = nn.ModuleList(dense)
        self.normalize = normalize
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.similarity_fn_name = similarity_fn_name
        self.lower_case = lower_case
        self.cut = 0

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], role: str = "teacher") -> Self:
        """Load a folder of sentence-transformers, or one of a model alone, here or on the hub.

        A model alone pools by the mean and normalises, and a log line says so; a head of the model is left out. Only
        JSON, safetensors and the tokenizer are read, and no code is run.

        Args:
            name_or_path: a folder, or a name on the Hugging Face hub.
            role: what the encoder is to the user, for messages: "teacher", "student", "model".

        Returns:
            The encoder on the CPU, in float32 and in evaluation mode.

        Raises:
            PotstillError: there is no such encoder; its files are missing, damaged or do not fit each other; or it
                computes what potstill does not (see `read_layout` and `load_headless`).
        """
        name = os.fspath(name_or_path)
        model_is = f"the {role} {name!r}"
        folder = model_folder(name, role, FETCHED)
        layout = read_layout(folder, model_is)
        model = load_headless(layout.transformer, model_is)
        model.config.name_or_path = model.name_or_path = name
        tokenizer = _tokenizer_of(layout, role)
        check_vocabulary(tokenizer, model.config, model_is)
        if not layout.stated:
            heads = [kind for kind in model.config.architectures or [] if kind != type(model).__name__]
            head = f" Its head ({', '.join(heads)}) is left out." if heads else ""
            logger.warning(
                "%s has no %s: its embeddings are the mean of its last hidden states, normalised to length 1.%s",
                f"{model_is[0].upper()}{model_is[1:]}",
                MODULES,
                head,
            )
        return cls.of_layout(layout, model, tokenizer, model_is)

    @classmethod
    def of_layout(cls, layout: Layout, model: Any, tokenizer: PreTrainedTokenizerFast, model_is: str) -> Self:
        """Return the encoder of a folder whose model and tokenizer are loaded, in evaluation mode.

        Args:
            layout: what the folder says.
            model: without a head; its config has the sizes.
            tokenizer: of the model.
            model_is: what the encoder is called in messages: "the teacher 'x'".

        Raises:
            PotstillError: the modules are damaged, or do not fit each other.
        """
        width = model.config.hidden_size
        if layout.pooled_size not in (None, width):
            raise PotstillError(
                f"the pooling of {model_is} is for hidden states {layout.pooled_size} wide, and its model's are "
                f"{width} wide: restore the folder"
            )
        return cls(
            model,
            tokenizer,
            _max_length(layout, model, tokenizer, model_is),
            layout.pooling,
            _dense(layout, layout.pooling.width(width), model_is),
            layout.normalize,
            layout.prompts,
            layout.default_prompt_name,
            layout.similarity_fn_name,
            layout.lower_case,
        ).eval()

    @property
    def width(self) -> int:
        """D, the width of the embeddings."""
        if len(self.dense):
            last: Any = self.dense[-1]
            return last.linear.out_features
        return self.pooling.width(self.model.config.hidden_size)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled vectors (B, P) of hidden states (B, L, H) with a mask (B, L); see `Pooling.__call__`."""
        return self.pooling(hidden, mask)

    def finish(self, pooled: Tensor) -> Tensor:
        """Return the embeddings (N, D) of pooled vectors (N, P): the Dense modules, then the normalisation."""
        for dense in self.dense:
            pooled = dense(pooled)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Return the embeddings (B, D) of a batch of texts.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 at tokens and 0 at padding.
            inputs: what else the model reads, such as `token_type_ids`.
        """
        return self.hidden_and_embeddings(input_ids, attention_mask, **inputs)[1]

    def hidden_and_embeddings(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Return the last hidden states (B, L, H) and the embeddings (B, D) of a batch of texts; see `forward`."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return hidden, self.finish(self.pool(hidden, attention_mask))

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], batch_size: int = 64, prompt: str | None = None, report: Report | None = None
    ) -> NDArray[np.float32]:
        """Return the embeddings (N, D) of texts, in their order, without gradients and without dropout.

        Texts that are longer than `max_length` are cut; `cut` counts them, and a log line says so. Texts of about the
        same length are put into one batch.

        Args:
            texts: N of them.
            batch_size: texts of a batch.
            prompt: the text that is put in front of each one; None for the default prompt of the encoder, if it has
                one.
            report: is called with the number of texts that are done, after each batch.

        Raises:
            PotstillError: `texts` is a single text, or a text has no token.
        """
        takes = inspect.signature(self.model.forward).parameters
        rows = self._tokenised(texts, prompt, takes)
        # A decoder would keep keys and values for the tokens that follow.
        options = {"use_cache": False} if "use_cache" in takes else {}
        # The longest first: memory that does not suffice shows at once.
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))
        embeddings = np.empty((len(rows), self.width), np.float32)
        training = self.training
        self.eval()
        try:
            for start in range(0, len(order), batch_size):
                numbers = order[start : start + batch_size]
                batch = self._batch([rows[number] for number in numbers])
                embeddings[numbers] = self(**batch, **options).float().cpu().numpy()
                if report is not None:
                    report(start + len(numbers))
        finally:
            self.train(training)
        return embeddings

    def save(self, folder: str | os.PathLike[str], card: str | None = None) -> None:
        """Write a folder that both `SentenceTransformer` and `AutoModel` load, without potstill.

        Args:
            folder: is made if it is missing.
            card: the model card; None for that of `sentence_card`.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(path)
        tokenizer = copy.deepcopy(self.tokenizer)  # others may use it
        tokenizer.model_max_length = self.max_length
        # `encode` leaves its own settings there, and other programs read them.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(path)
        self.save_modules(path)
        (path / "README.md").write_text(sentence_card(self) if card is None else card, encoding="utf-8")

    def save_modules(self, path: Path) -> None:
        """Write what sentence-transformers reads beside the model and its tokenizer into a folder that exists."""
        kinds = ["Transformer", "Pooling", *("Dense" for _ in self.dense), *(["Normalize"] if self.normalize else [])]
        modules = [
            # These names are known to every version of sentence-transformers.
            {"idx": number, "name": str(number), "path": f"{number}_{kind}" if number else "", "type": _TYPE + kind}
            for number, kind in enumerate(kinds)
        ]
        (path / "1_Pooling").mkdir(exist_ok=True)
        for number, dense in enumerate(self.dense, 2):
            dense.save(path / f"{number}_Dense")
        files = {
            MODULES: modules,
            TRANSFORMER: {"max_seq_length": self.max_length, "do_lower_case": self.lower_case},
            "1_Pooling/config.json": self.pooling.to_config(self.model.config.hidden_size),
            SETTINGS: {
                "model_type": "SentenceTransformer",
                "__version__": {"transformers": transformers.__version__, "pytorch": torch.__version__},
                "prompts": self.prompts,
                "default_prompt_name": self.default_prompt_name,
                "similarity_fn_name": self.similarity_fn_name,
            },
        }
        for name, content in files.items():
            (path / name).write_text(json_text(content, f"The file {path / name}") + "\n", encoding="utf-8")

    def _tokenised(
        self, texts: Sequence[str], prompt: str | None, takes: Container[str]
    ) -> list[dict[str, NDArray[np.int32]]]:
        """Return what the model takes of each text, (L,) under each name, and count the texts that were cut."""
        if isinstance(texts, str):
            raise PotstillError("encode was given a single text: give a list of texts")
        if prompt is None:
            prompt = self.prompts[self.default_prompt_name] if self.default_prompt_name is not None else ""
        rows: list[dict[str, NDArray[np.int32]]] = []
        self.cut = 0
        for start in range(0, len(texts), TOKENISED_AT_ONCE):
            read = self.tokenizer(
                [prompt + text for text in texts[start : start + TOKENISED_AT_ONCE]],
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
            )
            self.cut += sum(bool(encoding.overflowing) for encoding in read.encodings or ())
            names = [name for name in read if name in takes]
            rows += [
                {name: np.array(read[name][number], np.int32) for name in names}
                for number in range(len(read["input_ids"]))
            ]
        empty = [number for number, row in enumerate(rows) if not len(row["input_ids"])]
        if empty:
            raise PotstillError(
                f"text {empty[0] + 1} of {len(rows)} has no token, so it has no embedding: leave out empty texts"
            )
        if self.cut:
            logger.warning(
                "%s of %s texts are longer than %s tokens and were cut.",
                f"{self.cut:,}",
                f"{len(rows):,}",
                f"{self.max_length:,}",
            )
        return rows

    def _batch(self, rows: list[dict[str, NDArray[np.int32]]]) -> dict[str, Tensor]:
        """Return the inputs (B, L) of the model, padded on the right, which leaves the positions of tokens alone."""
        padding = {"input_ids": _first_known(self.tokenizer.pad_token_id, self.model.config.pad_token_id)}
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch = {
            name: nn.utils.rnn.pad_sequence(
                [torch.from_numpy(row[name]).long() for row in rows], True, padding.get(name, 0)
            )
            for name in rows[0]
        }
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}


def load_encoder_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a sentence encoder's folder, which reads texts as the encoder does.

    Raises:
        PotstillError: there is no such tokenizer, or the folder is damaged.
    """
    return _tokenizer_of(read_layout(Path(folder), f"the encoder {os.fspath(folder)!r}"), "tokenizer")


def _tokenizer_of(layout: Layout, role: str) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(str(layout.transformer), role=role)
    if layout.lower_case:
        _lower_case(tokenizer)
    return tokenizer


_TYPE = "sentence_transformers.models."


def _first_known(*ids: int | None) -> int:
    """Return the first id that there is; else 0, which no token attends to."""
    return next((number for number in ids if number is not None), 0)


def _dense(layout: Layout, width: int, model_is: str) -> list[Dense]:
    """Load the Dense modules of an encoder whose pooled vectors are `width` wide."""
    loaded = []
    for name, folder, config in layout.dense:
        where = f"the module {name} of {model_is}"
        dense = Dense.load(folder, config, where)
        if dense.linear.in_features != width:
            raise PotstillError(
                f"{where} reads vectors {dense.linear.in_features} wide, and those before it are {width} wide: restore "
                "the folder"
            )
        width = dense.linear.out_features
        loaded.append(dense)
    return loaded


def _max_length(layout: Layout, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, model_is: str) -> int:
    """Return the tokens that a text is cut to, as sentence-transformers finds it."""
    usable = usable_length(model.config)
    length = layout.max_seq_length
    if length is not None and usable is not None and length > usable:
        raise PotstillError(
            f"{model_is} has a max_seq_length of {length:,}, but its model reads {usable:,} tokens at most: lower it "
            f"in {TRANSFORMER}"
        )
    if length is None:
        length = min(tokenizer.model_max_length, usable or NO_LIMIT)
        if length >= NO_LIMIT:
            raise PotstillError(
                f"{model_is} does not say how many tokens it reads: write model_max_length into its "
                "tokenizer_config.json"
            )
    around = tokenizer.num_special_tokens_to_add()
    if length <= around:
        raise PotstillError(
            f"{model_is} has a max_seq_length of {length}, which leaves no room for text beside {around} special tokens"
        )
    return length


def _lower_case(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer lower-case texts first, unless it does so already."""
    backend = tokenizer.backend_tokenizer
    before = backend.normalizer
    if before is not None and "ABC" not in before.normalize_str("ABC"):
        return
    after = [] if before is None else [before]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])
