"""What several ranks saw: each entry once, in the order of the data set."""

import torch

from zoo.metrics.entries import chosen_entries, entries_of_all_ranks, first_entries, places_in_set, places_of


def test_repeated_entries_are_taken_once_in_the_order_of_the_set():
    # two ranks that take turns over five images; the last one is repeated to make three each
    assert places_in_set([0, 2, 4, 1, 3, 0]) == [0, 3, 1, 4, 2]


def test_entries_of_unknown_place_stay_as_they_are():
    assert places_in_set([3, None, 3]) == [0, 1, 2]


def test_one_rank_keeps_its_order():
    assert entries_of_all_ranks(["b", "a", "b"], [1, 0, 1]) == ["b", "a", "b"]


def test_places_are_the_index_of_a_batch():
    assert places_of({"index": [5, 6, 7]}, 2) == [5, 6]
    assert places_of({"image": []}, 2) == [None, None]


def test_first_entries_of_tensors_and_lists():
    batch = {"image": torch.arange(4), "caption": ["a", "b", "c", "d"], "note": "x"}
    found = first_entries(batch, 2)
    assert found["image"].tolist() == [0, 1]
    assert found["caption"] == ["a", "b"]
    assert found["note"] == "x"
    assert first_entries(batch, None)["caption"] == batch["caption"]


def test_chosen_entries_of_tensors_and_lists():
    found = chosen_entries({"image": torch.arange(4), "caption": ["a", "b", "c", "d"], "note": "x"}, [3, 1])
    assert found["image"].tolist() == [3, 1]
    assert found["caption"] == ["d", "b"]
    assert found["note"] == "x"
