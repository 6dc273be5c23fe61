"""The tiny pipelines as folders, each built once for all rooms. Pytest puts this folder on the path, so tests import
``tiny``, ``tiny_pipelines`` and the others by name; the tiny models of all classes, ``zoo``, are added here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_flux import build_tiny_flux
from tiny_sd import build_tiny_sd
from tiny_wan import build_tiny_wan

sys.path.append(str(Path(__file__).parent / "families"))


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory):
    """A WanPipeline folder with random weights; tests copy it before they break it."""
    return build_tiny_wan(tmp_path_factory.mktemp("models") / "tiny-wan")


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory):
    """A StableDiffusionPipeline folder with random weights."""
    return build_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory):
    """A FluxPipeline folder with random weights."""
    return build_tiny_flux(tmp_path_factory.mktemp("models") / "tiny-flux")


@pytest.fixture
def no_weights(monkeypatch):
    """Weights must not be read."""
    from genkit.pipelines import load as loading

    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("genkit.pipelines.session.load", refuse)  # first: its module imports the other
    monkeypatch.setattr(loading, "load", refuse)
