"""GPT-2; its students are of the same class, as DistilGPT2 is."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.byte_level import EndOfText
from potstill.student.interface import LayerWidths, Shape, VocabularyHead
from potstill.student.same_class import SameClass
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, run_layers


class Gpt2(SameClass):
    """The family of `GPT2LMHeadModel` (Radford et al. 2019): a causal decoder with a LayerNorm before each part."""

    model_type = "gpt2"
    layer_prefix = "transformer.h."
    auto_class = AutoModelForCausalLM
    causal = True
    dropouts = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    tokenizer = EndOfText()
    widths = LayerWidths(
        heads_out=("attn.c_attn",),
        heads_in=("attn.c_proj",),
        neurons_out=("mlp.c_fc",),
        neurons_in=("mlp.c_proj",),
        head_counts=("attn.num_heads",),
        head_spans=("attn.split_size",),
    )
    intermediate_name = "n_inner"

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`."""
        if config.add_cross_attention:
            return "is the decoder of an encoder-decoder (add_cross_attention is set)"
        if config.scale_attn_by_inverse_layer_idx:
            return "scales attention by the number of the layer (scale_attn_by_inverse_layer_idx), which copies change"
        return None

    def takes_token_types(self, config: PreTrainedConfig) -> bool:
        """See `Family.takes_token_types`."""
        return False

    def embed(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """See `Family.embed`."""
        base = model.base_model
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return base.drop(base.wte(input_ids) + base.wpe(positions))

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`. Without a mask, PyTorch's own attention is causal by a flag; other kinds need one."""
        hidden = self.embed(model, input_ids)
        mask = None if model.config._attn_implementation == "sdpa" else _causal_mask(hidden)
        return run_layers(
            self.layers(model),
            hidden,
            keep,
            self.attention_inputs,
            lambda layer, hidden: layer(hidden, attention_mask=mask),
            model.base_model.ln_f,
        )

    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """See `Family.attention_inputs`."""
        attention = layer.attn
        query, key, value = attention.c_attn(layer.ln_1(hidden)).split(attention.split_size, dim=2)
        if asking is not None:
            query = attention.c_attn(layer.ln_1(asking)).split(attention.split_size, dim=2)[0]
        return AttentionInputs(query, key, value, attention.num_heads)

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""
        return VocabularyHead(nn.Identity(), model.lm_head.weight, None)

    def new_config(self, shape: Shape) -> PreTrainedConfig:
        """See `Family.new_config`."""
        if shape.eos_token_id is None:
            raise PotstillError("The tokenizer has no end-of-text token: set its eos_token.")
        return GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.usable_length,
            n_embd=shape.hidden_size,
            n_layer=shape.num_hidden_layers,
            n_head=shape.num_attention_heads,
            n_inner=shape.intermediate_size,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            bos_token_id=shape.eos_token_id if shape.bos_token_id is None else shape.bos_token_id,
            eos_token_id=shape.eos_token_id,
            pad_token_id=shape.pad_token_id,
        )


def _causal_mask(hidden: Tensor) -> Tensor:
    """Return (1, 1, L, L): 0 where a token may look, and the least number there is where it may not."""
    length = hidden.shape[1]
    least = torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype, device=hidden.device)
    return least.triu(1)[None, None]
