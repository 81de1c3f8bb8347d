"""BEiT on images that are no squares: masks, objective, pictures, positions, files and the command line."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from published_folders import randomised
from toys import BlurredImageData, quiet_trainer

import zoo
from zoo.checkpoints.export import save_weights
from zoo.checkpoints.published.beit_resizing import resize_positions
from zoo.checkpoints.published.hf_beit import save_hf
from zoo.nn.relative_position import relative_position_index, resize_table
from zoo.sampling.patch_masks import BlockwiseMask, random_mask
from zoo.tokens import sides_of

WIDE, TALL, PATCH = (32, 48), (48, 32), 8
#: every way to know where a patch is
POSITIONS = [
    {"relative_positions": relative, "absolute_positions": absolute}
    for relative, absolute in itertools.product(("shared", "per_block", "none"), (False, True))
]
TABLE = "relative_position_bias_table"


def tiny(size, name="beit_tiny", **settings):
    return randomised(zoo.create_model(name, image_size=size, drop_path=0.0, **settings), size=0.3)


def batch_of(size, count=3):
    images = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))
    return {"image": images, "label": torch.arange(count), "index": torch.arange(count) + 4}


@pytest.mark.parametrize("settings", POSITIONS)
@pytest.mark.parametrize("name", ["beit_tiny", "beit_classifier_tiny"])
def test_two_equal_sides_are_the_square_bit_for_bit(name, settings):
    losses = []
    for size in (32, (32, 32)):
        torch.manual_seed(0)
        model = zoo.create_model(name, image_size=size, **settings)
        torch.manual_seed(1)
        losses.append((model.losses(batch_of((32, 32)))["loss"].item(), list(model.state_dict().values())))
        assert model.image_size == 32
    assert losses[0][0] == losses[1][0]
    assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1], strict=True))


@pytest.mark.parametrize("settings", POSITIONS)
@pytest.mark.parametrize("size", [WIDE, TALL])
def test_the_loss_is_the_cross_entropy_at_the_hidden_patches(size, settings):
    model, batch = tiny(size, **settings).eval(), batch_of(size)
    assert model.grid == (size[0] // 8, size[1] // 8)
    assert model.image_size == size
    mask = model.masks(batch)
    assert mask.shape == (3, *model.grid)
    view = F.interpolate(batch["image"], (size[0] // 2, size[1] // 2), mode="bicubic", antialias=True).clamp(0, 1)
    ids = model.tokenizer.encode(view).grid()
    with torch.no_grad():
        logits = model.vit.token_logits(batch["image"] * 2 - 1, mask.flatten(1)).unflatten(1, model.grid)
        found = model.losses(batch)["loss"]
    each = [
        -logits[b, y, x].log_softmax(0)[ids[b, y, x]]
        for b, y, x in itertools.product(range(3), range(model.grid[0]), range(model.grid[1]))
        if mask[b, y, x]
    ]
    torch.testing.assert_close(found, torch.stack(each).mean())
    given = batch | {"token_image": view}
    assert torch.equal(model.losses(given)["loss"], model.losses(batch)["loss"])


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (2, 12), (3, 5)])
def test_masks_of_both_kinds_fill_rectangles(grid):
    hidden = torch.zeros(grid, dtype=torch.bool)
    count = round(0.4 * grid[0] * grid[1])
    for seed in range(60):
        block = BlockwiseMask(grid, count, 1)(random.Random(seed))
        uniform = random_mask(grid, count, random.Random(seed))
        assert block.shape == uniform.shape == grid
        assert block.sum() <= count == uniform.sum()
        hidden |= block
    assert hidden.all()


@pytest.mark.parametrize("masking", ["blockwise", "random"])
@pytest.mark.parametrize("size", [WIDE, TALL])
def test_pictures_show_what_is_hidden(size, masking):
    model, batch = tiny(size, masking=masking).eval(), batch_of(size)
    rows = model.picture_rows(batch["image"][:2], batch)
    assert list(rows) == ["original", "masked_input", "tokenizer", "predicted_under_mask", "predicted_from_all"]
    assert {tuple(row.shape) for row in rows.values()} == {(2, 3, *size)}
    hidden = model.masks(batch)[:2].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    assert (rows["masked_input"][hidden] == 0.5).all()
    assert torch.equal(rows["masked_input"][~hidden], rows["original"][~hidden])
    tokens = model.encode(batch["image"])
    assert tokens.grid().shape == (3, *model.grid)
    assert zoo.reconstruct(model, batch["image"]).shape == (3, 3, size[0] // 2, size[1] // 2)
    assert [tuple(m.shape[-2:]) for m in model.forward_intermediates(batch["image"])] == [model.grid] * 4


@pytest.mark.parametrize("size", [WIDE, TALL])
def test_a_sequence_is_predicted_of_them_too(size):
    model, batch = tiny(size, tokenizer="seed_stage2_tiny:random").eval(), batch_of(size)
    assert model.view_size == (32, 32)
    assert model.encode(batch["image"]).ids.shape == (3, 4)
    assert model.losses(batch)["loss"].isfinite()


def test_views_and_images_of_another_size_are_named():
    model, batch = tiny(WIDE), batch_of(WIDE)
    sentence = r"is 24x16, this model needs 16x24 .* set data\.token_image_size to \[16, 24\]$"
    with pytest.raises(ValueError, match=sentence):
        model.losses(batch | {"token_image": torch.rand(3, 3, 24, 16)})
    with pytest.raises(ValueError, match="images are 48x32, this model needs 32x48"):
        model.losses(batch_of(TALL))
    with pytest.raises(ValueError, match="image size 32x44 is not divisible by patch_size 8"):
        tiny((32, 44))
    for size in ((32, 48, 3), (32,), (32, 0), 0):
        with pytest.raises(ValueError, match=r"a side in pixels, or \(height, width\), got"):
            sides_of(size)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["beit_tiny", "beit_classifier_tiny"])
@pytest.mark.parametrize("kind", ["exported", "checkpoint"])
def test_files_of_ours_keep_both_sides(name, kind, tmp_path):
    model = tiny(WIDE, name).eval()
    if kind == "exported":
        path = save_weights(model, tmp_path / "model.safetensors")
    else:
        trainer = quiet_trainer(tmp_path, max_steps=0)
        trainer.fit(model, BlurredImageData(image_size=32))
        trainer.save_checkpoint(path := tmp_path / "model.ckpt")
        again = type(model).load_from_checkpoint(path)
        assert again.vit.grid == (4, 6)
    again = zoo.create_model(f"ckpt:{path}").eval()
    assert again.init_args()["image_size"] == [32, 48]
    assert again.image_size == WIDE
    images = batch_of(WIDE)["image"]
    found = [m(images) if name != "beit_tiny" else m.encode(images).ids for m in (model.eval(), again)]
    assert torch.equal(*found)


@pytest.mark.parametrize("settings", POSITIONS)
@pytest.mark.parametrize("target", [TALL, (64, 96), (32, 32), (56, 40)])
@pytest.mark.parametrize("name", ["beit_tiny", "beit_classifier_tiny"])
def test_positions_are_carried_from_one_rectangle_to_another(name, target, settings, tmp_path):
    """Transposed ones have as many positions, and stand in another order all the same."""
    model = tiny(WIDE, **settings)
    path = str(save_weights(model, tmp_path / "model.safetensors"))
    found = zoo.create_model(name, image_size=target, **settings, weights=path)
    grid, other = (target[0] // 8, target[1] // 8), found.state_dict()
    for key, value in model.state_dict().items():
        if key.endswith(TABLE):
            assert torch.equal(other[key], resize_table(value, (4, 6), grid))
        elif key == "vit.pos_embed":
            assert torch.equal(other[key], resize_positions(value, grid, (4, 6)))
        elif key in other:
            assert torch.equal(other[key], value), key


def test_positions_are_resized_like_those_of_squares():
    """Of a square the same as ever; of a rectangle, columns alone change where the rows are as many."""
    square = torch.randn(1, 17, 5)
    patches = F.interpolate(square[:, 1:].mT.unflatten(2, (4, 4)), (6, 8), mode="bicubic").flatten(2).mT
    torch.testing.assert_close(resize_positions(square, (6, 8), (4, 4))[:, 1:], patches)
    columns = torch.randn(1, 1, 6, 5).expand(1, 4, 6, 5)  # every row the same
    positions = torch.cat([torch.zeros(1, 1, 5), columns.reshape(1, 24, 5)], 1)
    wider = resize_positions(positions, (3, 9), (4, 6))[:, 1:].unflatten(1, (3, 9))
    torch.testing.assert_close(wider, wider[:, :1].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("told", ["by its indices", "by nothing"])
@pytest.mark.parametrize("relative", ["shared", "per_block"])
def test_a_foreign_file_tells_its_grid_by_its_indices_or_is_refused(relative, told, tmp_path):
    settings = {"relative_positions": relative, "absolute_positions": True}
    model = tiny(WIDE, **settings)
    state = {name.removeprefix("vit."): value for name, value in model.state_dict().items()}
    if told == "by its indices":  # as unilm saves them
        index = relative_position_index((4, 6))
        state |= {name.replace(TABLE, "relative_position_index"): index for name in state if name.endswith(TABLE)}
    torch.save(state, path := tmp_path / "unilm.pth")
    same = zoo.create_model("beit_tiny", image_size=WIDE, **settings, weights=path)
    assert torch.equal(same.vit.pos_embed, model.vit.pos_embed)
    for target in (TALL, (64, 96)):
        if told == "by its indices":
            found = zoo.create_model("beit_tiny", image_size=target, **settings, weights=path)
            assert torch.equal(found.vit.pos_embed, resize_positions(model.vit.pos_embed, found.grid, (4, 6)))
            for name, value in found.state_dict().items():
                if name.endswith(TABLE):
                    assert torch.equal(value, resize_table(model.state_dict()[name], (4, 6), found.grid))
        elif target != TALL:  # which has as many of everything
            with pytest.raises(
                ValueError, match=r"belongs to no square grid, and nothing in the file or beside it says"
            ):
                zoo.create_model("beit_tiny", image_size=target, **settings, weights=path)


@pytest.mark.parametrize("names", ["v5", "v4"])
@pytest.mark.parametrize("name", ["beit_tiny", "beit_classifier_tiny"])
@pytest.mark.parametrize("size", [WIDE, TALL])
def test_what_is_written_for_transformers_computes_the_same_there(size, name, names, tmp_path):
    """Its own BEiT fails at absolute positions of a rectangle, and exchanges the sides of relative ones."""
    import transformers

    cls = transformers.BeitForMaskedImageModeling if name == "beit_tiny" else transformers.BeitForImageClassification
    for settings in POSITIONS:
        model = tiny(size, name, **settings).eval()
        if settings != {"relative_positions": "none", "absolute_positions": False}:
            with pytest.raises(ValueError, match=f"sees images of {size[0]}x{size[1]}: only one of squares"):
                save_hf(model, tmp_path, names)
            continue
        save_hf(model, tmp_path, names)
        theirs = cls.from_pretrained(tmp_path, attn_implementation="eager").eval()
        assert theirs.config.image_size == list(size)
        expected, found = logits(theirs, model, batch_of(size), name)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        again = zoo.create_model(name, image_size=size, **settings, weights=tmp_path)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def logits(theirs, model, batch, name):
    x = model.to_network_range(batch["image"])
    with torch.no_grad():
        if name != "beit_tiny":
            return theirs(x).logits, model(batch["image"])
        mask = model.flat(model.masks(batch), batch["image"])
        return theirs(x, bool_masked_pos=mask).logits, model.vit.token_logits(x, mask)


@pytest.mark.parametrize("name", ["beit_tiny", "beit_classifier_tiny"])
@pytest.mark.parametrize("size", [WIDE, TALL])
def test_what_transformers_writes_computes_the_same_here(size, name, tmp_path):
    """With its own BEiT, absolute positions of a rectangle can be made and not be used."""
    import transformers

    cls = transformers.BeitForMaskedImageModeling if name == "beit_tiny" else transformers.BeitForImageClassification
    for settings in (settings for settings in POSITIONS if not settings["absolute_positions"]):
        config = transformers.BeitConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=list(size),
            patch_size=8, vocab_size=64, num_labels=9, use_mask_token=True, layer_norm_eps=1e-6,
            use_absolute_position_embeddings=False, layer_scale_init_value=0.1,
            use_relative_position_bias=settings["relative_positions"] == "per_block",
            use_shared_relative_position_bias=settings["relative_positions"] == "shared", attn_implementation="eager",
        )  # fmt: skip
        theirs = randomised(cls(config), size=0.3).eval()
        theirs.save_pretrained(tmp_path)
        model = zoo.create_model(name, image_size=size, **settings, weights=tmp_path).eval()
        expected, found = logits(theirs, model, batch_of(size), name)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [WIDE, TALL])
def test_timm_computes_the_same(size, tmp_path):
    from timm.models.beit import Beit

    for settings in POSITIONS:
        theirs = randomised(
            Beit(
                img_size=size, patch_size=PATCH, embed_dim=32, depth=2, num_heads=4, num_classes=9, init_values=0.1,
                use_abs_pos_emb=settings["absolute_positions"],
                use_rel_pos_bias=settings["relative_positions"] == "per_block",
                use_shared_rel_pos_bias=settings["relative_positions"] == "shared",
            ),
            size=0.3,
        ).eval()  # fmt: skip
        torch.save(theirs.state_dict(), path := tmp_path / "timm.pth")
        model = zoo.create_model("beit_classifier_tiny", image_size=size, **settings, weights=path).eval()
        images = batch_of(size)["image"]
        with torch.no_grad():
            torch.testing.assert_close(model(images), theirs(model.to_network_range(images)), atol=2e-5, rtol=1e-5)


# ---------------------------------------------------------------------- on top of it, and at the command line


def test_a_second_stage_models_its_tokens(tmp_path):
    path = save_weights(tiny(WIDE), tmp_path / "beit.safetensors")
    maskgit = zoo.create_model("maskgit_tiny", tokenizer=f"ckpt:{path}").eval()
    images = batch_of(WIDE)["image"]
    assert maskgit.spec.grid_shape == (4, 6)
    for order in ("confidence", "halton"):
        assert maskgit.generate(labels=[1, 2], order=order, as_tokens=True).grid().shape == (2, 4, 6)
    mask = torch.zeros(WIDE, dtype=torch.bool)
    mask[8:16, 24:40] = True
    kept = maskgit.inpaint(images, mask, [0, 1, 2], as_tokens=True).grid() == maskgit.encode(images).grid()
    cells = F.max_pool2d(mask[None].float(), 8)[0].bool()
    assert kept[:, ~cells].all()
    assert maskgit.edit(images, [0, 1, 2], box=(8, 8, 8, 16)).shape == images.shape
    with pytest.raises(ValueError, match="outpainting needs square windows, and this tokenizer takes images of 32x48"):
        maskgit.outpaint(images, labels=[0, 1, 2])
    beit = zoo.create_model("beit_tiny", image_size=WIDE, tokenizer=f"ckpt:{path}")
    assert beit.view_size == WIDE


@pytest.fixture
def folder(in_tmp):
    from PIL import Image

    for name in ("cats", "dogs"):
        (in_tmp / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(0, 256, (40 + 9 * i, 70, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(in_tmp / "images" / name / f"{i}.png")
    return "images"


CONFIG = """
model:
  class_path: {cls}
  init_args:
    image_size: ${{data.init_args.image_size}}
    patch_size: 8
    width: 16
    depth: 1
    heads: 2
    {more}
