"""Every model can learn: the loss of one batch falls far below where it started."""

import pytest
import torch
from toys import RandomImages

import zoo
from datamodules.base import collate

STEPS = 80
TINY = zoo.list_models("*_tiny")


def sharpen(model):
    """A frozen random language model whose words depend on what stands before them: its own weights are too small."""
    if "language_model" in model.frozen:
        with torch.no_grad():
            for weight in model.frozen["language_model"].parameters():
                if weight.ndim == 2:
                    weight.mul_(5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    model = sharpen(zoo.create_model(name)).train()
    images = RandomImages(4, model.hparams.get("image_size", 32), (getattr(model, "num_classes", 9) or 9))
    batch = collate([images[i] for i in range(4)])
    # smooth images, as noise cannot be compressed
    coarse = torch.nn.functional.avg_pool2d(batch["image"].float(), 8)
    smooth = torch.nn.functional.interpolate(coarse, batch["image"].shape[-2:], mode="bilinear", antialias=False)
    batch["image"] = ((smooth - 96) * 4).clamp(0, 255).to(torch.uint8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    history = []
    for _ in range(STEPS):
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    first, last = sum(history[:3]) / 3, sum(history[-10:]) / 10
    assert last < first - 0.3 * abs(first), f"loss went from {first:.4g} to {last:.4g} in {STEPS} steps"
