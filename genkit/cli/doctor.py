"""``genkit doctor``: what this machine can run, and why the rest cannot."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

import typer

from genkit.cli.options import Json
from genkit.cli.output import one_line, print_json, print_table, say
from genkit.errors import counted
from genkit.pipelines.processor import processor_flags

REQUIRED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "av", "pillow", "pyyaml")
OPTIONAL = {
    "triton": "kernels on NVIDIA and AMD GPUs",
    "xformers": "its attention kernels as an operator backend",
    "peft": "LoRA",
    "gradio": "the demo in the browser",
}
FAST_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
ENCODERS = {"libx264": "writes .mp4 video", "aac": "writes .mp4 sound"}


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``state`` is ``"ok"``, ``"absent"`` (optional, with the reason) or ``"broken"``
    (needed)."""

    topic: str
    name: str
    state: str
    detail: str


def doctor(json: Json = False) -> None:
    """Report versions, processors, kernels' backends, codecs and shipped models; 1 when something needed is broken."""
    sections: tuple[Callable[[], list[Finding]], ...] = (packages, processors, backends, codecs, models)
    findings = [finding for section in sections for finding in section()]
    broken = [finding for finding in findings if finding.state == "broken"]
    if json:
        print_json({"ok": not broken, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        print_table(["topic", "what", "state", "detail"], [dataclasses.astuple(finding) for finding in findings])
        names = ", ".join(finding.name for finding in broken)
        say(f"broken: {names}" if broken else "everything needed is there")
    if broken:
        raise typer.Exit(1)


def packages() -> list[Finding]:
    """Python and the packages genkit needs."""
    from importlib import metadata, util

    found = [Finding("package", "python", "ok", platform.python_version())]
    for name in REQUIRED:
        try:
            found.append(Finding("package", name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append(Finding("package", name, "broken", f"not installed; pip install {name}"))
    for name, purpose in OPTIONAL.items():
        if util.find_spec(name) is None:
            found.append(Finding("optional", name, "absent", f"{purpose}; pip install {name}"))
        else:
            found.append(Finding("optional", name, "ok", metadata.version(name)))
    return found


def processors() -> list[Finding]:
    """The CPU's useful instruction sets, and the GPUs."""
    import torch

    told = processor_flags()
    flags = [flag for flag in CPU_FLAGS if flag in told]
    speed = "bfloat16 is fast here" if FAST_BF16 & set(flags) else "bfloat16 is slow here, use float32"
    instructions = " ".join(flags) or "no special instructions"
    cpu = (
        f"{counted(_usable_cores(), 'usable core')}, {counted(torch.get_num_threads(), 'thread')}, "
        f"{instructions}; {speed}"
    )
    found = [Finding("cpu", platform.machine(), "ok", cpu), _native()]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        detail = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
        found.append(Finding("gpu", f"cuda:{index}", "ok", detail))
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "no GPU or driver was found" if built else "this torch is built without CUDA or ROCm"
        found.append(Finding("gpu", "cuda", "absent", reason))
    if torch.backends.mps.is_available():
        found.append(Finding("gpu", "mps", "ok", "Apple GPU"))
    return found


def _native() -> Finding:
    """What of block-sparse attention runs in genkit's own kernels for the CPU."""
    import torch

    from genkit.kernels.native import kinds, library

    told = [
        f"{name} in {kinds.report(dtype)}" for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    ]
    by = " ".join(library.compilers()[0]) if library.compilers() else "none found; pip install ziglang brings one"
    state = "absent" if any(" in torch's kernel" in text for text in told) else "ok"
    if any(" in nothing" in text for text in told):  # asked for by name, so attention refuses to run
        state = "broken"
    detail = f"block-sparse attention: {one_line('; '.join(told))}. C++ compiler: {by}"
    return Finding("cpu", "native kernels", state, detail)


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def backends() -> list[Finding]:
    """Which operator backends run on which device, asked of the backends themselves with a small problem."""
    import torch

    from genkit import kernels

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = []
    for name in kernels.backends():
        refusals = {device: _refusal(name, device) for device in devices}
        good = [device for device, reason in refusals.items() if reason is None]
        reasons = "; ".join(f"{device}: {one_line(reason)}" for device, reason in refusals.items() if reason)
        detail = f"runs on {', '.join(good)}" if good else reasons
        found.append(Finding("backend", name, "ok" if good else "absent", detail))
    return found


def _refusal(backend: str, device: str) -> str | None:
    """Why a backend refuses float32 attention of 64 tokens on a device, or None."""
    import torch

    from genkit import kernels

    q = torch.zeros(1, 64, 1, 64, device=device)
    plan = kernels.BlockPlan.from_dense_blocks(torch.ones(1, 1, dtype=torch.bool, device=device), 64, 64)
    return kernels.why_not(backend, q, q, q, plan)


def codecs() -> list[Finding]:
    """The encoders that outputs need."""
    import av

    found = []
    for name, purpose in ENCODERS.items():
        try:
            av.codec.Codec(name, "w")
            found.append(Finding("codec", name, "ok", purpose))
        except av.error.FFmpegError:
            detail = f"missing in this FFmpeg build, so nothing {purpose}; install PyAV from its wheels"
            found.append(Finding("codec", name, "broken", detail))
    return found


def models() -> list[Finding]:
    """The shipped models: whole, and unchanged since they were packed."""
    from genkit.errors import ArtifactError
    from genkit.models import check_folder, read_sidecar, shipped, verify_checksums

    found = []
    for name, path in shipped().items():
        try:
            check_folder(path)
            read_sidecar(path)
        except ArtifactError as error:
            found.append(Finding("model", name, "broken", str(error)))
            continue
        state, details = verify_checksums(path)
        told = {"ok": "whole, checksums match", "unknown": f"whole; {details[0] if details else ''}"}
        detail = told.get(state) or f"changed since it was packed: {', '.join(details)}"
        found.append(Finding("model", name, "broken" if state == "changed" else "ok", detail))
    if not found:
        found.append(Finding("model", "shipped models", "absent", "none in this installation; give --model a folder"))
    return found