data:
  class_path: ImageFolderData
  init_args: {{root: images, image_size: [32, 48], batch_size: 4, train_transform: {transform}{view}}}
trainer: {{max_steps: 1, accelerator: cpu, limit_val_batches: 1, enable_progress_bar: false, default_root_dir: run}}
"""


@pytest.mark.parametrize(
    ("cls", "more", "transform", "view"),
    [
        ("BEiT", "tokenizer: dvae_tiny:random", "beit", ", token_image_size: [16, 24]"),
        ("BEiTClassifier", "num_classes: 2", "finetune", ""),
    ],
)
def test_a_recipe_says_the_sides_once(cls, more, transform, view, folder, in_tmp, run_cli):
    (in_tmp / "rectangles.yaml").write_text(CONFIG.format(cls=cls, more=more, transform=transform, view=view))
    code, _, err = run_cli("fit", "--config", "rectangles.yaml")
    assert code == 0, err
    model = zoo.create_model("ckpt:run/last.ckpt")
    assert model.init_args()["image_size"] == [32, 48]
    given = ["--data.image_size=[48,32]", "--data.token_image_size=[24,16]"] if view else ["--data.image_size=[48,32]"]
    code, out, err = run_cli("fit", "--config", "rectangles.yaml", *given, "--print_config")
    assert code == 0, err
    assert out.count("image_size:\n    - 48\n    - 32\n") + out.count("image_size:\n      - 48\n      - 32\n") == 2, out
