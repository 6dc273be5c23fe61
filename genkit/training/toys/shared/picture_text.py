"""The text side of the image models: a CLIP tokenizer and encoder small enough to ship."""

from __future__ import annotations

from torch import nn

from genkit.training.toys.shared.text import small_t5
from genkit.world.picture_caption import picture_words

TEXT_WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"
SLOTS = 77


def build_piece_tokenizer(slots: int = SLOTS):
    """A ``CLIPTokenizer`` in which every word of the grammar is one token and any other text falls apart into pieces.

    The vocabulary holds the 256 bytes, alone and at the end of a word, and the merges that lead to the words of the
    grammar.

    Args:
        slots: length to which Diffusers pads and cuts prompts.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in picture_words():
        pieces = apply_merges([*word[:-1], word[-1] + "</w>"], merges)
        # What earlier words' merges leave of this one is joined from the left. Later merges rank below earlier ones, so
        # they cannot break a word that is complete.
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            tokens.append(pieces[0] + pieces[1])
            pieces = [tokens[-1], *pieces[2:]]
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=slots)


def apply_merges(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: join neighbours by the first merge of the list that applies, until none does."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while True:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)), default=None)
        if best not in ranks:
            return pieces
        index = pairs.index(best)
        pieces = [*pieces[:index], best[0] + best[1], *pieces[index + 2 :]]


def build_clip_encoder(tokenizer, width: int = TEXT_WIDTH, slots: int = SLOTS) -> nn.Module:
    """A ``CLIPTextModel`` of two layers; embeddings of unit variance make words differ from the first step."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=slots,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    for name, parameter in model.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(parameter)
        elif "position_embedding" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def build_t5_encoder(vocabulary: int, width: int = TEXT_WIDTH) -> nn.Module:
    """A ``T5EncoderModel`` of two layers for :func:`genkit.training.toys.shared.text.build_word_tokenizer`'s words."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**small_t5(vocabulary, width)))
