"""Speed and memory of ours against the reference packages, as ratios measured in one run.

    python benchmarks/throughput.py dvae --threads 2 --out benchmarks/results/throughput_dvae.json
    python benchmarks/throughput.py beit --threads 2 --out benchmarks/results/throughput_beit.json
    python benchmarks/throughput.py blip2 --threads 2 --out benchmarks/results/throughput_blip2.json

Ours and the reference alternate, so that a change of the machine's load hits both; the ratio is that of the medians.
Peak memory is the resident set of a fresh process per side.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _record import environment, run, write
from torch import Tensor

from zoo.files.strict_json import dump_json

Step = Callable[[], Tensor]


def dvae_ours(size: int, batch: int) -> Step:
    """Encode and decode one batch of images in [0, 1] with the published architecture."""
    import zoo

    torch.manual_seed(0)
    model = zoo.create_model("dvae_openai", image_size=size).eval()
    images = torch.rand(batch, 3, size, size)

    def step() -> Tensor:
        with torch.inference_mode():
            tokens = model.encode(images)
            model.decode(tokens)
            return tokens.ids

    return step


def dvae_reference(size: int, batch: int) -> Step:
    """The same with OpenAI's package, written as in its notebook, and with the same weights."""
    import dall_e

    import zoo

    torch.manual_seed(0)
    ours = zoo.create_model("dvae_openai", image_size=size)
    images = torch.rand(batch, 3, size, size)
    encoder, decoder = dall_e.Encoder().eval(), dall_e.Decoder().eval()
    encoder.load_state_dict(ours.encoder.state_dict())
    decoder.load_state_dict(ours.decoder.state_dict())
    del ours

    def step() -> Tensor:
        with torch.inference_mode():
            ids = encoder(dall_e.map_pixels(images)).argmax(1)
            one_hot = F.one_hot(ids, encoder.vocab_size).permute(0, 3, 1, 2).float()
            dall_e.unmap_pixels(torch.sigmoid(decoder(one_hot).float()[:, :3]))
            return ids.flatten(1)

    return step


def beit_ours(size: int, batch: int) -> Step:
    """One masked-image-modelling step of BEiT-base on given ids: forward, backward, AdamW."""
    from zoo.nn.beit_vit import BeitViT

    torch.manual_seed(0)
    model = BeitViT(size, vocab_size=8192, drop_path=0.1)

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["mask"].flatten(1)
        return F.cross_entropy(model.masked_logits(2 * inputs["image"] - 1, mask), inputs["ids"][mask])

    return training_step(model, loss, mim_batch(size, batch))


def beit_reference(size: int, batch: int) -> Step:
    """The same with transformers' BeitForMaskedImageModeling."""
    from transformers import BeitConfig, BeitForMaskedImageModeling

    torch.manual_seed(0)
    config = BeitConfig(
        image_size=size, use_shared_relative_position_bias=True, use_mask_token=True, layer_norm_eps=1e-6
    )
    model = BeitForMaskedImageModeling(config)

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["mask"].flatten(1)
        return model(2 * inputs["image"] - 1, bool_masked_pos=mask, labels=inputs["ids"][mask]).loss

    return training_step(model, loss, mim_batch(size, batch))


def mim_batch(size: int, batch: int) -> dict[str, Tensor]:
    """Random images and ids, and masks of 75 patches in 196 as in pre-training (same share at other sizes)."""
    grid = size // 16
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(batch, grid * grid, generator=generator).argsort(1)
    return {
        "image": torch.rand(batch, 3, size, size, generator=generator),
        "ids": torch.randint(8192, (batch, grid * grid), generator=generator),
        "mask": (order < round(grid * grid * 75 / 196)).unflatten(1, (grid, grid)),
    }


