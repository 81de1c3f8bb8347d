"""MaskGIT against recorded outputs of the published code: logits, loss, schedules and replayed decodings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import zoo
from zoo.models.maskgit import MaskGIT
from zoo.sampling.halton import halton_order
from zoo.sampling.mask_schedule import kept_after, masked_after
from zoo.sampling.parallel_decoding import Noise, parallel_decode

FILE = Path(__file__).parents[1] / "fixtures" / "maskgit_transformer_tiny.safetensors"
RUNS = ("fixed", "model", "greedy", "edit")


@pytest.fixture(scope="module")
def recorded():
    with safe_open(FILE, "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["config"])["constructor"]


def flax_file(arrays, path):
    """The weights as ``flax.serialization.to_bytes`` writes them."""
    import msgpack

    tree = {}
    for name, value in arrays.items():
        if name.startswith("flax/"):
            *above, leaf = name.split("/")[1:]
            node = tree
            for part in above:
                node = node.setdefault(part, {})
            packed = msgpack.packb((list(value.shape), "float32", value.numpy().astype(np.float32).tobytes()))
            node[leaf] = msgpack.ExtType(1, packed)
    path.write_bytes(msgpack.packb({"params": tree}))
    return path


@pytest.fixture(scope="module")
def model(recorded, tmp_path_factory):
    """Built with the sizes of the file and without its heads, which are read from the kernels."""
    arrays, sizes = recorded
    folder = tmp_path_factory.mktemp("maskgit")
    side = int(sizes["grid"] ** 0.5)
    tokenizer = zoo.create_model("dvae_tiny", image_size=4 * side, vocab_size=sizes["codebook_size"])
    said = {"class": "zoo.models.dvae.DVAE", "init_args": tokenizer.init_args(), "version": zoo.__version__}
    torch.save({"state_dict": tokenizer.state_dict(), "zoo": said}, folder / "tokenizer.ckpt")
    network = sizes["transformer"]
    model = MaskGIT(
        tokenizer=f"ckpt:{folder / 'tokenizer.ckpt'}", num_classes=sizes["num_classes"], width=network["hidden_size"],
        depth=network["num_hidden_layers"], heads=None,
        mlp_width=network["intermediate_size"], weights=str(flax_file(arrays, folder / "checkpoint")),
    )  # fmt: skip
    return model.eval()


def test_logits_with_the_heads_of_the_file(recorded, model):
    arrays, sizes = recorded
    assert model.init_args()["heads"] == sizes["transformer"]["num_attention_heads"]
    assert model.network.mask_id == sizes["transformer"]["vocab_size"] - 1
    with torch.no_grad():
        logits = model.network.sequence_logits(arrays["in.ids_mask_as_last"].long())
    assert arrays["out.logits"].std() > 0.1
    torch.testing.assert_close(logits, arrays["out.logits"], atol=1e-5, rtol=1e-5)


def test_exact_gelu_or_another_epsilon_would_be_seen(recorded, model, monkeypatch):
    arrays, _ = recorded
    sequence = arrays["in.ids_mask_as_last"].long()
    gelu = F.gelu
    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(F, "gelu", lambda x, approximate="none": gelu(x))
        assert (model.network.sequence_logits(sequence) - arrays["out.logits"]).abs().max() > 1e-4


def test_the_loss_is_the_recorded_one(recorded, model):
    """Recorded labels and weights include the class position, which the model's own loss never weights."""
    arrays, _ = recorded
    weights, labels = arrays["in.weights"], arrays["in.labels"].long()
    every = F.cross_entropy(
        arrays["out.logits"].transpose(1, 2), labels, reduction="none", label_smoothing=model.label_smoothing
    )
    expected = ((every * weights).sum(1) / weights.sum(1)).mean()
    torch.testing.assert_close(expected, arrays["out.loss_label_smoothing"], atol=1e-5, rtol=1e-5)
    assert weights[:, 0].eq(0).all()
    sequence = arrays["in.ids_mask_as_last"].long()
    batch = {
        "ids": labels[:, 1:].clamp(0, model.spec.vocab_size - 1),
        "label": sequence[:, 0] - model.spec.vocab_size,
        "mask": weights[:, 1:].bool(),
    }
    inputs = sequence[:, 1:]
    assert torch.equal(inputs == model.network.mask_id, batch["mask"])
    # visible tokens of the input are their own targets
    batch["ids"] = torch.where(batch["mask"], batch["ids"], inputs)
    with torch.no_grad():
        torch.testing.assert_close(
            model.losses(batch)["loss"], arrays["out.loss_label_smoothing"], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("steps", [8, 12])
@pytest.mark.parametrize("count", [16, 64, 256, 1024])
def test_schedule_counts(recorded, steps, count):
    found = [int(masked_after("cosine", s, steps, torch.tensor([count]))) for s in range(steps)]
    assert found[:-1] == recorded[0][f"out.schedule_floor.T{steps}.N{count}"].tolist()[:-1]
    clamped, unknown = [], count
    for n in found:
        unknown = max(1, min(unknown - 1, n))
        clamped.append(unknown)
    assert clamped == recorded[0][f"out.schedule.T{steps}.N{count}"].tolist()


def test_golden_counts_of_the_float32_cosine():
    def counts(steps, n):
        return [int(masked_after("cosine", s, steps, torch.tensor([n]))) for s in range(steps)]

    assert counts(8, 256) == [251, 236, 212, 181, 142, 97, 49, 0]
    assert counts(12, 256) == [253, 247, 236, 221, 203, 181, 155, 127, 97, 66, 33, 0]
    assert counts(16, 256) == [254, 251, 244, 236, 225, 212, 197, 181, 162, 142, 120, 97, 74, 49, 25, 0]
    assert counts(12, 1024)[7] == 511


def test_golden_halton_order_and_counts():
    assert [divmod(int(p), 16) for p in halton_order((16, 16))[:8]] == [
        (8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3), (14, 8), (1, 14),
    ]  # fmt: skip
    assert [int(kept_after("arccos", s, 32, torch.tensor([256]))) for s in range(32)] == [
        5, 10, 15, 20, 25, 30, 35, 41, 46, 51, 57, 62, 68, 73, 79, 85, 91, 97, 103, 110, 116, 123, 130, 138, 146, 154,
        163, 173, 184, 198, 215, 256,
    ]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_replayed_decoding(recorded, model, run):
    """Ids, next inputs and mask counts of every step, with the class token in the sequence as the reference has it."""
    arrays, sizes = recorded
    settings = sizes["runs"][run]
    mask_id, codes = model.network.mask_id, sizes["codebook_size"]
    start = arrays[f"in.run.{run}.ids0"].long()
    start = torch.where(start == -1, mask_id, start)
    if settings["logits"] == "fixed":
        logits_of = lambda ids, step: arrays["in.fixed_logits"]  # noqa: E731
    else:
        logits_of = lambda ids, step: model.network.sequence_logits(ids)[..., :codes]  # noqa: E731
    noise = None
    if settings["noise"] == "recorded":
        noise = Noise(arrays[f"in.noise.{run}.sample"], arrays[f"in.noise.{run}.choice"])
    with torch.no_grad():
        decoding = parallel_decode(
            start, logits_of, mask_id, settings["T"], choice_temperature=settings["temperature"],
            sampling_temperature=1.0 if noise is not None else 0.0, start=settings.get("start_iter", 0), noise=noise,
        )  # fmt: skip
    known = lambda ids: torch.where(ids == -1, mask_id, ids.long())  # noqa: E731
    assert torch.equal(decoding.sampled, known(arrays[f"out.run.{run}.ids_per_step"]))
    assert torch.equal(decoding.after, known(arrays[f"out.run.{run}.next_input_per_step"]))
    assert torch.equal((decoding.after == mask_id).sum(-1).int(), arrays[f"out.run.{run}.mask_len_per_step"])


def test_replayed_generation_through_the_model(recorded, model):
    arrays, sizes = recorded
    settings = sizes["runs"]["model"]
    labels = arrays["in.run.model.ids0"][:, 0].long() - sizes["codebook_size"]
    noise = Noise(arrays["in.noise.model.sample"][:, :, 1:], arrays["in.noise.model.choice"][:, :, 1:])
    tokens, decoding = model.generate(
        labels, as_tokens=True, return_steps=True, noise=noise, steps=settings["T"],
        choice_temperature=settings["temperature"],
    )  # fmt: skip
    expected = arrays["out.run.model.ids_per_step"].long()[:, :, 1:]
    assert torch.equal(decoding.sampled, expected)
    assert torch.equal(tokens.ids, expected[:, -1])


def test_other_heads_are_refused_and_nothing_is_loaded(recorded, model, tmp_path):
    args = {**model.init_args(), "heads": 8, "optim": zoo.Optim()}
    with pytest.raises(ValueError, match="4 attention heads, the model 8"):
        MaskGIT(**args | {"weights": str(flax_file(recorded[0], tmp_path / "checkpoint"))})
