import pytest
import torch
from torch import nn
from toys import BlurredImageData, TinyTokenizer, quiet_trainer

from zoo.callbacks.ema import EMA


class Recorder(EMA):
    """Keeps the raw weights after every optimizer step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._latest_update_step != before:
            history.append(pl_module.codes.detach().clone())


history: list[torch.Tensor] = []


@pytest.fixture(autouse=True)
def _forget():
    history.clear()


def average(raw, decay, warmup, every=1, start=0):
    """The average by its definition, over the raw weights after each optimizer step."""
    mean, n = None, 0
    for step, weights in enumerate(raw):
        if step < start or step % every:
            continue
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        mean = weights.clone() if mean is None else d * mean + (1 - d) * weights
        n += 1
    return raw[-1] if mean is None else mean


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("every", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_over_optimizer_steps(tmp_path, every, accumulate, warmup):
    model, ema = TinyTokenizer(), Recorder(0.7, warmup=warmup, update_every_n_steps=every)
    trainer = quiet_trainer(
        tmp_path, max_steps=9, accumulate_grad_batches=accumulate, callbacks=[ema], limit_val_batches=0
    )
    trainer.fit(model, BlurredImageData(num_images=16, batch_size=4))
    assert len(history) == trainer.global_step == 9  # once per optimizer step, not once per batch
    assert not torch.allclose(history[-1], history[0], atol=1e-3)
    torch.testing.assert_close(model.codes.detach(), average(history, 0.7, warmup, every))


def test_before_the_first_update_the_model_itself_counts(tmp_path):
    """Training must not end on the initial weights because the average was to start later."""
    model = TinyTokenizer()
    ema = Recorder(0.7, update_starting_at_step=100)
    quiet_trainer(tmp_path, max_steps=3, callbacks=[ema]).fit(model, BlurredImageData(num_images=16))
    assert torch.equal(model.codes, history[-1])


def test_late_start(tmp_path):
    model, ema = TinyTokenizer(), Recorder(0.7, warmup=False, update_starting_at_step=3)
    quiet_trainer(tmp_path, max_steps=7, callbacks=[ema]).fit(model, BlurredImageData(num_images=16))
    torch.testing.assert_close(model.codes.detach(), average(history, 0.7, False, start=3))


class WithExtras(TinyTokenizer):
    """Integer buffer, a frozen parameter and a frozen tower."""

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.full((3,), 0.1), requires_grad=False)
        self.add_frozen("tower", nn.Linear(2, 2))

    def configure_optimizers(self):
        return torch.optim.SGD([self.codes], lr=0.1)


def test_only_trained_parameters_are_averaged(tmp_path):
    model, ema = WithExtras(), Recorder(0.9, warmup=False)
    tower = model.frozen["tower"]
    seen = []

    class Look(Recorder):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            seen.append((self._average_model.module.frozen["tower"] is tower, pl_module.calls.item()))

    ema = Look(0.9, warmup=False)
    quiet_trainer(tmp_path, max_steps=8, callbacks=[ema]).fit(model, BlurredImageData(num_images=16, batch_size=8))
    assert model.frozen["tower"] is tower
    assert seen[0] == (True, 2)
    assert seen[-1] == (True, 8)
    assert model.calls == 8
    assert torch.equal(model.constant, torch.full((3,), 0.1))


class Wavering(TinyTokenizer):
    """Another batch matters at every step, so that a resumed run can go wrong."""

    def losses(self, batch):
        terms = super().losses(batch)
        return terms | {"loss": terms["loss"] * (1 + self.global_step % 3)}


class SaveAt(Recorder):
    def __init__(self, step, path, **options):
        super().__init__(**options)
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *arguments):
        super().on_train_batch_end(trainer, *arguments)
        if trainer.global_step == self.step:
            self.raw = history[-1]
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_resume_is_exact(tmp_path, every):
    file = tmp_path / "middle.ckpt"
    options = {"decay": 0.8, "update_every_n_steps": every}
    model, ema = Wavering(), SaveAt(4, file, **options)
    data = BlurredImageData(num_images=16, batch_size=8)
    quiet_trainer(tmp_path, max_steps=10, callbacks=[ema], limit_val_batches=0).fit(model, data)
    checkpoint = torch.load(file, weights_only=True)
    torch.testing.assert_close(checkpoint["state_dict"]["codes"], average(history[:4], 0.8, True, every))
    assert torch.equal(checkpoint["current_model_state"]["codes"], ema.raw)

    again = Wavering()
    trainer = quiet_trainer(tmp_path, max_steps=10, callbacks=[SaveAt(0, file, **options)], limit_val_batches=0)
    trainer.fit(again, data, ckpt_path=file, weights_only=True)
    assert torch.equal(again.codes, model.codes)
    assert len(history) == 10 + 6


def test_an_interrupted_validation_leaves_the_raw_weights(tmp_path):
    class Interrupting(TinyTokenizer):
        def validation_step(self, batch, batch_idx):
            assert not torch.equal(self.codes, history[-1])  # the averaged ones
            raise RuntimeError("stop")

    model = Interrupting()
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[Recorder(0.9, warmup=False)])
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(model, BlurredImageData(num_images=32, batch_size=8))
    assert torch.equal(model.codes, history[-1])


def test_a_later_validation_uses_the_weights_it_is_given(tmp_path):
    model = TinyTokenizer()
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=[Recorder(0.9)])
    data = BlurredImageData(num_images=16)
    trainer.fit(model, data)
    with torch.no_grad():
        model.codes.fill_(0.25)
    result = trainer.validate(model, data, verbose=False)[0]
    images = data.val_dataloader().dataset.images / 255
    assert result["val/loss"] == pytest.approx((images - 0.25).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("options", [{"decay": 1.5}, {"update_every_n_steps": 0}])
def test_bad_settings(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EMA(**options)
