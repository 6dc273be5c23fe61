from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_flux import build_tiny_flux  # noqa: E402
from tiny_sd import build_tiny_sd  # noqa: E402
from tiny_wan import build_tiny_wan  # noqa: E402


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
