"""Language models and their words out of folders in transformers' layout; also those inside a LLaVA or a BLIP-2."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.checkpoints.config_files import ADAPTER, read_config_beside
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.folders import check_network_folder, refuse_custom_code
from zoo.checkpoints.published import llava_config
from zoo.checkpoints.published.llava import check_rotary, extract_llava_language
from zoo.checkpoints.unused_entries import entries_of, report_unused_entries, track_entries, untrack_entries
from zoo.choices import shorten_list

PREFIX = "language_model."  # in BLIP-2's files
#: names of the table of word vectors: T5's, BERT's, LLaMA's and OPT's, GPT-2's
TABLES = ("shared.weight", "word_embeddings.weight", "embed_tokens.weight", "wte.weight")
COMPUTED = ("rotary_emb.inv_freq", "position_ids", "attn.bias", "attn.masked_bias")  # buffers that old files hold


def read_language_folder(
    folder: Path, dtype: torch.dtype, random: bool = False, masked: bool = False
) -> tuple[Any, Any, Any]:
    """The network (None on the meta device), its configuration, and its tokenizer.

    Args:
        folder: with ``config.json``.
        dtype: of the weights.
        random: leave the weights unread.
        masked: a model that guesses hidden words, rather than one that writes; without a head for that where
            ``config.json`` names an architecture without one, such as ``BertModel``.

    Raises:
        FileNotFoundError: for a folder of something else.
        ValueError: for LoRA matrices in place of weights, a configuration that is not of a language model, or weights
            that do not fill the network.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # which would run programs
    if (folder / ADAPTER).is_file():
        raise ValueError(f"{folder} holds LoRA matrices beside a language model: name that one, and these as weights")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no folder of a language model: it has no config.json")
    refuse_custom_code(folder, CONFIG_MAPPING)
    check_network_folder(folder)
    said = read_config_beside(folder)
    for name in ("quantization_config", "compression_config"):
        if said.get(name):
            raise ValueError(
                f"config.json of {folder} says {name}: weights of fewer bits are not read; convert them first"
            )
    config, inside = _read_configuration(folder, said, local)
    config.return_dict = True  # outputs are taken by name
    if config.model_type == "t5":
        _set_activation(config, folder, dtype, inside)
    builder: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if masked:
        if config.is_encoder_decoder or type(config) not in AutoModelForMaskedLM._model_mapping:
            raise ValueError(f"{folder} holds a {config.model_type}, which is no masked language model like BERT")
        headless = all(name.endswith("Model") for name in config.architectures or ["ForMaskedLM"])
        builder = AutoModel if headless else AutoModelForMaskedLM
    elif type(config) not in builder._model_mapping:
        raise ValueError(f"{folder} holds a {config.model_type}, which writes no text")
    network = None
    if torch.empty(0).device.type != "meta":
        if random:
            network = _build(builder, config, folder, dtype)
        elif inside:
            file = track_entries(read_checkpoint(folder).state)
            state = extract_language_state(file)
            network = _build_filled(builder, config, untrack_entries(state), folder, dtype)
            report_unused_entries(folder, file, entries_of(state.values()).union(check_rotary(file, network)))
        else:
            with _hide_progress_bar():
                try:
                    network, report = builder.from_pretrained(
                        folder, config=config, dtype=dtype, output_loading_info=True, **local
                    )
                except (RuntimeError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
                    raise ValueError(
                        f"{folder} does not fill the language model that its config.json describes: "
                        f"{_to_one_line(error)}"
                    ) from None
            missing = [name for name in report["missing_keys"] if not (masked and name.startswith("pooler."))]
            _check_report(folder, missing, report["unexpected_keys"])
    return network, config, AutoTokenizer.from_pretrained(folder, **local)


def read_words(folder: Path) -> tuple[Any, Tensor]:
    """The tokenizer of a language model and the vectors of its words, without the rest of the network.

    Args:
        folder: with weights and the tokenizer's files.

    Raises:
        FileNotFoundError: for a folder that is not there or has no weights.
        ValueError: for weights without a table of words, or with fewer rows than the tokenizer has words.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no folder of a language model: it has no config.json")
    refuse_custom_code(folder, CONFIG_MAPPING)
    state = read_checkpoint(folder).state
    named = [name for end in TABLES for name in state if name == end or name.endswith(f".{end}")]
    if not named:
        raise ValueError(f"{folder} holds no table of words: its weights have none of {', '.join(TABLES)}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    table = state[named[0]]
    if len(table) < len(tokenizer):
        raise ValueError(f"{folder} has {len(table)} vectors for the {len(tokenizer)} words of its tokenizer")
    return tokenizer, table[: len(tokenizer)]


def _read_configuration(folder: Path, said: Mapping[str, Any], local: dict[str, Any]) -> tuple[Any, bool]:
    """Read the configuration of the language model, and tell whether it is inside another model."""
    from transformers import AutoConfig

    if llava_config.is_original(said):  # a configuration of the language model with more fields
        kind = said.get("model_type", "llava")
        if kind not in llava_config.LANGUAGE:
            raise ValueError(f"config.json of {folder} says model_type {kind!r}: LLaVA with LLaMA or Mistral is read")
        fields = {k: v for k, v in said.items() if not k.startswith("mm_") and k != "model_type"}
        with _explain_errors(folder):
            return AutoConfig.for_model(llava_config.LANGUAGE[kind], **fields), True
    with _explain_errors(folder):
        config = AutoConfig.from_pretrained(folder, **local)
    inner = getattr(config, "text_config", None)
    if inner is None:
        return config, False
    if config.model_type not in ("llava", "blip-2"):
        raise ValueError(f"{folder} holds a {config.model_type}: language models inside LLaVA and BLIP-2 are read")
    if said.get("tie_word_embeddings") is not None:
        inner.tie_word_embeddings = bool(said["tie_word_embeddings"])  # the outer field is the one that counts
    return inner, True


@contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of transformers, whose checks raise kinds of their own
        raise ValueError(f"transformers cannot read config.json of {folder}: {_to_one_line(error)}") from None


def _set_activation(config: Any, folder: Path, dtype: torch.dtype, inside: bool) -> None:
    """Give FlanT5 exact GELU in place of its tanh approximation, as BLIP-2 was trained; BLIP-2's own files say so."""
    if dtype == torch.float16:
        raise ValueError("T5 overflows in float16: set language_dtype to bfloat16")
    if not inside and config.dense_act_fn == "gelu_new":
        config.dense_act_fn = "gelu"
        rank_zero_info(f"{folder}: exact GELU in place of 'gelu_new', as BLIP-2 runs FlanT5")


def extract_language_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extract the language model inside a LLaVA or a BLIP-2, under its own names."""
    if not any(name.removeprefix("model.").startswith("qformer.") for name in state):
        return extract_llava_language(state)
    found = {name.removeprefix("model."): value for name, value in state.items()}
    return {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX)}


def _build_filled(builder: Any, config: Any, state: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> Any:
    """Build the network with these weights; words in and out share a table where the file holds only one."""
    if "lm_head.weight" not in state:
        config.tie_word_embeddings = True
    network = _build(builder, config, folder, dtype)
    own = network.state_dict()
    for name, value in state.items():
        if name in own and value.shape != own[name].shape:
            raise ValueError(
                f"{folder} does not fill the language model that its config.json describes: {name} is "
                f"{tuple(value.shape)} in the file and {tuple(own[name].shape)} in the network"
            )
    missing, unexpected = network.load_state_dict(state, strict=False)
    network.tie_weights()
    filled = {own[name].data_ptr() for name in state if name in own}
    _check_report(folder, [name for name in missing if own[name].data_ptr() not in filled], unexpected)
    tables: dict[int, str] = {}  # place in memory -> first of the names that it has
    for name in sorted(state.keys() & own.keys()):
        first = tables.setdefault(own[name].data_ptr(), name)
        if first != name and not torch.equal(state[first], state[name]):
            raise ValueError(
                f"{folder} says that {first} and {name} are one table, and holds two: mend tie_word_embeddings"
            )
    return network


def _build(builder: Any, config: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        return builder.from_config(config, dtype=dtype)
    except Exception as error:  # of transformers or torch, for settings that contradict each other
        raise ValueError(
            f"transformers cannot build the language model that config.json of {folder} describes: "
            f"{_to_one_line(error)}"
        ) from None


def _to_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_report(folder: Path, missing: Any, unexpected: Any) -> None:
    """Refuse networks that weights fill in part, and name what is left over."""
    if lacking := sorted(name for name in missing if not name.endswith(COMPUTED)):
        raise ValueError(
            f"{folder} does not fill the language model that its config.json describes: it lacks "
            f"{shorten_list(lacking)}"
        )
    if left := sorted(name for name in unexpected if not name.endswith(COMPUTED)):
        rank_zero_info(f"not used from {folder}: {shorten_list(left)}")


@contextmanager
def _hide_progress_bar() -> Iterator[None]:
    """Hide the progress bar that transformers draws for each file that it reads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
