"""Draw rows of images with their names, captions and curves, with Pillow alone; show pictures in loggers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

LABEL_HEIGHT = 14
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


def log_picture(trainer: Trainer, name: str, picture: Any) -> None:
    """Hand a Pillow image to those of the trainer's loggers that show images."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            from torchvision.transforms.functional import pil_to_tensor

            logger.experiment.add_image(name, pil_to_tensor(picture), trainer.global_step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)


def image_rows(rows: Mapping[str, Float[Tensor, "b 3 h w"]], border: int = 2) -> Any:
    """A picture with one labelled row of images per entry.

    Args:
        rows: name -> images, clamped to [0, 1]; enlarged to the size of the largest ones.
        border: between the images, in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.utils import make_grid

    height = max(images.shape[-2] for images in rows.values())
    width = max(images.shape[-1] for images in rows.values())
    grids = []
    for images in rows.values():
        images = images.detach().float().cpu().clamp(0, 1)
        if images.shape[-2:] != (height, width):
            images = torch.nn.functional.interpolate(images, (height, width), mode="nearest")
        grids.append(make_grid(images, nrow=len(images), padding=border, pad_value=1.0))
    row_height = grids[0].shape[1] + LABEL_HEIGHT
    picture = Image.new("RGB", (max(g.shape[2] for g in grids), row_height * len(grids)), "white")
    draw = ImageDraw.Draw(picture)
    for i, (name, grid) in enumerate(zip(rows, grids, strict=True)):
        draw.text((border, i * row_height + 1), name, fill="black", font=ImageFont.load_default(10))
        pixels = (grid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture.paste(Image.fromarray(pixels), (0, i * row_height + LABEL_HEIGHT))
    return picture


def caption_sheet(
    images: Float[Tensor, "b 3 h w"], lines: Sequence[Sequence[str]], columns: int = 4, width: int = 200
) -> Any:
    """Images with lines of text below each, the first of them in black and the others in grey.

    Args:
        images: clamped to [0, 1].
        lines: of each image; long ones are broken, and empty ones say that there is nothing.
        columns: images per row.
        width: of a column in pixels.
    """
    from textwrap import wrap

    from PIL import Image, ImageDraw, ImageFont

    font, letters = ImageFont.load_default(11), width // 6
    wrapped = [[wrap(line or "(nothing)", letters)[:4] for line in some] for some in lines]
    broken = [[(i, part) for i, parts in enumerate(some) for part in parts] for some in wrapped]
    height = images.shape[-2] + 14 * max(map(len, broken), default=0) + 12
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for i, (image, parts) in enumerate(zip(pixels, broken, strict=True)):
        left, top = i % columns * width + 4, i // columns * height + 4
        sheet.paste(Image.fromarray(image), (left, top))
        for row, (number, text) in enumerate(parts):
            place = (left, top + image.shape[0] + 2 + 14 * row)
            draw.text(place, text, fill="gray" if number else "black", font=font)
    return sheet


def line_plots(
    series: Mapping[str, Sequence[tuple[float, float]]], width: int = 320, height: int = 200, x_name: str = "step"
) -> Any:
    """One small panel per quantity; curves that differ only in what stands before the slash share a panel.

    Args:
        series: ``train/loss`` and the like -> (step, value) pairs in order.
        width: of a panel in pixels.
        height: of a panel in pixels.
        x_name: what stands before the range of the horizontal axis.
    """
    from PIL import Image, ImageDraw, ImageFont

    panels: dict[str, dict[str, Sequence[tuple[float, float]]]] = {}
    for name, points in series.items():
        stage, _, quantity = name.rpartition("/")
        panels.setdefault(quantity, {})[stage] = points
    columns = min(3, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (columns * width, max(1, rows) * height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for index, (quantity, curves) in enumerate(sorted(panels.items())):
        left, top = index % columns * width + 8, index // columns * height + 4
        x0, x1, y0, y1 = left, left + width - 20, top + 28, top + height - 24
        xs = [x for points in curves.values() for x, _ in points]
        ys = [y for points in curves.values() for _, y in points]
        low, high, first, last = min(ys), max(ys), min(xs), max(xs)
        draw.text((left, top), f"{quantity}   {low:.4g} to {high:.4g}", fill="black", font=font)
        draw.text((left, y1 + 4), f"{x_name} {first:.0f} to {last:.0f}", fill="gray", font=font)
        draw.rectangle((x0, y0, x1, y1), outline="lightgray")
        for i, (stage, points) in enumerate(sorted(curves.items())):
            colour = COLOURS[i % len(COLOURS)]
            draw.text((left + 60 * i, top + 13), stage, fill=colour, font=font)
            line = [
                (
                    x0 + (x1 - x0) * ((x - first) / (last - first) if last > first else 0.5),
                    y1 - (y1 - y0) * ((y - low) / (high - low) if high > low else 0.5),
                )
                for x, y in points
            ]
            if len(line) > 1:
                draw.line(line, fill=colour, width=1)
            else:  # a dot that can be seen, with its value, because the box has nothing else
                (x, y), value = line[0], points[0][1]
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
                draw.text((x + 8, y - 6), f"{value:.4g}", fill=colour, font=font)
    return picture
