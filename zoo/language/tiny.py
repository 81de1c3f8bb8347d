"""Tiny random language models of single characters, for tests: LLaMA, OPT, T5 and RoBERTa, built by transformers."""

import string
from typing import Any

import torch

TINY_WIDTH = 32


def build_tiny_network(name: str, vocab_size: int) -> Any:
    """Build a small network with the same random weights each time, for a vocabulary of that size."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = (TINY | TINY_MASKED)[name](vocab_size)
        for parameter in network.parameters():  # transformers' init leaves some at zero
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return network


def _tiny_llama(vocab_size: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=TINY_WIDTH, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        )
    )  # fmt: skip


def _tiny_opt(vocab_size: int) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=vocab_size, hidden_size=TINY_WIDTH, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, word_embed_proj_dim=TINY_WIDTH, dropout=0.0, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        )
    )  # fmt: skip


def _tiny_t5(vocab_size: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab_size, d_model=TINY_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dense_act_fn="gelu", dropout_rate=0.0, tie_word_embeddings=False,
            decoder_start_token_id=0, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def _tiny_roberta(vocab_size: int) -> Any:
    from transformers import RobertaConfig, RobertaForMaskedLM

    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=vocab_size, hidden_size=TINY_WIDTH, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=260, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, type_vocab_size=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


TINY = {"tiny_llama": _tiny_llama, "tiny_opt": _tiny_opt, "tiny_t5": _tiny_t5}
TINY_MASKED = {"tiny_roberta": _tiny_roberta}


def character_tokenizer(t5: bool = False, masked: bool = False) -> Any:
    """Build a tokenizer of single characters.

    Args:
        t5: without a beginning-of-sequence id, with one of its end.
        masked: with both, and with ``<mask>`` as its last word.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = [c for c in string.printable if c not in "\t\r\x0b\x0c"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters, *["<mask>"] * masked])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    single = "<s> $A </s>" if masked else "$A </s>" if t5 else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        **({"mask_token": "<mask>"} if masked else {}),
    )  # fmt: skip
