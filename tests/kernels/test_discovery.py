"""Which backend of an operator runs: the one named, or the first of its order that can."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.kernels import discovery


@pytest.fixture
def backends(monkeypatch):
    """Three that differ in what they take: triton everything, narrow float32 only, by_name everything if asked for."""

    def takes(priority, reason):
        return SimpleNamespace(PRIORITY=priority, why_not=reason)

    found = {
        "triton": takes(10, lambda x: None),
        "narrow": takes(20, lambda x: None if x.dtype == torch.float32 else f"no {x.dtype}"),
        "wide": takes(90, lambda x: None),
        "by_name": takes(None, lambda x: None),
    }
    monkeypatch.setattr(discovery, "implementations", lambda impl: found)
    return discovery.Backends(None, "an operator")


def test_auto_takes_the_first_that_can_and_the_interpreter_only_by_name(backends):
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert backends.names() == ("triton", "narrow", "wide", "by_name")
    assert backends.choose("auto", single) == "narrow" and backends.choose("auto", double) == "wide"
    assert backends.choose("triton", single) == "triton" and backends.choose("by_name", double) == "by_name"


def test_a_named_one_that_cannot_run_says_why_and_an_unknown_one_what_there_is(backends):
    double = torch.zeros(1, dtype=torch.float64)
    assert backends.why_not("narrow", double) == "no torch.float64" and backends.why_not("wide", double) is None
    with pytest.raises(UnsupportedError, match="an operator backend 'narrow': no torch.float64"):
        backends.choose("narrow", double)
    for ask in (backends.why_not, backends.choose):
        with pytest.raises(UsageError, match=r"fast.*auto.*narrow"):
            ask("fast", double)
