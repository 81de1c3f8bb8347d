import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.metrics.codebook import CodebookUsage


def test_values_by_hand():
    usage = CodebookUsage(8)
    usage.update(torch.tensor([[0, 0], [1, 1]]))
    usage.update(torch.tensor([[0, 0], [5, 1]]))
    result = {k: v.item() for k, v in usage.compute().items()}
    p = [4 / 8, 3 / 8, 1 / 8]  # ids 0, 1, 5
    nats = -sum(q * math.log(q) for q in p)
    assert result["usage"] == pytest.approx(3 / 8)
    assert result["dead"] == 5
    assert result["perplexity"] == pytest.approx(math.exp(nats))
    assert result["entropy"] == pytest.approx(nats / math.log(2))


def test_uniform_use_has_perplexity_of_the_vocabulary():
    usage = CodebookUsage(32)
    usage.update(torch.arange(32).repeat(3).view(3, 32))
    result = usage.compute()
    assert result["perplexity"].item() == pytest.approx(32)
    assert result["entropy"].item() == pytest.approx(5)
    assert result["usage"].item() == 1


def test_segment_with_offset():
    usage = CodebookUsage(4, offset=100)
    usage.update(torch.tensor([100, 103]))
    assert usage.histogram.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(("offset", "ids"), [(0, [4]), (0, [-1]), (10, [9]), (10, [14])])
def test_ids_of_another_vocabulary_are_refused(offset, ids):
    with pytest.raises(ValueError, match=r"ids must lie in \[\d+, \d+\), got"):
        CodebookUsage(4, offset).update(torch.tensor(ids))


TWO_RANKS = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from zoo.metrics.codebook import CodebookUsage
from zoo.metrics.image_quality import PSNR

def work(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
    usage, psnr = CodebookUsage(6), PSNR()
    usage.update(torch.tensor([[0, 1], [1, 2]][rank]))
    psnr.update(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), [0.1, 0.3][rank]))
    result = usage.compute()
    assert abs(result["usage"].item() - 3 / 6) < 1e-9, result  # each rank alone has 2 / 6
    p = torch.tensor([1, 2, 1]) / 4
    assert abs(result["perplexity"].item() - torch.exp(-(p * p.log()).sum()).item()) < 1e-6, result
    mse = torch.tensor((0.1**2 + 0.3**2) / 2)
    assert abs(psnr.compute().item() + 10 * torch.log10(mse).item()) < 1e-5
    assert usage.histogram.sum() == 2  # the local state is restored after the synchronised computation
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")  # one import of torch for both
"""


@pytest.mark.slow
def test_two_processes_count_together(tmp_path: Path):
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
