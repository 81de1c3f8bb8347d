"""A small recipe, and how tests run commands on it."""

import csv

RECIPE = """\
# title: Toy
#   of two lines
# expect: val/loss = 0

seed_everything: 0
model:
  class_path: toys.Toy
  init_args:
    image_size: ${data.init_args.image_size}
    width: 3
    optim: {lr: 1.0e-3}
data:
  class_path: toys.ToyData
  init_args: {image_size: 16, batch_size: 4, count: 8}
trainer:
  accelerator: cpu
  max_steps: 2
  log_every_n_steps: 1
  default_root_dir: runs/toy
"""


def fit(run_cli, *args):
    code, out, err = run_cli("fit", "--config", "toy.yaml", "--trainer.enable_progress_bar=false", *args)
    assert code == 0, err
    return out


def message(run_cli, *args, code=2):
    got, out, err = run_cli(*args)
    lines = [line for line in err.splitlines() if line and not line.startswith("Seed set")]
    assert got == code, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: "), err
    assert "usage" not in out + err
    return lines[0]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
