"""Models whose numbers are compared, and those whose checkpoints were written before the redesign."""

from typing import Any

VQGAN: dict[str, Any] = {
    "image_size": 16, "width": 4, "norm_groups": 2, "multipliers": (1, 2), "blocks": 1, "attention": (),
    "mid_attention": False, "z_channels": 4, "vocab_size": 32, "code_width": 4, "disc_width": 4, "disc_layers": 1,
}  # fmt: skip
MASKGIT_VQGAN: dict[str, Any] = {
    "image_size": 16, "width": 32, "multipliers": (1, 1), "blocks": 1, "z_channels": 8, "code_width": 8,
    "vocab_size": 32, "disc_width": 4,
}  # fmt: skip
SMALL: dict[str, Any] = {"width": 16, "depth": 1}
#: name -> (preset, other constructor arguments)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vqvae_kmeans": ("vqvae_tiny", {
        "codebook_init": "kmeans", "restart_threshold": 0.9, "decay": 0.8, "beta": 0.4, "width": 8,
    }),
    "vqvae2_ema": ("vqvae2_tiny", {"quantizer": "ema", "decay": 0.95, "width": 8, "code_width": 4}),
    "vqgan_ema_late": ("vqgan_tiny", VQGAN | {
        "quantizer": "ema", "codebook_decay": 0.8, "codebook_init": "kmeans", "restart_threshold": 0.2,
        "codebook_weight": 0.7, "disc_start": 5, "disc_warmup": 2, "disc_weight": 0.3, "pixel_loss": "l2",
    }),
    "vqgan_warm_disc": ("vqgan_tiny", VQGAN | {
        "image_size": 32, "disc_start": 3, "disc_warmup": 3, "perceptual": "lite0", "perceptual_weight": 0.3,
    }),
    "vqgan_fsq_lecam": ("vqgan_tiny", VQGAN | {
        "quantizer": "fsq", "levels": (4, 4, 2), "code_width": 3, "lecam": 0.01, "disc_factor": 0.5,
        "adversarial": "vanilla", "adaptive": False,
    }),
    "vqgan_lfq": ("vqgan_tiny", VQGAN | {
        "quantizer": "lfq", "code_width": 5, "entropy_weight": 0.2, "beta": 0.3, "adversarial": "hinge",
    }),
    "vqgan_l2_no_disc": ("vqgan_tiny", VQGAN | {
        "quantizer": "l2", "legacy": False, "entropy_weight": 0.1, "beta": 0.5, "disc": "none",
    }),
    "vqgan_gumbel": ("vqgan_gumbel_tiny", VQGAN | {"tau": (0.8, 0.1, 100), "kl_weight": 0.01, "disc_layers": 2}),
    "vqgan_depth": ("vqgan_tiny", VQGAN | {
        "channels": 1, "attention": (8,), "mid_attention": True, "disc_weight": 0.75, "beta": 0.5, "legacy": False,
        "codebook_init": "kmeans", "restart_threshold": 0.5,
    }),
    "vqgan_maskgit_r1": ("vqgan_maskgit_tiny", MASKGIT_VQGAN | {"r1": 0.5, "disc_weight": 0.2, "adaptive": True}),
    "vqgan_stylegan_r1": ("vqgan_tiny", VQGAN | {
        "disc": "stylegan", "r1": 0.3, "adversarial": "non_saturating", "quantizer": "l2", "beta": 0.4,
    }),
    "dvae_mse": ("dvae_tiny", {
        "loss": "mse", "relaxation": "straight_through", "marginal_entropy": (1.0, 0.5, 20), "codebook_init": "kmeans",
        "tau": (0.9, 0.5, 4), "beta": (0.1, 0.3, 4), "encoder_start": 1,
    }),
    "maskgit_valeoai": ("maskgit_tiny", SMALL | {
        "layout": "valeoai", "schedule": "arccos", "heads": 2, "dropout": 0.3, "mlp_width": 24,
    }),
    "maskgit_no_class": ("maskgit_tiny", SMALL | {"num_classes": 0, "class_dropout": 0.0, "label_smoothing": 0.0}),
    "ar_transformer_pkeep": ("ar_transformer_tiny", SMALL | {
        "pkeep": 0.9, "class_ids": "own", "order": "spiral_out", "dropout": 0.2,
    }),
    "ar_transformer_condition": ("ar_transformer_tiny", SMALL | {
        "num_classes": 0, "condition_tokenizer": "vqvae_tiny:random", "n_unmasked": 2,
    }),
    "beit_absolute": ("beit_tiny", SMALL | {
        "absolute_positions": True, "relative_positions": "none", "masking": "random", "num_masked": 5,
        "mlp_ratio": 2.0, "layer_scale": 0.3, "normalisation": "imagenet", "norm_eps": 1e-3,
    }),
    "beit_per_block": ("beit_tiny", {
        "relative_positions": "per_block", "decay_convention": "timm", "drop_path": 0.4, "min_block": 2,
        "grad_checkpointing": True,
    }),
    "beit_classifier_cls": ("beit_classifier_tiny", SMALL | {
        "pool": "cls", "mixup": 0.8, "label_smoothing": 0.2, "decay_convention": "timm", "init_scale": 0.5,
        "norm_eps": 1e-3, "normalisation": "imagenet",
    }),
    "beit_classifier_cutmix": ("beit_classifier_tiny", {
        "cutmix": 1.0, "drop_path": 0.4, "absolute_positions": True, "relative_positions": "shared",
        "mlp_ratio": 2.0, "layer_scale": 0.3,
    }),
    "beit_probe": ("beit_classifier_tiny", {"linear_probe": True, "probe_block": 1}),
    "seed_stage1_both": ("seed_stage1_tiny", {
        "causal": False, "diversity_weight": 0.1, "query_mlp_width": 16, "width": 16, "mlp_width": 24,
        "label_smoothing": 0.2, "temperature": 0.1,
    }),
    "seed_stage2_reverse": ("seed_stage2_tiny", {
        "detokenizer": "reverse_qformer", "reverse_queries": 1, "reverse_depth": 1, "mlp_width": 24, "depth": 1,
        "codebook_init": "kmeans", "restart_threshold": 0.5, "vq_weight": 2.0, "generation_weight": 1.5,
    }),
    "seed_stage2_both": ("seed_stage2_tiny", {
        "causal": False, "codec_mlp_ratio": 2.0, "cross_every": 1, "reconstruction_weight": 3.0, "dropout": 0.2,
        "frozen_eval": False,
    }),
    "seed_pixels_noise": ("seed_pixels_tiny", {"noise": 0.1, "widths": (8, 8, 4, 4), "hidden": 8}),
    "seed_pixels_tokens": ("seed_pixels_tiny", {
        "tokenizer": "seed_stage2_tiny:random", "perceptual": "lite0", "perceptual_weight": 0.3,
    }),
    "blip2_stage1_joint": ("blip2_stage1_tiny", {
        "mixing": "joint", "norm": "pre", "gather_grad": "full", "itm_negatives": "local", "width": 16,
        "mlp_width": 24, "label_smoothing": 0.2, "temperature": 0.1,
    }),
    "blip2_stage2_t5": ("blip2_stage2_tiny", {
        "language_model": "tiny_t5", "mixing": "cross_only", "cross_every": 1, "bridge_lr": 0.5, "norm": "pre",
    }),
    "minigpt4_prompts": ("minigpt4_tiny", {
        "prompts": ("<Img><ImageHere></Img> Say it.",), "end": "###", "tokenizer": None, "vision": "tiny_random",
        "merge": 4, "template": "Q: {} A: ", "system": "S. ",
    }),
    "llava_chat": ("llava_tiny", {
        "conversation": "chatml", "projector_depth": 1, "select": "cls_patch", "question": "what?", "vision_layer": -1,
    }),
    "llava_full": ("llava_tiny", {"tuning": "full", "conversation": "v1", "system": "S.", "projector_lr": 0.5}),
    "seed_llm_answer": ("seed_llm_tiny", {
        "learn": "answer", "image_words": "codes", "generation_share": 0.3, "lora_rank": 2, "lora_alpha": 6,
        "caption_prompt": "it shows", "generation_prompt": "Draw",
    }),
    "seed_llm_embeddings": ("seed_llm_tiny", {"form": "embeddings", "learn": "answer", "lora_rank": 2}),
}  # fmt: skip
#: variants without a checkpoint: their families have another
NUMBERS_ALONE = {
    "vqgan_gumbel", "vqgan_depth", "vqgan_maskgit_r1", "vqgan_warm_disc", "beit_per_block", "beit_classifier_cutmix",
    "beit_probe", "seed_stage2_both", "seed_pixels_tokens", "llava_full",
}  # fmt: skip
#: checkpoints that hold the state of the optimizer
WITH_OPTIMIZER = {"vqvae_kmeans", "maskgit_valeoai"}
#: file -> (preset, other constructor arguments)
CHECKPOINTS = {name: case for name, case in VARIANTS.items() if name not in NUMBERS_ALONE} | {
    "llava_lora": ("llava_lora_tiny", {"lora_rank": 2, "lora_alpha": 6, "lora_dropout": 0.1}),
}
