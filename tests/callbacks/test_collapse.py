"""CollapseGuard: what it counts, and over how long."""

import pytest
import torch
from toys import RandomImages, ToyData, quiet_trainer

import zoo
from zoo import Optim, ZooModule
from zoo.callbacks import CollapseGuard
from zoo.quantizers.base import count_codes, perplexity
from zoo.quantizers.lfq import LFQ


def likeliest_everywhere(code=7):
    """A Gumbel codebook whose samples reach all codes and whose ids are all the same."""
    model = zoo.create_model("vqgan_gumbel_tiny", discriminator=None, optim=Optim(lr=0.0))
    with torch.no_grad():
        model.quantize.proj.weight.zero_()
        model.quantize.proj.bias.zero_()[code] = 0.01
    return model


def test_noise_does_not_hide_a_collapsed_gumbel_codebook(tmp_path):
    model = likeliest_everywhere()
    with pytest.raises(ValueError, match=r"codebook quantize has collapsed: 1 of its 64 codes.*kl_weight"):
        quiet_trainer(tmp_path, max_steps=4, callbacks=[CollapseGuard(threshold=0.1, steps=2, stop=True)]).fit(
            model, ToyData(32)
        )
    batch = {"image": torch.rand(4, 3, 32, 32)}
    assert model.train().losses(batch)["perplexity"] == 1
    out = model.quantize(model.features(batch["image"]))
    assert len(out.ids.unique()) > 32
    assert perplexity(count_codes(out.ids, 64)) > 32
    assert (out.likely == 7).all()
    assert torch.equal(out.likely, model.quantize.encode(model.features(batch["image"])))


class Halves(ZooModule):
    """Each step uses one half of 16 codes, twice each."""

    def __init__(self):
        super().__init__(Optim(lr=0.0))
        self.quantizer = LFQ(4)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def losses(self, batch):
        ids = torch.arange(8).repeat(2) + 8 * (self.global_step % 2)
        return {"loss": self.quantizer(self.scale * self.quantizer.embed(ids)).loss}


def test_a_window_has_four_tokens_per_code(tmp_path):
    """A short window says little about a large codebook: 64 tokens of 16 codes are needed, 16 come per step."""
    model = Halves()
    trainer = quiet_trainer(tmp_path, max_steps=5, callbacks=[CollapseGuard(threshold=0.9, steps=1, stop=True)])
    trainer.fit(model, ToyData(8, count=32))
    assert trainer.global_step == 5
    assert trainer.callback_metrics["train/usage_quantizer"] == 1.0


KINDS = {
    "vq": {}, "ema": {"quantizer": "ema"}, "l2": {"quantizer": "l2"}, "gumbel": {"quantizer": "gumbel"},
    "fsq": {"quantizer": "fsq", "levels": (4, 4, 4), "width": 3}, "lfq": {"quantizer": "lfq", "width": 6},
}  # fmt: skip
TOKENIZERS = [
    ("dvae_tiny", {}, ["encoder"]),
    ("dvae_tiny", {"relaxation": "straight_through", "encoder_start": 2}, ["encoder"]),
    ("vqvae_tiny", {}, ["quantize_b"]),
    ("vqvae2_tiny", {}, ["quantize_t", "quantize_b"]),
    ("vqgan_maskgit_tiny", {}, ["quantize"]),
    ("seed_stage2_tiny", {}, ["quantize"]),
    *(("vqgan_tiny", {"discriminator": None, "codebook": kind}, ["quantize"]) for kind in KINDS.values()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "codebooks"), TOKENIZERS)
def test_the_codes_of_every_discrete_tokenizer_are_counted(name, settings, codebooks, tmp_path):
    model = zoo.create_model(name, **settings, optim=Optim(lr=0.0))
    guard = CollapseGuard(threshold=1e-6, steps=4)
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[guard])
    trainer.fit(model, ToyData(32, batch_size=8, count=32))
    assert {f"train/usage_{c}" for c in codebooks} == {k for k in trainer.callback_metrics if "usage_" in k}
    with torch.no_grad():
        images = torch.stack([RandomImages(32, 32, 2)[i]["image"] for i in range(32)])
        ids = model.eval().encode(images).ids
    if (
        name != "vqvae_tiny" and settings.get("codebook", {}).get("quantizer") != "ema"
    ):  # whose codes move without a learning rate
        for codebook, segment in zip(codebooks, model.spec.segments, strict=True):
            found = len(ids[:, model.spec.span(segment.name)].unique()) / segment.size
            assert trainer.callback_metrics[f"train/usage_{codebook}"] == pytest.approx(found, abs=1.5 / segment.size)


def test_a_dvae_whose_codes_are_all_the_same_has_collapsed(tmp_path):
    model = zoo.create_model("dvae_tiny", optim=Optim(lr=0.0))
    with torch.no_grad():
        model.encoder.blocks.output.conv.w.zero_()
        model.encoder.blocks.output.conv.b.zero_()[5] = 1.0
    with pytest.raises(ValueError, match=r"codebook encoder has collapsed: 1 of its 64 codes.*marginal_entropy"):
        quiet_trainer(tmp_path, max_steps=4, callbacks=[CollapseGuard(steps=2, stop=True)]).fit(model, ToyData(32))


@pytest.mark.parametrize("name", ["maskgit_tiny", "beit_classifier_tiny", "blip2_stage1_tiny"])
def test_where_there_is_nothing_to_count_it_says_so(name, tmp_path):
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[CollapseGuard(steps=1)])
    with pytest.warns(UserWarning, match="CollapseGuard counts nothing: this .* trains no codebook"):
        trainer.fit(zoo.create_model(name), ToyData(32, num_classes=9))


def test_a_run_that_is_shorter_than_a_window_is_told(tmp_path, caplog):
    with caplog.at_level("INFO"):
        quiet_trainer(tmp_path, max_steps=1, callbacks=[CollapseGuard()]).fit(
            zoo.create_model("dvae_tiny"), ToyData(32)
        )
    assert "CollapseGuard says nothing of encoder: the run ended before a window of 500 steps" in caplog.text
