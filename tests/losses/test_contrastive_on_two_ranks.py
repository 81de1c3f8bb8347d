"""Contrast over two processes is that of one with the joint batch, gradients included where they are gathered."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from zoo.distributed import gather_rows
from zoo.losses.contrastive import contrastive_loss, find_same_image

IDS = torch.tensor([5, 6, 5, 8, 9, 6])


def result(rows, ids, full):
    """Loss, matrix, and the gradients that DDP would average."""
    torch.manual_seed(0)
    image, text = torch.randn(6, 2, 4)[rows].requires_grad_(), torch.randn(6, 4)[rows].requires_grad_()
    same = find_same_image(len(image), None if ids is None else ids[rows], image.device)
    unit = (F.normalize(image, dim=-1), F.normalize(text, dim=-1))
    loss, i2t, _ = contrastive_loss(*unit, torch.tensor(0.1), same, gather_gradient=full)
    loss.backward()
    return loss.detach(), i2t.detach(), image.grad, text.grad


def work(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    rows = slice(3 * rank, 3 * rank + 3)
    found = {(given, full): result(rows, IDS if given else None, bool(full)) for given in (0, 1) for full in (0, 1)}
    try:
        gather_rows(torch.zeros(2 + rank, 1))
    except ValueError as error:
        found["uneven"] = str(error)
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for given in (0, 1):
        for full in (0, 1):
            loss, i2t, *gradients = result(slice(0, 6), IDS if given else None, bool(full))
            parts = [rank[given, full] for rank in ranks]
            torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss)
            torch.testing.assert_close(torch.cat([p[1] for p in parts]), i2t)
            for k, gradient in enumerate(gradients, 2):
                torch.testing.assert_close(torch.cat([p[k] for p in parts]) / 2, gradient, rtol=1e-4, atol=1e-6)
    assert all("batches of [2, 3] images" in rank["uneven"] for rank in ranks)
