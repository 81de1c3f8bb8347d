"""Codebooks, k-means and restarts on two processes are the same on both, and those of one with the joint batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zoo.quantizers.code_entropy import code_entropy
from zoo.quantizers.ema import EMAQuantizer
from zoo.quantizers.gradient import VectorQuantizer
from zoo.quantizers.lfq import LFQ

STEPS = 3

pytestmark = pytest.mark.slow  # all of them wait for the two processes


def quantizers():
    torch.manual_seed(1)
    return {
        "ema": EMAQuantizer(12, 3, decay=0.5),
        "debiased": EMAQuantizer(12, 3, decay=0.5, debias=True),
        "kmeans": EMAQuantizer(12, 3, decay=0.5, kmeans_init=True),
        "restarts": EMAQuantizer(12, 3, decay=0.5, restart_threshold=1.0),
        "gradient": VectorQuantizer(12, 3, decay=0.5, kmeans_init=True, restart_threshold=1.0),
    }


def batch(step):
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(step))


def states(rows, seed):
    """The state of every quantizer after some steps on these rows of each batch."""
    found = {}
    for name, quantizer in quantizers().items():
        quantizer.train()
        torch.manual_seed(seed)  # ranks have noise of their own
        for step in range(STEPS):
            z = batch(step)[rows].requires_grad_()
            out = quantizer(z)
            (out.vectors.sum() + out.loss).backward()
            quantizer.update()
        found[name] = {key: value.clone() for key, value in quantizer.state_dict().items()}
    # a rank without a batch neither hangs nor changes the sums
    late = EMAQuantizer(12, 3, decay=0.5)
    late._buffers["embed"].copy_(quantizers()["ema"].state_dict()["embed"])
    if rows.start == 0:
        late.train()(batch(9)[:20].requires_grad_()).vectors.sum().backward()
    late.update()
    late.update()
    found["late"] = {"cluster_size": late.cluster_size}
    # ... and takes the restarts of the other one's vectors
    restarted = quantizers()["restarts"].train()
    if rows.start == 0:
        restarted(batch(9)[:20].requires_grad_()).vectors.sum().backward()
    restarted.update()
    found["late_restarts"] = {"embed": restarted.state_dict()["embed"], "updates": restarted.updates}
    return found


def losses(rows):
    """Entropy losses and what DDP makes of their gradients."""
    z = batch(0)[rows].requires_grad_()
    each, mean = code_entropy(z, batch(1)[:8], 0.5)
    value = each - mean
    lfq = LFQ(3, temperature=0.5).train()(z)
    (value + lfq.loss).backward()
    return {"entropy": value.detach(), "mean": lfq.terms["entropy_mean"], "gradient": z.grad}


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(20 * rank, 20 * rank + 20)
    torch.save((states(rows, seed=rank), losses(rows)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    joint = slice(0, 40)
    return *ranks, (states(joint, seed=7), losses(joint))


def test_codebooks_are_the_same_on_both_ranks(results):
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ema", "debiased", "kmeans", "restarts", "gradient", "late", "late_restarts"])
def test_codebooks_are_those_of_the_joint_batch(results, name):
    two, one = results[0][0][name], results[2][0][name]
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    if name in ("restarts", "gradient"):
        assert one["updates"] == STEPS
    start = quantizers().get(name)
    if start is not None:
        key = "embedding.weight" if name == "gradient" else "embed"
        assert (one[key] - start.state_dict()[key]).abs().max() > 0.1  # something has moved


def test_entropy_losses_see_the_joint_batch(results):
    (_, first), (_, second), (_, joint) = results
    torch.testing.assert_close(first["mean"], second["mean"], rtol=0, atol=0)
    torch.testing.assert_close(first["mean"], joint["mean"])
    torch.testing.assert_close((first["entropy"] + second["entropy"]) / 2, joint["entropy"])
    # DDP averages the ranks' gradients, and each rank's loss is a mean over half of the rows
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]) / 2, joint["gradient"])
