"""Rows by name, words among tokens, prompts aligned."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from tiny_sd import tiny_clip

import genkit
from genkit.control import Rows, Where, align, replacement, text_tokens, word_tokens
from genkit.control.maps import Maps
from genkit.errors import UsageError


@pytest.mark.parametrize("name", ["rows", "alignment", "regions", "where", "spans", "control"])
def test_examples_of_docstrings(name):
    assert doctest.testmod(importlib.import_module(f"genkit.control.{name}")).failed == 0


def test_rows_are_unconditional_first():
    rows = Rows.of("source", "target", guided=("target",))
    assert [(row.role, row.conditional) for row in rows.entries] == [
        ("target", False), ("source", True), ("target", True)
    ]  # fmt: skip
    assert rows.pairs("source", "target", conditional=True) == ((1, 2),)
    with pytest.raises(UsageError, match="1 unconditional rows of 'target' cannot take from 0 of 'source'"):
        rows.pairs("source", "target")
    with pytest.raises(UsageError, match="allowed: target, source"):
        rows.index("style")
    repeated = Rows.of("source", "target", "target", guided=True)
    assert repeated.pairs("source", "target") == ((0, 1), (0, 2), (3, 4), (3, 5))


def test_rows_of_a_stock_pipeline():
    kinds = lambda rows: [row.conditional for row in rows.entries]  # noqa: E731
    assert kinds(Rows.of_call(4, None, 2)) == [False, False, True, True]
    assert kinds(Rows.of_call(2, "cond", 2)) == [True, True]
    assert kinds(Rows.of_call(2, "uncond", 2)) == [False, False]
    assert kinds(Rows.of_call(1, "uncond_stg", 1)) == [True]  # LTX-2's perturbed call reads the prompt
    assert kinds(Rows.of_call(2, "cond_uncond", 1)) == [False, True]
    with pytest.raises(UsageError, match="3 rows .* does not fit 2 prompts"):
        Rows.of_call(3, None, 2)


@pytest.mark.parametrize(("stop", "steps"), [(0.6, 50), (0.3, 10), (0.7, 15), (1 / 3, 3)])
def test_shares_of_steps_are_half_open(stop, steps):
    from math import ceil

    covered = [step for step in range(steps) if Where(stop=stop).at_step(step, steps)]
    rest = [step for step in range(steps) if Where(start=stop).at_step(step, steps)]
    assert len(covered) == ceil(stop * steps - 1e-9) and covered + rest == list(range(steps))


def test_a_share_of_unknown_steps_is_refused():
    with pytest.raises(UsageError, match="control.begin"):
        Where(stop=0.5).at_step(None, None)
    assert Where().at_step(None, None) and Where(steps="2:").at_step(3, None)


def test_words_of_a_byte_tokenizer_have_several_tokens():
    _, tokenizer = tiny_clip()
    assert word_tokens(tokenizer, "a red circle", "red") == (2, 3, 4)
    assert word_tokens(tokenizer, "red and RED", "red", occurrence=1) == (7, 8, 9)
    assert word_tokens(tokenizer, "red and RED", "red") == (1, 2, 3, 7, 8, 9)
    with pytest.raises(UsageError, match="word: got 'blue', allowed: a, red, circle"):
        word_tokens(tokenizer, "a red circle", "blue")
    with pytest.raises(UsageError, match="allowed: bored"):
        word_tokens(tokenizer, "bored", "red")
    with pytest.raises(UsageError, match="behind the 77 tokens"):
        word_tokens(tokenizer, "x" * 90 + " red", "red")


def test_words_inside_a_template():
    _, tokenizer = tiny_clip()
    inside = word_tokens(tokenizer, "red", "red", template="write red: {} end", dropped=4)
    assert inside == (6, 7, 8)


def test_a_word_the_tokenizer_does_not_know_is_refused():
    pipe = genkit.load("toy-video")
    assert text_tokens(pipe, "a red circle", "red") == (1,)
    with pytest.raises(UsageError, match="does not know it"):
        text_tokens(pipe, "a red zebra", "zebra")


def test_alignment_of_a_swapped_an_added_and_a_removed_word():
    assert align([1, 5, 6, 2], [1, 5, 7, 2]).source == (0, 1, None, 3)
    assert align([1, 5, 2], [1, 9, 5, 2]).source == (0, None, 1, 2)
    assert align([1, 5, 6, 2], [1, 6, 2]).source == (0, 2, 3)
    assert align([], [1]).source == (None,) and align([1], []).source == ()
    padded = align([1, 5, 2], [1, 9, 5, 2]).padded(6)
    assert padded.source == (0, None, 1, 2, 4, 5)
    with pytest.raises(UsageError, match="do not fit 3"):
        padded.padded(3)


def test_gaps_are_filled_by_the_most_alike_pair():
    found = align([1, 5, 6, 2], [1, 7, 8, 2])
    assert found.source == (0, None, None, 3) and found.gaps() == (((1, 2), (1, 2)),)
    source, target = torch.eye(4), torch.eye(4)
    target[2] = torch.tensor([0.1, 0.9, 0, 0])
    target[1] = torch.tensor([0.5, 0.5, 0.5, 0])
    assert found.filled(source, target).source == (0, None, 1, 3)
    assert align([1, 2], [1, 7, 2]).filled(torch.eye(2), torch.ones(3, 2)).source == (0, None, 1)


def test_replacement_of_words_of_several_tokens():
    table = replacement([[1, 2]], [[1]], 5)
    assert table[:, 1].tolist() == [0, 1, 1, 0, 0] and table[3, 2] == 1 and table[4, 4] == 1
    assert torch.equal(replacement([], [], 3), torch.eye(3))
    with pytest.raises(UsageError, match="equal word for word"):
        replacement([[1]], [[2]], 5)


def test_maps_are_means_over_layers_and_over_calls():
    maps = Maps()
    grid = (1, 1, 2)
    for values in ((1.0, 3.0), (5.0,)):
        maps.new_call()
        for value in values:
            maps.add("m", grid, torch.full((1, 2, 1), value))
    assert maps.latest("m").flatten().tolist() == [5, 5] and maps.mean("m").flatten().tolist() == [3.5, 3.5]
    maps.add("m", (1, 2, 2), torch.ones(1, 4, 1))
    with pytest.raises(UsageError, match="say which"):
        maps.latest("m")
    assert maps.timeline("m", (1, 2, 2)).tolist() == [[1]] and maps.timeline("m", grid).shape == (1, 1)
    assert maps.latest("m", (2, 2)).shape == (1, 1, 2, 2, 1) and maps.latest("m", (1, 2)).flatten().tolist() == [5, 5]
    with pytest.raises(UsageError, match="allowed: m"):
        maps.latest("n")
    maps.clear()
    assert maps.names == ()
