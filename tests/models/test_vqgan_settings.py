"""VQGAN's constructor: every setting reaches what it is for, and one that would do nothing is refused."""

import pytest
import torch

import zoo

FSQ = {"quantizer": "fsq", "levels": (4, 4, 4), "code_width": 3}
LFQ = {"quantizer": "lfq", "code_width": 6}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        *(
            (
                {**kind, name: value},
                rf"{name} {value!r} does nothing with quantizer {kind['quantizer']}, .* vq, ema, l2",
            )
            for kind in ({"quantizer": "gumbel"}, FSQ, LFQ)
            for name, value in (("codebook_init", "kmeans"), ("restart_threshold", 0.1))
        ),
        *(
            ({**kind, "entropy_weight": 0.1}, r"entropy_weight 0\.1 does nothing .* for vq, l2, lfq: leave it at 0\.0")
            for kind in ({"quantizer": "gumbel"}, {"quantizer": "ema"}, FSQ)
        ),
        ({"levels": (8, 8)}, r"levels \(8, 8\) does nothing with quantizer vq, it is for fsq"),
        ({"restart_threshold": -0.1}, "restart_threshold .* must not be negative, got -0.1"),
        ({"quantizer": "ema", "restart_threshold": -0.1}, "restart_threshold .* must not be negative, got -0.1"),
        ({"quantizer": "gumbel", "tau": (0.9, 0.0, 10)}, "tau .* must stay above 0, got 0.9 to 0.0"),
        ({"quantizer": "gumbel", "tau": (-1.0, 0.1, 10)}, "tau .* must stay above 0"),
        ({"disc": "none", "lecam": 0.1}, "lecam regularises the discriminator and disc is none"),
        ({"disc": "none", "r1": 0.1}, "r1 regularises the discriminator and disc is none"),
        ({"disc_start": -1}, "must not be negative, got -1 and 0"),
        ({"disc_warmup": -2}, "must not be negative, got 0 and -2"),
        ({"attention": (8, 12)}, "attention 12 matches no level, whose sides at 32 px are 32, 16, 8"),
        ({"image_size": 64}, "attention 8 matches no level, whose sides at 64 px are 64, 32, 16"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        zoo.create_model("vqgan_tiny", **settings)
    assert "\n" not in str(caught.value)


def test_every_preset_is_built():
    for name in zoo.list_models("*"):
        if issubclass(zoo.model_info(name).cls, zoo.models.vqgan.VQGAN):
            with torch.device("meta"):
                zoo.create_model(name)
