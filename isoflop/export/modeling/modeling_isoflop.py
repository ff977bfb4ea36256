"""A GPT that isoflop trained, for transformers: generation with its caches, padded batches, the loss.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The network itself is in network_isoflop.py. Attention is computed there, so `attn_implementation` has no effect, and
attention weights are not returned.
"""

from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention_isoflop import Norm  # transformers before 5.1 or so copies only what this file itself imports
from .configuration_isoflop import IsoflopConfig
from .network_isoflop import Network

# The field of the cache was renamed in transformers 5
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


class IsoflopForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with its head."""

    config_class = IsoflopConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: IsoflopConfig) -> None:
        super().__init__(config)
        self.model = Network({**config.network, "vocab_size": config.vocab_size})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """For a model that is built without weights; isoflop's initialisations are not part of this file."""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif isinstance(module, Norm) and name == "weight":
                nn.init.ones_(parameter)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Logits of the next token at each position, and the loss if `labels` are given.

        Args:
            input_ids: (batch, T), the tokens after those in the cache.
            attention_mask: (batch, cached + T), 0 at padding.
            position_ids: (batch, T); by default counted from the first token that is not padding.
            past_key_values, cache: a transformers Cache, under its older and its newer name.
            labels: (batch, T), the tokens themselves; -100 is not counted.
            use_cache: return a new cache if none is given.
            logits_to_keep: only the logits of the last positions, or of these; 0: all.

        Raises:
            ValueError: for a mask of another shape, embeddings in place of tokens, or positions beyond the context.
        """
        if others.get("inputs_embeds") is not None:
            raise ValueError("this model reads token ids, since its blocks may look rows up by token; pass input_ids")
        held = cache if cache is not None else past_key_values
        held = DynamicCache() if held is None and use_cache else held
        if held is not None and self.model.smear is not None:  # its place, behind those of the layers
            held.layers += [DynamicLayer() for _ in range(self.model.caching - len(held.layers))]
        past = held.get_seq_length() if held is not None and self.model.caching else 0
        visible, past = self.padding(attention_mask, input_ids, past)

        states = self.model.hidden(input_ids, past, visible, position_ids, held)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(states[-1][:, keep])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **others)
        shown = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states_shown = tuple(states) if shown else None
        named: Any = {"loss": loss, "logits": logits, CACHE: held, "hidden_states": states_shown}
        output = CausalLMOutputWithPast(**named)
        return output.to_tuple() if return_dict is False else output

    def padding(self, mask: Tensor | None, tokens: Tensor, past: int) -> tuple[Tensor | None, int]:
        """The mask as True and False, None if there is no padding; and the number of cached positions, which a model
        without attention knows from the mask alone."""
        if mask is None:
            return None, past
        T = tokens.shape[1]
        if mask.ndim != 2:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; this model takes (batch, positions)")
        past = past if self.model.caching else mask.shape[1] - T
        if mask.shape[1] != past + T:
            raise ValueError(f"attention_mask has {mask.shape[1]} positions, for {past} cached ones and {T} tokens")
        return (None if bool(mask.all()) else mask.bool()), past

    def get_input_embeddings(self) -> nn.Module:
        embedding: nn.Module = self.model.embedding
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None if it is the embedding."""
        head: nn.Module | None = self.model.head
        return head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.head = value

    def resize_token_embeddings(self, *sizes: Any, **options: Any) -> Any:
        """As in transformers, for a model whose blocks have no rows per token of their own."""
        if any(block.values is not None for block in self.model.blocks):
            raise ValueError("this model has a row per token in several blocks (value embeddings): it keeps its tokens")
        return super().resize_token_embeddings(*sizes, **options)
