"""Reading hot loops off assembly, their budgets, and the table of ``python -m benchmarks kernels_static``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
import benchmarks.environment  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.kernels import static  # noqa: E402
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile  # noqa: E402
from tests.aot.budgets import over_budget, twice  # noqa: E402
from tests.aot.loops import Loop, hot_loops  # noqa: E402
from tests.aot.variants import Variant  # noqa: E402

SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64] ;
        /*0020*/                   LDGDEPBAR ;
        /*0030*/                   DEPBAR.LE SB0, 0x2 ;
        /*0040*/                   MEMBAR.ALL.CTA ;
.L_x_1:
        /*0050*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0060*/              @P1  BRA `(.L_x_1) ;
        /*0070*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0080*/              @!P0 MUFU.EX2 R5, R5 ;
        /*0090*/                   DEPBAR.LE SB0, 0x3 ;
        /*00a0*/              @P0  BRA `(.L_x_0) ;
.L_x_2:
        /*00b0*/                   UTMALDG.4D [UR8], [UR4] ;
        /*00c0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*00c8*/                   MUFU.EX2 R5, R5 ;
        /*00d0*/                   STL [R1], R2 ;
        /*00e0*/              @P0  BRA `(.L_x_2) ;
        /*00f0*/                   EXIT ;
        /*0100*/                   BRA `(.L_x_0) ;
"""
AMD = """
kernel:
\ts_mov_b32 s0, 0
.LBB0_1:
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\ts_waitcnt vmcnt(3)
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\tv_exp_f32_e32 v0, v0
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
"""


def test_innermost_loops_with_products_are_found_and_described():
    copies, bulk = hot_loops(SASS)
    assert (copies.instructions, copies.exponentials, copies.in_flight, copies.fences) == (10, 1, 2, 1)
    assert copies.products == {"HGMMA.64x64x16.F32.BF16": 1} and not copies.bulk and copies.waits == "2"
    assert (bulk.instructions, bulk.bulk, bulk.stack, bulk.in_flight, bulk.waits) == (5, True, 1, None, "TMA")
    # eight warps, 128 x 64 scores: as many issue slots per 1,024 scores as the step has instructions
    # (two of them in a loop of their own, which a step may walk several times)
    assert copies.nested == 2 and copies.slots(8, 128 * 64, trips=3) == 14
    assert copies.slots(8, 128 * 64) == 10 and copies.exponentials_per_score(256, 256) == 1
    (amd,) = hot_loops(AMD)
    assert (amd.instructions, amd.exponentials, amd.in_flight) == (5, 1, 3)


def test_budgets_name_what_breaks_them():
    variant, tile = Variant("dkv", 128, rule="box"), Tile(64, 64, 4, 2)
    good = Loop(380, 32, {}, 0, True, 0, 0)
    assert over_budget("sm_90", variant, tile, [good, good._replace(instructions=500)]) == []
    assert over_budget("sm_80", variant, tile, []) == []
    # anywhere a score computed twice is told; a wavefront has twice the lanes of a warp
    assert over_budget("sm_80", variant, tile, [good]) == [] and twice("gfx942", "dq", tile, [good]) == [
        "2.00 exponentials per score"
    ]
    assert twice("sm_80", "forward", tile, [good._replace(exponentials=49)]) == ["1.53 exponentials per score"]
    bad = Loop(900, 64, {}, 0, False, 2, 3)
    told = " ".join(over_budget("sm_90", variant, tile, [good, bad]))
    for words in ("mixed blocks", "2.00 exponentials", "copy engine", "2 fences", "3 instructions"):
        assert words in told
    assert "expected full, box" in over_budget("sm_90", variant, tile, [good])[0]
    assert "allowed 450" in over_budget("sm_90", variant, tile, [bad, bad])[0]


@pytest.mark.parametrize("works", [True, False])
def test_the_benchmark_writes_a_table_per_target(works, tmp_path, monkeypatch, capsys):
    row = {"kernel": "forward D=64 bf16, box rule", "loop": "full", static._SLOTS: 400, "exp2 / score": 2.0, "stack": 8}
    monkeypatch.setattr(static, "_measure", lambda target, dims, only: [row | {"target": target}] if works else None)
    monkeypatch.setattr(benchmarks.environment, "RESULTS", tmp_path)
    monkeypatch.setattr(static, "report", lambda *given: benchmarks.environment.report(*given, folder=tmp_path))
    code = main(["kernels_static", "--target", "sm_80", "--target", "gfx942", "--dim", "64", "--output", "x"])
    assert code == (0 if works else 1)
    if works:
        # a target measured later leaves the others as they are
        row["exp2 / score"] = 1.0
        assert main(["kernels_static", "--target", "sm_90", "--dim", "64", "--output", "x"]) == 0
        assert "No kernel ran" in (tmp_path / "x_sm_80.md").read_text()
        assert len(json.loads((tmp_path / "x_gfx942.json").read_text())["rows"]) == 1
        summary = json.loads((tmp_path / "x.json").read_text())["summary"]
        told = {row["target"]: (row["D"], row["forward"], row["most stack, ours"]) for row in summary}
        assert told == {"sm_80": (64, "400 (2x), -", 8), "sm_90": (64, "400, -", 8), "gfx942": (64, "400 (2x), -", 8)}
        assert "x_sm_90.md" in (tmp_path / "x.md").read_text()
    else:
        assert "nothing written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_rows_of_other_kernels_stay_when_some_are_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks.environment, "RESULTS", tmp_path)
    monkeypatch.setattr(static, "report", lambda *given: benchmarks.environment.report(*given, folder=tmp_path))
    facts = {"commit": "one", "versions": {"triton": "3.9.0", "torch": "2.13"}}
    monkeypatch.setattr(static, "environment", lambda: dict(facts))
    cost = dict.fromkeys(("forward D=64 bf16", "token_select dq D=64 bf16", "dq D=64 bf16"), 10)

    def measure(target, dims, only):
        rest = {"exp2 / score": 1.0, "stack": 0}
        return [
            {"kernel": name, static._SLOTS: n} | rest for name, n in cost.items() if all(text in name for text in only)
        ]

    monkeypatch.setattr(static, "_measure", measure)
    command = ["kernels_static", "--target", "sm_80", "--dim", "64", "--output", "x"]
    assert main(command) == 0
    cost.update({name: 7 for name in cost} | {"token_select dkv D=64 bf16": 7})
    facts["commit"] = "two"
    assert main([*command, "--only", "token_select"]) == 0
    assert main([*command, "--only", "token_select", "--only", "forward"]) == 0  # there is none
    told = json.loads((tmp_path / "x_sm_80.json").read_text())
    costs = [row[static._SLOTS] for row in told["rows"]]
    assert (
        costs == [10, 7, 10, 7] and told["environment"]["commit"] == "one, token_select two, token_select forward two"
    )
    facts["versions"] = {"triton": "4.0.0", "torch": "2.13"}
    assert main([*command, "--only", "token_select"]) == 1
    assert "triton 3.9.0" in capsys.readouterr().err and json.loads((tmp_path / "x_sm_80.json").read_text()) == told
