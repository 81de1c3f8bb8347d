"""Random numbers of torch, NumPy and Python: seeding all of them at once, keeping and restoring their states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_noise(*entropy: int) -> None:
    """Seed torch, NumPy and ``random`` from several numbers at once."""
    state = np.random.SeedSequence([n % 2**63 for n in entropy]).generate_state(3)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - timm's Mixup draws from the global generator
    random.seed(int(state[2]))


@contextmanager
def noise_aside() -> Iterator[None]:
    """Leave the generators of the CPU as they were found, whatever is drawn or seeded inside."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def noise_states() -> dict[str, Any]:
    """The states of all generators as tensors and plain data, for a checkpoint; of GPUs only where one is in use."""
    key, position, has_gauss, gauss = np.random.get_state()[1:]  # noqa: NPY002
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": {
            "key": torch.tensor(np.asarray(key, dtype=np.int64)),
            "position": int(position),
            "gauss": [int(has_gauss), float(gauss)],
        },
        "python": {"version": version, "words": torch.tensor(words), "gauss": next_gauss},
    }


def restore_noise(states: dict[str, Any]) -> None:
    """Set all generators to states of :func:`noise_states`; those of GPUs only where there are as many."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    found, (has_gauss, gauss) = states["numpy"], states["numpy"]["gauss"]
    key = found["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, found["position"], has_gauss, gauss))  # noqa: NPY002
    found = states["python"]
    random.setstate((found["version"], tuple(found["words"].tolist()), found["gauss"]))
