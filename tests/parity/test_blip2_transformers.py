"""BLIP-2 as a whole, written for transformers and read by it: both stages, losses, logits, texts, and back."""

import pytest
import torch

import zoo
from zoo.checkpoints.published.hf_blip2 import save_blip2
from zoo.language.splice import IGNORED

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
CAPTIONS = ["a red cat", "dogs", "a tree in snow"]


def drawn_anew(name, **settings):
    torch.manual_seed(1)
    model = zoo.create_model(name, vision="tiny_eva", **settings).eval()
    with torch.no_grad():
        for module in [model, *model.frozen.values()]:
            for key, parameter in module.named_parameters():
                if key != "temp":
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def normalised(model, images):
    tower = model.frozen["vision"]
    return (images - tower.mean) / tower.std


def same_epsilon(reference):
    """LAVIS's last norm of the image encoder has 1e-5; transformers has one epsilon for all."""
    reference.vision_model.post_layernorm.eps = 1e-5
    return reference.eval()


@torch.no_grad()
def test_first_stage(tmp_path):
    from transformers import Blip2ForImageTextRetrieval

    model = drawn_anew("blip2_stage1_tiny")
    folder = save_blip2(model, tmp_path / "hf")
    reference, report = Blip2ForImageTextRetrieval.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    reference = same_epsilon(reference)
    reference.config.image_token_index = None
    pixels, (ids, mask) = normalised(model, IMAGES), model.tokenise(CAPTIONS)
    theirs = reference(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_image_text_matching_head=True)
    ours = model.match(model._read(model._features(IMAGES)), ids, mask)
    assert theirs.logits_per_image.std() > 0.05
    torch.testing.assert_close(ours, theirs.logits_per_image, rtol=0, atol=2e-5)
    theirs = reference(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_image_text_matching_head=False)
    contrast = model.retrieve(IMAGES, CAPTIONS).contrast
    assert contrast.std() > 0.02
    torch.testing.assert_close(contrast, theirs.logits_per_image, rtol=0, atol=2e-5)

    again = zoo.create_model("blip2_stage1_tiny", vision="tiny_eva", weights=folder).eval()
    for name, value in again.state_dict().items():
        if name != "temp" and not name.startswith("Qformer.cls."):
            torch.testing.assert_close(value, model.state_dict()[name], msg=name)


@pytest.mark.parametrize("language", ["tiny_opt", "tiny_llama", "tiny_t5"])
@torch.no_grad()
def test_second_stage(tmp_path, language):
    from transformers import Blip2ForConditionalGeneration

    model = drawn_anew("blip2_stage2_tiny", language_model=language, prompt="")
    folder = save_blip2(model, tmp_path / "hf")
    reference, report = Blip2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    reference = same_epsilon(reference)
    pixels, codec = normalised(model, IMAGES), model.language.text
    tokens = model.language_inputs(IMAGES)
    features = reference.get_image_features(pixel_values=pixels)
    features = getattr(features, "pooler_output", features)
    assert tokens.std() > 0.05
    torch.testing.assert_close(tokens, features, rtol=0, atol=3e-5)

    pad = reference.config.image_token_index
    if model.language.encoder_decoder:
        read, target = model._read(tokens, [("", c) for c in CAPTIONS])
        ids = torch.tensor([[pad] * 4 + [codec.end]] * 3)
        theirs = reference(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), labels=target)
        logits, labels, found = theirs.logits, target, model.language.loss(read, target)
    else:
        read, _ = model._read(tokens, [("", c) for c in CAPTIONS])
        ids = torch.full(read.labels.shape, codec.pad, dtype=torch.int64)
        for i, caption in enumerate(CAPTIONS):
            row = [pad] * 4 + [*codec.start, *codec.ids(caption + "\n")][:16]
            ids[i, : len(row)] = torch.tensor(row)
        assert torch.equal(read.labels[:, 4:] != IGNORED, read.mask[:, 4:])  # without a prompt all is learned
        theirs = reference(pixel_values=pixels, input_ids=ids, attention_mask=read.mask.long(), labels=read.labels)
        logits, labels, found = theirs.logits[:, :-1], read.labels[:, 1:], model.language.loss(read)
    words = logits[..., :-1]  # theirs has one more, <image>
    expected = torch.nn.functional.cross_entropy(words.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert expected > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)

    for settings in ({"num_beams": 1}, {"num_beams": 3, "length_penalty": -1.0}):
        said = model.caption(IMAGES, max_new_tokens=6, **settings)
        ids = torch.tensor([[pad] * 4 + (list(codec.start) or [codec.end])] * 3)
        ends = [codec.end] if model.language.encoder_decoder else [codec.end, codec.ids("\n")[-1]]
        written = reference.generate(
            pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6,
            eos_token_id=ends, pad_token_id=codec.pad, **settings,
        )  # fmt: skip
        theirs = [codec.text(row).split("\n")[0].strip() for row in written.tolist()]
        assert said == theirs
        assert len(set(said)) > 0

    again = zoo.create_model("blip2_stage2_tiny", vision="tiny_eva", language_model=language, weights=folder)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))


def test_what_transformers_has_no_class_for(tmp_path):
    for settings in ({"qformer": {"mixing": "joint"}}, {"vision": "tiny_random"}):
        model = zoo.create_model("blip2_stage2_tiny", **({"vision": "tiny_eva"} | settings))
        with pytest.raises(ValueError, match="cannot be written") as caught:
            save_blip2(model, tmp_path)
        assert "\n" not in str(caught.value)
