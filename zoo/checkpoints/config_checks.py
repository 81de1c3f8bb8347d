"""Checks of published configurations: each field is used, compared with the model, known not to matter, or refused.

A reader states its fields once, as :class:`ConfigFields`. A field that is set and that it does not know is refused by
name, so that no release of a library adds a meaning that would be overlooked.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

#: fields that transformers writes into every configuration and that no network computes with
COSMETIC = (
    "_name_or_path", "name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version",
    "model_type", "id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states",
    "use_cache", "chunk_size_feed_forward", "is_encoder_decoder", "initializer_range", "initializer_factor",
    "_commit_hash", "_attn_implementation*", "attn_implementation", "use_bfloat16", "torchscript", "pruned_heads",
    "tf_legacy_loss", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix",
    "return_dict_in_generate",
)  # fmt: skip
#: of generation, which every call states anew; old configurations hold them
GENERATION = (
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "max_length",
    "min_length", "do_sample", "num_beams*", "num_beam_groups", "num_return_sequences", "temperature", "top_k", "top_p",
    "typical_p", "early_stopping", "diversity_penalty", "repetition_penalty", "length_penalty", "bad_words_ids",
    "*no_repeat_ngram_size", "output_scores", "forced_*_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
UNSET: tuple[Any, ...] = (None, False, 0, "", [], {}, ())


@dataclass(frozen=True)
class Required:
    """The value that a field is required to have.

    Args:
        own: what the model has.
        default: what a configuration without the field means.
        hint: what to do about another value.
        equal: compares both, where ``==`` would not do.
    """

    own: Any
    default: Any
    hint: str = "that is not implemented"
    equal: Callable[[Any, Any], bool] = lambda found, own: found in (own, [own, own])  # a pair: sides of a square


@dataclass(frozen=True)
class ConfigFields:
    """The fields of one kind of configuration: those that a reader uses, requires, and may pass over.

    Args:
        used: names that the reader takes its values from.
        must: name -> what it has to say.
        free: names or patterns of what changes nothing that the model computes.
    """

    used: tuple[str, ...] = ()
    must: Mapping[str, Required] = field(default_factory=dict)
    free: tuple[str, ...] = ()

    def check(self, config: Mapping[str, Any], source: str) -> None:
        """Check all fields of a configuration.

        Args:
            config: name -> value.
            source: what the configuration is of, for the message.

        Raises:
            ValueError: naming the first field that says something else than the model has, or that nobody knows.
        """
        for name, must in self.must.items():
            found = config.get(name, must.default)
            if not must.equal(found, must.own):
                raise ValueError(f"{source} says {name} {found!r}, and this model has {must.own!r}: {must.hint}")
        # other files of the folder stand among the fields, see zoo.checkpoints.config_files.read_config_beside
        for name in find_unknown_fields(config, (*self.used, *self.must, *self.free, *COSMETIC, "_*.json")):
            raise ValueError(f"{source} says {name} {config[name]!r}, which is not implemented and may change outputs")


def find_unknown_fields(config: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Find the fields that are set to something and fit no known name or pattern."""
    patterns = tuple(known)
    return [
        name
        for name, value in config.items()
        if value not in UNSET and not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def accept_any_of(*values: Any) -> Callable[[Any, Any], bool]:
    """Make a comparison for :class:`Required` that passes each of these values."""
    return lambda found, own: found in values
