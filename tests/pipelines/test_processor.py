"""The processor's name and flags as the system tells them, and without a system that does."""

from __future__ import annotations

import platform

from genkit.pipelines import processor


def test_what_the_system_tells(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: another\nflags\t\t: fpu avx2 amx_bf16\n")
    monkeypatch.setattr(processor, "_TOLD", told)
    assert processor.processor_name() == "A CPU: fast" and processor.processor_flags() == {"fpu", "avx2", "amx_bf16"}
    told.write_text("Features\t: asimd sve\n")
    assert processor.processor_flags() == {"asimd", "sve"}
    assert processor.processor_name() == (platform.processor() or platform.machine())
    monkeypatch.setattr(processor, "_TOLD", tmp_path / "absent")
    assert processor.processor_flags() == set() and processor.processor_name()
