import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from toys import BlurredImages, TinyTokenizer

from zoo.metrics.reconstruction import ReconstructionReport, reconstruct_batch, reference_view
from zoo.tokens import Segment, TokenSpec


@pytest.fixture
def pair():
    images = BlurredImages(6, 16, 0).images
    model = TinyTokenizer()
    with torch.no_grad():
        tokens = model.encode(images)
        return model, images, model.decode(tokens), tokens.ids


def test_values_are_those_of_their_definitions_over_all_images(pair):
    model, images, decoded, ids = pair
    report = ReconstructionReport(model.spec, floor=True)
    for part in (slice(0, 4), slice(4, 6)):
        report.update(images[part], decoded[part], ids[part])
    values = report.compute()
    mse = (images / 255 - decoded.clamp(0, 1)).square().mean()
    assert values["psnr"] == pytest.approx(-10 * mse.log10().item(), abs=1e-4)
    ssim = structural_similarity_index_measure(decoded.clamp(0, 1), images / 255, data_range=1.0)
    assert values["ssim"] == pytest.approx(ssim.item(), abs=1e-5)
    assert values["codebook_usage"] == pytest.approx(ids.unique().numel() / 16)
    assert values["dead_codes"] == 16 - ids.unique().numel()
    assert {"perplexity", "lpips_lite0", "fd_lite0", "fd_lite0_floor"} <= set(values)
    assert "rfid" not in values
    assert all(type(v) is float for v in values.values())


def test_reset_forgets(pair):
    model, images, decoded, ids = pair
    report = ReconstructionReport(model.spec, full=False)
    report.update(images, 0 * decoded, ids)
    report.reset()
    report.update(images, decoded, ids)
    again = ReconstructionReport(model.spec, full=False)
    again.update(images, decoded, ids)
    assert report.compute() == again.compute()
    assert report.protocol() == again.protocol()


def test_protocol_knows_images_and_weights(pair):
    model, images, decoded, ids = pair
    report = ReconstructionReport(model.spec)
    report.update(images, decoded, ids)
    facts = report.protocol()
    assert facts["num_images"] == 6
    assert facts["image_shape"] == [16, 16]
    assert facts["fd_lite0"]["sha256"].startswith("57934424")  # as the name of the file says
    assert facts["fd_lite0"]["resize"].startswith("112x112")
    other = ReconstructionReport(model.spec)
    other.update(images.flip(0), decoded, ids)
    assert other.protocol()["images_sha256"] != facts["images_sha256"]


def test_usage_per_segment():
    spec = TokenSpec((Segment("global", (2,), 0, 4), Segment("local", (1, 2), 4, 8)), dim=1)
    report = ReconstructionReport(spec, full=False)
    images = torch.rand(2, 3, 4, 4)
    report.update(images, images, torch.tensor([[0, 1, 4, 5], [0, 0, 11, 5]]))
    values = report.compute()
    assert values["global_codebook_usage"] == pytest.approx(2 / 4)
    assert values["local_codebook_usage"] == pytest.approx(3 / 8)
    assert values["codebook_usage"] == pytest.approx(5 / 12)


def test_continuous_tokens_have_no_usage():
    spec = TokenSpec((Segment("x", (2, 2)),), dim=8, vocabulary=None)
    report = ReconstructionReport(spec, full=False)
    images = torch.rand(2, 3, 4, 4)
    report.update(images, images * 0.9)
    assert set(report.compute()) == {"psnr"}


def test_lower_precision_does_not_reach_the_metrics(pair):
    model, images, decoded, ids = pair
    plain, autocast = ReconstructionReport(model.spec), ReconstructionReport(model.spec)
    plain.update(images, decoded, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast.update(images, decoded, ids)
    assert plain.compute() == autocast.compute()


def test_reference_is_the_view_of_the_right_size():
    batch = {"image": torch.zeros(1, 3, 8, 8), "token_image": torch.ones(1, 3, 4, 4)}
    assert reference_view(batch, torch.zeros(1, 3, 8, 8)) is batch["image"]
    assert reference_view(batch, torch.zeros(1, 3, 4, 4)) is batch["token_image"]
    batch["image"][:, :, 4:] = 1
    resized = reference_view(batch, torch.zeros(1, 3, 6, 6))
    assert resized.shape == (1, 3, 6, 6)
    assert resized[0, 0, :, 0].tolist() == pytest.approx([0, 0, 0, 1, 1, 1], abs=0.15)
    with pytest.raises(ValueError, match="reconstructions are 6x4, images 8x8"):
        reference_view(batch, torch.zeros(1, 3, 6, 4))
    with pytest.raises(ValueError, match="with_images=true"):
        reference_view({"ids": torch.zeros(1, 4)}, torch.zeros(1, 3, 6, 4))
    said = (
        "^the batch has no 'image', but ids, and the comparison of reconstructions with their originals reads pixels: "
        "write the token shards with --trainer.callbacks.with_images=true$"
    )
    with pytest.raises(ValueError, match=said):
        reconstruct_batch(TinyTokenizer(), {"ids": torch.zeros(1, 4)})
