"""Compiled networks: the losses of eager ones, and after three optimizer steps their weights."""

import os
import re
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from patience import run_together
from toys import RandomImages

import zoo
from datamodules.base import collate

TINY = zoo.list_models("*_tiny")
GANS = [name for name in TINY if name.startswith("vqgan")]
#: one of each kind goes through C++, which takes up to half a minute each; the others through all before it
INDUCTOR = ("beit_tiny", "dvae_tiny", "maskgit_tiny", "seed_stage1_tiny", "vqvae_tiny")
OTHERS = [name for name in TINY if name not in GANS]


def trained(name, backend):
    """The state after three steps, and the terms of the last."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    later = {"discriminator": {"start": 1}} if name in GANS else {}  # the discriminator starts inside of the run
    model = zoo.create_model(name, **later).train()
    batch = batch_for(model)
    if backend:
        model.compile_networks(backend=backend)
    # epsilon 1 makes a step proportional to the gradient, where a step of its sign would show its rounding
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, eps=1.0)
    terms = {}
    for step in range(3):
        torch.manual_seed(step)
        with patch.object(type(model), "global_step", step):
            terms = model.losses(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    return dict(model.state_dict()), terms


def batch_for(model):
    images = RandomImages(4, model.hparams.get("image_size", 32), (getattr(model, "num_classes", 9) or 9))
    return collate([images[i] for i in range(4)])


def evaluated(name, backend):
    """The losses in eval mode, of weights away from zero and one."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = zoo.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        if backend:
            model.compile_networks(backend=backend)
            assert not any("_orig_mod" in key for key in model.state_dict())
        return model.losses(batch_for(model))


def compare(names):
    for name in names:
        backend = "inductor" if name in INDUCTOR else "aot_eager"
        torch._dynamo.utils.counters.clear()
        losses = {side: evaluated(name, side) for side in (None, backend)}
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, f"{name}: nothing was compiled"
        torch.testing.assert_close(losses[backend]["loss"], losses[None]["loss"], rtol=1e-4, atol=1e-5)
        eager, terms = trained(name, None)
        assert name not in GANS or "generator" in terms
        torch._dynamo.utils.counters.clear()
        compiled, _ = trained(name, "aot_eager")
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, f"{name}: nothing was compiled"
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        print(name, "is equal", flush=True)


@pytest.mark.timeout(0)  # run_together ends what hangs
@pytest.mark.slow
@pytest.mark.parametrize("names", [GANS, *(OTHERS[i::3] for i in range(3))])
def test_losses_and_three_steps_are_those_without_compilation(names, tmp_path):
    # in a process of its own: the annotations that the tests enforce take minutes to trace
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    (said,) = run_together([[__file__, *names]], [tmp_path / "log"], [{"PYTHONPATH": path}])
    assert re.findall(r"^(\w+) is equal$", said, re.M) == names


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare(sys.argv[1:])
