"""What a process leaves behind when it ends."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print("initialized at the end:", dist.is_initialized()))  # runs behind what comes later
import lightning.pytorch as pl
import zoo
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = zoo.create_model("dvae_tiny")
for _ in range(2):
    model.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
print("initialized before:", dist.is_initialized())
"""


def test_a_process_that_has_met_a_trainer_leaves_its_group_before_it_ends():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["initialized before: True", "initialized at the end: False"]
