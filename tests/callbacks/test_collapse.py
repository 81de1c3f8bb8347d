"""CollapseGuard: what it counts, and over how long."""

import pytest
import torch
from tiny_tokenizer import quiet_trainer
from toys import ToyData

import zoo
from zoo import Optim, ZooModule
from zoo.callbacks import CollapseGuard
from zoo.nn.lfq import LFQ
from zoo.nn.quantized import count_codes, perplexity


def likeliest_everywhere(code=7):
    """A Gumbel codebook whose samples reach all codes and whose ids are all the same."""
    model = zoo.create_model("vqgan_gumbel_tiny", disc="none", optim=Optim(lr=0.0))
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
    assert len(out.ids.unique()) > 32 and perplexity(count_codes(out.ids, 64)) > 32  # the samples of the same batch
    assert (out.likely == 7).all() and torch.equal(out.likely, model.quantize.encode(model.features(batch["image"])))


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
    assert trainer.global_step == 5 and trainer.callback_metrics["train/usage_quantizer"] == 1.0
