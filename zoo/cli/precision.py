"""The fastest precision on this hardware: half-width numbers pay off only where it computes with them.

Recipes write ``precision: ${fast_precision:${trainer.accelerator}}``, and for the weights of a language model
``language_dtype: ${fast_dtype:${trainer.accelerator}}``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

RECIPES_SAY, DTYPES_SAY = "${fast_precision:", "${fast_dtype:"


def fast_precision(accelerator: str = "auto") -> str:
    """Choose ``bf16-mixed`` where the hardware that will train computes with bfloat16, else ``32-true``.

    Args:
        accelerator: the Trainer's setting.
    """
    return "bf16-mixed" if computes_in_bfloat16(accelerator) else "32-true"


def fast_dtype(accelerator: str = "auto") -> str:
    """Choose ``bfloat16`` where the hardware that will train computes with it, else ``float32``.

    Args:
        accelerator: the Trainer's setting.
    """
    return "bfloat16" if computes_in_bfloat16(accelerator) else "float32"


def computes_in_bfloat16(accelerator: str = "auto") -> bool:
    """Tell whether the hardware that will train has instructions for bfloat16.

    Args:
        accelerator: the Trainer's setting.
    """
    kind = accelerator
    if accelerator in ("auto", "gpu"):
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return kind == "tpu"
    found = _cpu_capabilities()
    if not any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")):
        return False
    # x86: what torch and oneDNN were held to (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA) counts
    return "avx2" not in found or torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))


def _cpu_capabilities() -> Mapping[str, Any]:
    """Instruction sets of the processor, those that matter here at least."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # torch 2.6 has a function for each
    return {"avx2": torch.cpu._is_avx2_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def explain_precision(precision: str, accelerator: str, chosen: bool) -> str | None:
    """Explain a precision before training, where that is worth a line.

    Args:
        precision: the Trainer's setting.
        accelerator: likewise.
        chosen: whether :func:`fast_precision` chose it.
    """
    fast = computes_in_bfloat16(accelerator)
    if chosen and precision == fast_precision(accelerator):
        return f"{precision}, since the hardware {'has' if fast else 'lacks'} instructions for bfloat16"
    if precision.startswith("bf16") and not fast:
        return f"{precision}, which is emulated here, slower than float32: --trainer.precision=32-true"
    return None


def explain_language_dtype(dtype: str | None, accelerator: str, chosen: bool) -> str | None:
    """Explain the type of a language model's weights before training, where that is worth a line.

    Args:
        dtype: of them; None where there are none.
        accelerator: the Trainer's setting.
        chosen: whether :func:`fast_dtype` chose it.
    """
    fast = computes_in_bfloat16(accelerator)
    if chosen and dtype == fast_dtype(accelerator):
        return f"language model in {dtype}, since the hardware {'has' if fast else 'lacks'} instructions for bfloat16"
    if dtype == "bfloat16" and not fast:
        return "language model in bfloat16, which is emulated here, slower: --model.language_dtype=float32"
    return None


def register_with_recipes() -> None:
    """Let recipes write ``${fast_precision:...}`` and ``${fast_dtype:...}``."""
    OmegaConf.register_resolver("fast_precision", fast_precision, replace=True)
    OmegaConf.register_resolver("fast_dtype", fast_dtype, replace=True)
