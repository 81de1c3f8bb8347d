"""A generator whose tokens decode to another size than its images have, and images for it."""

import pytest
import torch

import zoo


@pytest.fixture(scope="module")
def on_beit():
    """MaskGIT over the ids of BEiT, which decodes images of 32x32 through a dVAE to 16x16."""
    torch.manual_seed(0)
    return zoo.create_model("maskgit_tiny", tokenizer="beit_tiny:random").eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
