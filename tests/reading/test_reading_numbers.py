"""Rates from any text: the right value, or one short line at once."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from genkit.errors import UsageError, escaped, explain, shown
from genkit.reading import rate, read_yaml

WILD = ["1e999999999", "9" * 5000, "1e20", "-1", "nan", "inf", "", " ", "0x10", "1_000", "٣", "1/0", "1//2", "1e1000",
        "3/" + "9" * 5000, None, True, [], 10**5000, float("nan"), float("inf"), "a\x1b[2J"]  # fmt: skip


@pytest.mark.parametrize("given", WILD, ids=lambda given: shown(given)[:20])
def test_wild_rates_are_refused_at_once_in_a_short_line(given):
    began = time.process_time()
    with pytest.raises(UsageError, match="--x: got") as caught:
        rate(given, "--x", low=0, high=1000)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert time.process_time() - began < 1


def test_ordinary_rates_keep_their_value():
    assert (rate("23.976"), rate("30000/1001"), rate(12), rate(12.5), rate("8")) == (
        Fraction("23.976"), Fraction(30000, 1001), 12, Fraction(25, 2), 8
    )  # fmt: skip
    assert rate("1e2") == 100


def test_values_in_messages_are_short_and_harmless():
    nested = ["x"]
    for _ in range(60):
        nested = [nested] * 9
    began = time.process_time()
    for value in (nested, "a" * 10**6, b"b" * 10**6, {n: n for n in range(10**5)}, 10**9999, "\x1b]0;title\x07"):
        text = explain("it", value, "less")
        assert len(text) < 400 and text.isprintable()
    assert time.process_time() - began < 1
    for value in ("it's", 3, 1.5, None, (1,), (), [1, "a"], {"a": 1}, {1, 2}, set(), frozenset(), b"x", "é圆"):
        if not isinstance(value, frozenset):
            assert shown(value) == repr(value)


def test_control_characters_are_written_out_and_words_are_not():
    assert escaped("a\x1b[31mb\x07\x9b\u202ec\udc80") == "a\\x1b[31mb\\x07\\x9b\\u202ec\\udc80"
    assert escaped("Kreis é 圆 👩\u200d🎨 می\u200cخواهم\n") == "Kreis é 圆 👩\u200d🎨 می\u200cخواهم\n"


def test_explain_still_suggests_the_closest_name():
    assert explain("x", "stepz", ["steps", "fps"]) == "x: got 'stepz', allowed: steps, fps; did you mean 'steps'?"


@pytest.mark.parametrize(
    "text", ["1:4:0.5", "1:30", "-1:30", "12:30:45", "1:2.", "190:20:30.15", "1_0:5", "::0.5", "2:8"]
)
def test_numbers_to_base_60_stay_texts_in_yaml(text, tmp_path):
    path = tmp_path / "lora.yaml"
    path.write_text(f"route: {text}\nlist: [{text.strip(':')}, 'x']\nsteps: {{{text.strip(':')}: 1}}\n")
    inner = text.strip(":")
    inner = float(inner) if ":" not in inner else inner
    assert read_yaml(path) == {"route": text, "list": [inner, "x"], "steps": {inner: 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("12", 12), ("-7", -7), ("+3", 3), ("1_000", 1000), ("0x1F", 31), ("0b101", 5), ("017", 15),
     ("0.5", 0.5), ("-1.", -1.0), (".25", 0.25), ("1_0.5", 10.5), ("1.5e+3", 1500.0), ("-.inf", float("-inf")),
     ("true", True), ("null", None)],
)  # fmt: skip
def test_other_numbers_keep_their_value_in_yaml(text, value, tmp_path):
    path = tmp_path / "lora.yaml"
    path.write_text(f"a: {text}\n")
    found = read_yaml(path)["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["1e-4", "2E5", "1.5e3", "-.5e2", "+1.e0"])
def test_numbers_with_an_exponent_are_numbers_in_yaml(text, tmp_path):
    """As YAML 1.2 and everybody's learning rate have it; YAML 1.1 takes them for texts."""
    path = tmp_path / "lora.yaml"
    path.write_text(f"learning_rate: {text}\nprompt: 1e4 dogs\nquoted: '{text}'\n")
    assert read_yaml(path) == {"learning_rate": float(text), "prompt": "1e4 dogs", "quoted": text}
