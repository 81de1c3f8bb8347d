"""BEiT on tokenizers whose ids belong to no patch: SEED's causal sequence, VQ-VAE-2's two grids."""

import pytest
import torch

import zoo
from zoo.checkpoints.export import save_weights
from zoo.checkpoints.published.hf_beit import save_hf


@pytest.fixture
def batch():
    return {"image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), "index": torch.arange(4)}


@pytest.fixture
def beit():
    model = zoo.create_model("beit_tiny", tokenizer="seed_stage2_tiny:random", drop_path=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias_table"):
                torch.nn.init.normal_(parameter)
    return model


def test_every_token_counts_and_hidden_patches_are_not_seen(beit, batch):
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    ids = beit.tokenizer.encode(batch["image"]).ids
    terms = beit.losses(batch | {"mask": mask})
    logits = beit.vit.token_logits(beit.to_network_range(batch["image"]), mask.flatten(1))
    assert logits.shape == (4, 4, beit.spec.vocab_size)
    chosen = logits.log_softmax(-1).gather(-1, ids[..., None])
    torch.testing.assert_close(terms["loss"], -chosen.mean())
    assert terms["accuracy"].item() == (logits.argmax(-1) == ids).float().mean().item()
    assert terms["masked"].item() == 0.5
    with pytest.raises(ValueError, match="predicts no token per patch"):
        beit.vit.masked_logits(beit.to_network_range(batch["image"]), mask.flatten(1))

    other = batch["image"].clone()
    other[:, :, :16] = 255 - other[:, :, :16]
    torch.testing.assert_close(beit.losses(batch | {"image": other, "ids": ids, "mask": mask})["loss"], terms["loss"])
    other[:, :, 16:] = 255 - other[:, :, 16:]
    changed = beit.losses(batch | {"image": other, "ids": ids, "mask": mask})["loss"]
    assert (changed - terms["loss"]).abs() > 1e-4


def test_it_learns_the_tokens_of_half_hidden_images(beit, batch):
    torch.manual_seed(0)
    ids = torch.randint(beit.spec.vocab_size, (4, beit.spec.num_tokens))
    optimizer = torch.optim.AdamW(beit.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        beit.losses(batch | {"ids": ids})["loss"].backward()
        optimizer.step()
    found = beit.eval().encode(batch["image"], beit.masks(batch))
    assert (found.ids == ids).float().mean() > 0.9
    assert torch.equal(beit.complete(batch["image"], beit.masks(batch)).ids, found.ids), "predicted as a whole"


def test_two_grids_keep_their_codebooks_and_are_drawn(batch):
    beit = zoo.create_model("beit_tiny", tokenizer="vqvae2_tiny:random").eval()
    with torch.no_grad():
        beit.vit.lm_head.bias.copy_(torch.linspace(-9, 9, beit.spec.vocab_size))  # wants the second codebook
    for segment in beit.spec.segments:
        ids = beit.encode(batch["image"]).ids[:, beit.spec.span(segment.name)]
        assert ids.min() >= segment.offset
        assert ids.max() < segment.offset + segment.size
    rows = beit.picture_rows(batch["image"], batch)
    assert list(rows) == ["original", "masked_input", "tokenizer", "predicted_under_mask", "predicted_from_all"]
    assert all(row.shape == (4, 3, 32, 32) for row in rows.values())
    assert not torch.equal(rows["tokenizer"], rows["predicted_under_mask"])
    assert beit.losses(batch)["loss"].isfinite()


def test_the_tokenizer_sees_its_own_size():
    beit = zoo.create_model("beit_tiny", image_size=48, tokenizer="seed_stage2_tiny:random")
    images = torch.rand(2, 3, 48, 48)
    assert beit.view_size == (32, 32)
    view = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(beit.tokenize({"image": images}), beit.tokenizer.encode(view).ids)
    with pytest.raises(ValueError, match="is 16x16, this model needs 32x32 for its 4 tokens"):
        beit.tokenize({"image": images, "token_image": torch.rand(2, 3, 16, 16)})


def test_a_classifier_starts_from_it_and_transformers_has_no_such_model(beit, tmp_path):
    save_weights(beit, tmp_path / "beit.safetensors")
    classifier = zoo.create_model("beit_classifier_tiny", weights=str(tmp_path / "beit.safetensors"))
    torch.testing.assert_close(classifier.vit.blocks[1].mlp.fc1.weight, beit.vit.blocks[1].mlp.fc1.weight)
    again = zoo.create_model(
        "beit_tiny", tokenizer="seed_stage2_tiny:random", weights=str(tmp_path / "beit.safetensors")
    )
    torch.testing.assert_close(again.vit.sequence.pos_embed, beit.vit.sequence.pos_embed)
    with pytest.raises(ValueError, match="only classifiers and BEiT on a grid fit"):
        save_hf(beit, tmp_path / "hf")
