"""--quantize: fp8 is Diffusers' layerwise casting; what needs a GPU or a package is refused before weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.lora.facts import Facts
from genkit.lora.save import save_lora
from genkit.pipelines import quantise
from genkit.pipelines.load import load
from genkit.pipelines.outputs import to_frames
from genkit.pipelines.quantise import choose
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PACKAGES = {"torchao": "torchao", "quanto": "optimum.quanto"}
FULL, NEAR = ({"attention": "neighborhood", "attention_args": {"size": size}} for size in ("99x99x99", "1x1x1"))


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


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("way", PACKAGES)
def test_a_patch_over_quantised_linears_is_exact(tiny_wan, tmp_path, kind, way):
    """The whole window is the quantised model itself, bit for bit; a small one acts; a LoRA acts on top."""
    pytest.importorskip(PACKAGES[way], reason=f"{way} is not installed")
    asked = ask(tiny_wan, quantize=f"{kind}:{way}", dtype="bfloat16")
    session = Session(resolve(asked))
    made = session.run()
    weights = {type(value) for value in session.pipeline.transformer.parameters()}
    assert len(weights) == 2 and made.record["settings"]["quantize"] == f"{kind}:{way}"
    full = session.again(resolve(asked.replace(**FULL))).run()
    assert full.report["ran"] > 0 and np.array_equal(full.frames, made.frames)
    near = session.again(resolve(asked.replace(**NEAR))).run()
    assert near.report["ran"] > 0 and not np.array_equal(near.frames, made.frames)
    assert np.array_equal(session.run().frames, made.frames)
    plain = Session(resolve(ask(tiny_wan, dtype="bfloat16"))).run().frames.astype(int)
    assert 0 < np.abs(made.frames.astype(int) - plain).mean() < 3
    lora = {"transformer": lora_weights(session.pipeline.transformer)}
    path = save_lora(tmp_path, lora, Facts())
    with_lora = Session(resolve(asked.replace(lora=(str(path),)))).run()
    plain_lora = Session(resolve(ask(tiny_wan, dtype="bfloat16", lora=(str(path),)))).run().frames.astype(int)
    assert not np.array_equal(with_lora.frames, made.frames)
    assert np.abs(with_lora.frames.astype(int) - plain_lora).mean() < np.abs(plain_lora - plain).mean()


def lora_weights(transformer):
    """(A, B, alpha) of every query and value."""
    draw = torch.Generator().manual_seed(0)
    made = {}
    for name, module in transformer.named_modules():
        if name.endswith((".to_q", ".to_v")):
            down = torch.randn(4, module.in_features, generator=draw) * 0.3
            made[name] = down, torch.randn(module.out_features, 4, generator=draw) * 0.3, None
    return made


def test_a_denoiser_in_a_gguf_file(tiny_wan, tmp_path):
    """Eight bits in blocks of 32, through Diffusers' reader: near the folder's own, exact under a whole window."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from diffusers import WanTransformer3DModel

    file = tmp_path / "wan-Q8_0.gguf"
    writer = gguf.GGUFWriter(str(file), "wan")
    for name, value in WanTransformer3DModel.from_pretrained(tiny_wan / "transformer").state_dict().items():
        values, kind = value.numpy(), gguf.GGMLQuantizationType.Q8_0
        if value.ndim == 2 and value.shape[-1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    asked = ask(tiny_wan, denoiser=(str(file),), quantize="gguf")
    session = Session(resolve(asked))
    made = session.run()
    assert "GGUFParameter" in {type(value).__name__ for value in session.pipeline.transformer.parameters()}
    plain = Session(resolve(ask(tiny_wan))).run().frames.astype(int)
    assert 0 < np.abs(made.frames.astype(int) - plain).mean() < 3
    full = session.again(resolve(asked.replace(**FULL))).run()
    assert full.report["ran"] > 0 and np.array_equal(full.frames, made.frames)
    assert not np.array_equal(session.again(resolve(asked.replace(**NEAR))).run().frames, made.frames)
    with pytest.raises(UsageError, match="in fewer bits already; leave out --quantize fp8"):
        resolve(asked.replace(quantize="fp8"))


def test_what_cannot_run_here_is_refused(tiny_wan, monkeypatch):
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="--quantize nf4: bitsandbytes runs on an NVIDIA GPU, and the device"):
        resolve(ask(tiny_wan, quantize="nf4", device="cpu"))
    with pytest.raises(UnsupportedError, match="torchao needs the package torchao, .*install optimum-quanto"):
        resolve(ask(tiny_wan, quantize="int8", device="cpu"))
    with pytest.raises(UnsupportedError, match="install bitsandbytes"):
        choose("nf4", GPU, False, ())
    with pytest.raises(UsageError, match="--quantize fp8 with --lora"):
        choose("fp8", CPU, True, ())
    with pytest.raises(UsageError, match="--quantize gguf: GGUF is a form of files; give the denoiser's"):
        resolve(ask(tiny_wan, quantize="gguf"))
    with pytest.raises(UsageError, match="quantize: got 'int4', allowed: nf4, int8, fp8, int8:bitsandbytes"):
        ask(tiny_wan, quantize="int4")
    for offload in ("group", "model", "sequential"):
        told = f"--offload {offload} keeps weights in main memory until a GPU needs them.*it would save nothing"
        with pytest.raises(UnsupportedError, match=told):
            resolve(ask(tiny_wan, offload=offload, device="cpu"))
        with pytest.raises(UnsupportedError, match=f"^offload {offload} keeps weights"):
            load(tiny_wan, offload=offload, device="cpu")


def test_the_first_way_that_runs_here_is_taken_and_told(monkeypatch):
    there = {"bitsandbytes", "torchao", "optimum.quanto"}
    monkeypatch.setattr(quantise, "find_spec", lambda name: name if name in there else None)
    assert choose("int8", GPU, True, ()) == (
        "int8:bitsandbytes",
        "--quantize int8 is done by bitsandbytes; int8:NAME takes another one",
    )
    assert choose("int8", CPU, False, ())[0] == "int8:torchao"
    assert choose("int8:quanto", CPU, True, ()) == ("int8:quanto", None)
    assert choose("nf4", GPU, True, ()) == ("nf4", None) and choose("fp8", CPU, False, ()) == ("fp8", None)
    there.discard("torchao")
    assert choose("int8", CPU, False, ())[0] == "int8:quanto"
    with pytest.raises(UnsupportedError, match="--quantize int8:torchao: torchao needs the package torchao"):
        choose("int8:torchao", CPU, False, ())
