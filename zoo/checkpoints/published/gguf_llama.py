"""Llama-like language models in GGUF files: dequantised once, into a folder in transformers' layout.

llama.cpp interleaves the rows of the query and key matrices for its rotary embedding; that is undone here.
"""

import json
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from zoo.assets import cache_folder, explain_cache_error, find_cache_problem
from zoo.checkpoints.config_checks import find_unknown_fields
from zoo.files.atomic import write_whole
from zoo.files.strict_json import dump_json

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

PREFIX = "llama."
#: fields of the architecture that are used; the size of the vocabulary is that of the list of words
USED = (
    "embedding_length", "feed_forward_length", "block_count", "context_length", "vocab_size", "rope.freq_base",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
)  # fmt: skip


def dequantise_gguf(path: Path, name: str) -> Path:
    """Dequantise a GGUF file into a folder of the cache, on first use, which takes some seconds.

    Args:
        path: of the GGUF file.
        name: of the folder.

    Raises:
        ModuleNotFoundError: without the package that reads these files.
        ValueError: for a file that is no Llama-like model.
        OSError: where the cache cannot be written to, before anything is computed.
    """
    folder = cache_folder() / f"{name}-{path.stat().st_size}"
    if _is_whole(folder):
        return folder
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModuleNotFoundError("GGUF files are read with the package gguf: pip install 'tokenzoo[llm]'") from None
    if (problem := find_cache_problem()) is not None:
        raise OSError(f"the weights of {path.name} have to be written before they are read, and {problem}")
    print(f"dequantising {path.name} into {folder}", flush=True)
    reader = GGUFReader(path)
    config = read_llama_config(reader, path)
    try:
        with write_whole(folder) as part:
            part.mkdir()
            _write(part, reader, path, config)
    except OSError as error:
        problem = explain_cache_error(error)
        raise OSError(f"the weights of {path.name} have to be written before they are read, and {problem}") from None
    return folder


def _is_whole(folder: Path) -> bool:
    """Tell whether an earlier call wrote the whole folder, and nothing has damaged it since."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "model.safetensors", "pt") as file:
            return bool(file.keys())
    except (OSError, ValueError, SafetensorError):
        return False


def read_llama_config(reader: Any, path: Path) -> dict[str, Any]:
    """Read the fields of ``LlamaConfig`` from a GGUF file.

    Raises:
        ValueError: for a file of another model, naming the field that shows it.
    """

    def value(key: str, default: Any = None) -> Any:
        field = reader.fields.get(key)
        return default if field is None else field.contents()

    if value("general.type", "model") != "model":
        raise ValueError(f"{path} holds the {value('general.type')} of a model and no model: merge it first")
    if value("general.architecture") != "llama":
        raise ValueError(f"{path} holds a {value('general.architecture')}, and only Llama-like models are read")
    heads = value("llama.attention.head_count")
    width = value("llama.embedding_length") // heads
    facts = {
        "llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.rope.dimension_count": width,
        "llama.attention.key_length": width, "llama.attention.value_length": width,
    }  # fmt: skip
    for key, plain in facts.items():
        if (found := value(key, plain)) != plain:
            raise ValueError(f"{path} says {key} {found!r}, and only Llama-like models with {plain!r} are read")
    others = {key: value(key) for key in reader.fields if key.startswith(PREFIX)}
    for key in find_unknown_fields(others, (*(f"{PREFIX}{name}" for name in USED), *facts)):
        raise ValueError(f"{path} says {key} {others[key]!r}, and only Llama-like models without it are read")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("llama.attention.head_count_kv", heads),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base", 10000.0),
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
        "dtype": "bfloat16",
    }


def read_llama_state(reader: Any, config: dict[str, Any]) -> dict[str, Tensor]:
    """Dequantise weights to float32, under transformers' names.

    Raises:
        ValueError: for a tensor that a plain Llama has no place for.
    """
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    state = {}
    for tensor in reader.tensors:
        stem, _, kind = tensor.name.rpartition(".")
        block, layer = "", stem
        if stem.startswith("blk."):
            _, number, layer = stem.split(".", 2)
            block = f"model.layers.{number}."
        if layer not in NAMES or kind != "weight":
            raise ValueError(
                f"the GGUF file holds {tensor.name}, for which a plain Llama has no place: its outputs would be others"
            )
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if layer in heads:
            value = rearrange(value, "(h c two) d -> (h two c) d", h=heads[layer], two=2)
        state[f"{block}{NAMES[layer]}.{kind}"] = value
    return state


def _write(folder: Path, reader: Any, path: Path, config: dict[str, Any]) -> None:
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    state = {name: value.to(torch.bfloat16) for name, value in read_llama_state(reader, config).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).save_pretrained(folder)
    (folder / "config.json").write_text(dump_json(config) + "\n")
