"""--quantize: fp8 is Diffusers' layerwise casting; what needs a GPU or a package is refused before weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.pipelines.outputs import to_frames
from genkit.pipelines.quantise import check_quantise
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings


def ask(folder, **changes):
    return GenerateSettings(prompt="a red circle", model=str(folder), seed=1, steps=2, **changes)


@pytest.mark.parametrize("model, part", [("tiny_wan", "transformer"), ("tiny_sd", "unet")])
def test_eight_bits_are_those_of_the_stock_pipeline(request, model, part):
    import diffusers

    folder = request.getfixturevalue(model)
    given = {"attention": "neighborhood", "attention_args": {"size": "1x1x1"}} if model == "tiny_wan" else {}
    session = Session(resolve(ask(folder, quantize="fp8")))
    made = session.run()
    kinds = {weight.dtype for weight in getattr(session.pipeline, part).parameters()}
    assert torch.float8_e4m3fn in kinds and made.record["settings"]["quantize"] == "fp8"
    stock = diffusers.DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    getattr(stock, part).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    arguments = session.arguments(made.settings, "a red circle", made.settings.negative_prompt, None)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        raw = stock(**arguments, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(to_frames(raw, session.request.model.kind), made.frames)
    if given:
        patched = Session(resolve(ask(folder, quantize="fp8", **given))).run()
        assert patched.report["ran"] > 0 and not np.array_equal(patched.frames, made.frames)
    assert session.again(resolve(ask(folder))) is None  # another model


def test_what_cannot_run_here_is_refused(tiny_wan, monkeypatch):
    for kind in ("nf4", "int8"):
        with pytest.raises(UnsupportedError, match=f"--quantize {kind} runs on an NVIDIA GPU"):
            resolve(ask(tiny_wan, quantize=kind, device="cpu"))
        monkeypatch.setattr("genkit.pipelines.quantise.find_spec", lambda name: None)
        with pytest.raises(UnsupportedError, match="install bitsandbytes"):
            check_quantise(kind, torch.device("cuda"), False)
    with pytest.raises(UsageError, match="--quantize fp8 with --lora"):
        check_quantise("fp8", torch.device("cpu"), True)
    with pytest.raises(UnsupportedError, match="--offload group needs a GPU"):
        resolve(ask(tiny_wan, offload="group", device="cpu"))
