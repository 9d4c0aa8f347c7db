"""Students of their teacher's own class: fewer layers, and nothing else changed."""

import copy

from transformers import PreTrainedConfig, PreTrainedModel

from potstill.student.interface import Family
from potstill.student.tensors import with_layers


class SameClass(Family):
    """A family whose students are models of the same class."""

    def student_config(self, teacher_config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
        """See `Family.student_config`: the teacher's config with other layers."""
        return with_config_layers(teacher_config, layers)

    def copy_weights(
        self, teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int], fold_token_types: bool
    ) -> None:
        """See `Family.copy_weights`. The student has its teacher's segments, so there is nothing to fold."""
        # Strict: a tensor left over, missing or of another shape is an error, never a silent half-copy.
        student.load_state_dict(with_layers(teacher.state_dict(), self.prefix_in(teacher), layers))


def with_config_layers(config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """A copy of `config` with its layers replaced: layer `i` of the result is layer `layers[i]` of `config`."""
    chosen = copy.deepcopy(config)
    chosen.num_hidden_layers = len(layers)
    if (kinds := getattr(config, "layer_types", None)) is not None:
        chosen.layer_types = [kinds[layer] for layer in layers]
    return chosen
