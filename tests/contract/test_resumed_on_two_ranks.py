"""Two processes that were stopped and resumed together end as if they had not stopped, and share no image."""

import json
import os
import sys
from pathlib import Path

import pytest
from patience import run_two_ranks

OPTIONS = {"max_epochs": 2, "val_check_interval": 2}


@pytest.mark.slow
@pytest.mark.timeout(0)  # run_two_ranks ends what hangs
@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_processes_go_on_where_they_stopped(accumulated, tmp_path):
    assert "GOES ON" in run_two_ranks(__file__, [str(tmp_path), str(accumulated)], tmp_path)
    seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)]
    first = [images[:10] for images in seen]
    assert sorted(first[0] + first[1]) == sorted({*first[0], *first[1]})


def main(folder, accumulated):
    import torch
    from resumed_runs import NoisyData, Plain, assert_goes_on, run

    torch.set_num_threads(1)
    options = OPTIONS | {"accumulate_grad_batches": accumulated, "devices": 2, "strategy": "ddp"}
    whole = run(NoisyData(22, 2), folder=folder, model=Plain(), **options)
    rank = int(os.environ["RANK"])
    (folder / f"seen{rank}.json").write_text(json.dumps(whole[1].seen))
    for path in (whole[2][i] for i in (0, 4, 6, len(whole[2]) // 2 + 1)):
        assert_goes_on(whole, [path], folder, lambda: NoisyData(22, 2), model=Plain(), **options)
        print("went on from", path[0].name, flush=True)
    print("GOES ON", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