def training_step(model: torch.nn.Module, loss_of: Callable[[dict], Tensor], inputs: dict[str, Tensor]) -> Step:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> Tensor:
        loss = loss_of(inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def blip2_ours(size: int, batch: int) -> Step:
    """One first-stage step of BLIP-2 on given features of ViT-g: contrast, matching, generation, AdamW; no dropout."""
    import zoo

    torch.manual_seed(0)
    model = zoo.create_model("blip2_stage1_vit_g", vision="tiny_random:1408", dropout=0.0)
    negatives = torch.arange(batch).roll(1)

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        return model.objectives(inputs["features"], inputs["ids"], inputs["mask"], negatives=(negatives, negatives))[
            "loss"
        ]

    return training_step(model, loss, caption_batch(size, batch))


def blip2_reference(size: int, batch: int) -> Step:
    """The same with transformers' Q-Former and one pass per objective, each with its own queries."""
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

    from zoo.nn.qformer_masks import itg_mask

    torch.manual_seed(0)
    config = Blip2QFormerConfig(
        vocab_size=30523, use_qformer_text_input=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model: Any = torch.nn.ModuleDict({
        "qformer": Blip2QFormerModel(config), "words": Blip2TextEmbeddings(config), "norm": torch.nn.LayerNorm(1408),
        "image": torch.nn.Linear(768, 256), "text": torch.nn.Linear(768, 256), "match": torch.nn.Linear(768, 2),
        "dense": torch.nn.Linear(768, 768), "head_norm": torch.nn.LayerNorm(768),
    })  # fmt: skip
    model.register_parameter("queries", torch.nn.Parameter(torch.randn(1, 32, 768) * 0.02))
    model.register_parameter("bias", torch.nn.Parameter(torch.zeros(30523)))
    former, words = model["qformer"], model["words"]
    negatives, temperature = torch.arange(batch).roll(1), 0.07

    def joint(image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        queries = model.queries.expand(len(ids), -1, -1)
        hidden = words(input_ids=ids, query_embeds=queries)
        return former(
            query_embeds=hidden, query_length=32, attention_mask=mask, encoder_hidden_states=image
        ).last_hidden_state

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        image, ids, mask = model["norm"](inputs["features"]), inputs["ids"], inputs["mask"]
        seen = former(query_embeds=model.queries.expand(batch, -1, -1), encoder_hidden_states=image).last_hidden_state
        text = former(query_embeds=words(input_ids=ids), query_length=0, attention_mask=mask).last_hidden_state
        shown, said = F.normalize(model["image"](seen), dim=-1), F.normalize(model["text"](text[:, 0]), dim=-1)
        sim = torch.einsum("nqd,md->nqm", shown, said).amax(1) / temperature
        target = torch.arange(batch)
        contrast = sum(F.cross_entropy(s, target, label_smoothing=0.1) for s in (sim, sim.t())) / 2
        images = torch.cat([image, image[negatives], image])
        texts, masks = torch.cat([ids, ids, ids[negatives]]), torch.cat([mask, mask, mask[negatives]])
        both = torch.cat([torch.ones(3 * batch, 32, dtype=mask.dtype), masks], 1)
        logits = model["match"](joint(images, texts, both)[:, :32]).mean(1)
        matching = F.cross_entropy(logits, (torch.arange(3 * batch) < batch).long())
        start = torch.cat([torch.full_like(ids[:, :1], 30522), ids[:, 1:]], 1)
        hidden = joint(image, start, itg_mask(mask, 32))[:, 32:]
        found = F.linear(model["head_norm"](F.gelu(model["dense"](hidden))), words.word_embeddings.weight, model.bias)[
            :, :-1
        ]
        labels = ids.masked_fill(mask == 0, -100)[:, 1:]
        return contrast + matching + F.cross_entropy(found.flatten(0, 1), labels.flatten(), label_smoothing=0.1)

    return training_step(model, loss, caption_batch(size, batch))


def caption_batch(size: int, batch: int) -> dict[str, Tensor]:
    """Random features of ViT-g at this image size, and captions of 32 tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "features": torch.randn(batch, (size // 14) ** 2 + 1, 1408, generator=generator),
        "ids": torch.randint(1000, 30000, (batch, 32), generator=generator),
        "mask": torch.ones(batch, 32, dtype=torch.int64),
    }


#: case -> our side, the reference, the package of the reference, sizes
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], str, dict[str, int]]] = {
    "blip2": (blip2_ours, blip2_reference, "transformers", {"size": 224, "batch": 4}),
    "dvae": (dvae_ours, dvae_reference, "DALL-E", {"size": 256, "batch": 4}),
    "beit": (beit_ours, beit_reference, "transformers", {"size": 224, "batch": 8}),
}


def peak_memory(case: str, side: str, threads: int, size: int, batch: int) -> float:
    """Peak resident set in MiB of a fresh process that builds one side and runs it twice."""
    command = [sys.executable, __file__, case, "--only", side, "--threads", str(threads)]
    command += ["--size", str(size), "--batch", str(batch)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def compare(case: str, threads: int, size: int, batch: int, repeats: int) -> dict:
    """Medians, their ratio and both peaks."""
    make_ours, make_reference, package, _ = CASES[case]
    memory = {side: peak_memory(case, side, threads, size, batch) for side in ("ours", "reference")}
    steps = {"ours": make_ours(size, batch), "reference": make_reference(size, batch)}
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for repeat in range(repeats + 1):  # the first is a warm-up
        outputs = {}
        for side, step in steps.items():
            start = time.perf_counter()
            outputs[side] = step()
            if repeat:
                times[side].append(time.perf_counter() - start)
        print(f"{case} {repeat}/{repeats}", {k: round(v[-1], 3) for k, v in times.items() if v}, flush=True)
        if case == "dvae" and not torch.equal(outputs["ours"], outputs["reference"]):
            raise AssertionError("the ids differ between the two sides")
    median = {side: statistics.median(values) for side, values in times.items()}
    return {
        "benchmark": "throughput",
        "status": "ok",
        "model": f"{case} against {package}",
        "data": f"random images, {size} px, batch {batch}",
        "metrics": {
            "speedup": median["reference"] / median["ours"],
            **{f"seconds_{side}": value for side, value in median.items()},
            **{f"peak_mib_{side}": value for side, value in memory.items()},
        },
        "n": repeats,
        "protocol": {
            "step": (CASES[case][0].__doc__ or "").strip(),
            "reference": f"{package} {version(package)}",
            "ids": "identical" if case == "dvae" else "given",
            "all_seconds": times,
        },
        "environment": environment(),
        "seconds": round(sum(map(sum, times.values())), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["ours", "reference"], help="run one side twice and print its peak memory")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = args.size or CASES[args.case][3]["size"]
    batch = args.batch or CASES[args.case][3]["batch"]
    if args.only:
        ours, reference, *_ = CASES[args.case]
        step = (ours if args.only == "ours" else reference)(size, batch)
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    result = compare(args.case, args.threads, size, batch, args.repeats)
    print(dump_json(result["metrics"], "null"))
    if args.out:
        write(result, args.out)


if __name__ == "__main__":
    run(main)
