"""The small text side of the shipped models: a word tokenizer of the toy world's grammar and a two-layer encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from genkit.world.caption import words

SPECIAL = ("<pad>", "</s>", "<unk>")


def build_word_tokenizer(max_length: int = 512, vocabulary: Sequence[str] | None = None):
    """A ``PreTrainedTokenizerFast`` over the words of a grammar, by default that of the moving world.

    Lower-cases, drops punctuation, always appends ``</s>`` (so that an empty prompt has one token) and turns words it
    does not know into ``<unk>``.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: index for index, word in enumerate([*SPECIAL, *(vocabulary or words())])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\p{L}\p{N}\s]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        padding_side="right",
    )


def small_t5(vocabulary: int, width: int) -> dict[str, Any]:
    """Settings of the two-layer encoders of the toy models, for ``T5Config`` and ``UMT5Config`` alike."""
    return dict(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def build_text_encoder(vocabulary: int, width: int = 128) -> nn.Module:
    """A ``UMT5EncoderModel`` of two layers; embeddings of unit variance make words differ from the first step."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**small_t5(vocabulary, width)))
