"""Tiny causal language models of real transformers classes with a tokenizer of their own, written as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)  # fmt: skip

#: What the tokenizer learns its pieces from.
TEXT = (
    '{"inputs": [{"file": "photo.png", "role": "first_frame"}], "frames": null, "seconds": 2, "sound": false, '
    '"budget": null, "prompts": ["a girl waves"]} make the girl in the picture wave and end on the last one'
)
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 400 pieces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    kept = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    kept.chat_template = CHAT if chat else None
    return kept


def model(kind: str = "llama", longest: int = 16_384, seed: int = 0):
    """A model of random weights with two layers."""
    torch.manual_seed(seed)
    common = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    limit = {"max_position_embeddings": longest}
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, **heads, **limit)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**common, **heads, **limit)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=longest)
        ),
        "mamba": lambda: MambaForCausalLM(MambaConfig(**common, state_size=4)),
    }[kind]()
    with torch.no_grad():
        for each in made.parameters():  # far from uniform answers
            if each.ndim > 1:
                each.normal_(std=0.3)
    return made.eval()


def folder(place: Path, kind: str = "llama", chat: bool = False, longest: int = 16_384, seed: int = 0) -> Path:
    """Model and tokenizer as a folder."""
    model(kind, longest, seed).save_pretrained(place)
    tokenizer(chat).save_pretrained(place)
    return place
