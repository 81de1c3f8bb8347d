"""The Halton order of cells, and decoding in it."""

import torch

from zoo.sampling.halton import halton_order, spread_order
from zoo.sampling.parallel_decoding import parallel_decode, places_in


def test_halton_order_visits_all_cells_and_keeps_in_order():
    order = halton_order((4, 6))
    assert sorted(order.tolist()) == list(range(24))
    assert order[:2].tolist() == [2 * 6 + 2, 1 * 6 + 4]
    hidden = torch.ones(1, 24, dtype=torch.bool)
    hidden[0, order[0]] = False
    assert places_in(order, hidden)[0, order[1]] == 0
    assert places_in(order, hidden)[0, order[23]] == 22
    decoding = parallel_decode(
        torch.where(hidden, 9, 1), lambda ids, step: torch.randn(1, 24, 9), 9, 5, "arccos", order=order
    )
    kept_first = (decoding.after[0, 0] != 9).nonzero().flatten()
    assert set(kept_first.tolist()) == set(order[: len(kept_first)].tolist())
    assert len(kept_first) > 1
    for before, after in zip(decoding.inputs[0], decoding.after[0], strict=True):
        assert torch.equal(after[before != 9], before[before != 9])
    assert sorted(spread_order([(2, 2), (8,)]).tolist()) == list(range(12))
