"""The tables of the comparison, and what they answer: does choosing by content beat fixed masks, what a tail brings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.editing.store import Row, Store
from benchmarks.environment import machine_line, table
from benchmarks.methods.cases import CASES, TAILS, Case, Setting, settings_text

#: A method is compared with those that execute up to this much more: blocks are whole.
_EQUAL = 1.02


def text(store: Store) -> str:
    """The whole report."""
    parts = [
        "# Attention methods at about equal density, judged",
        "",
        machine_line(store.facts),
        "A run of the toy model at the size it was trained for is enlarged, noised again and denoised under every "
        "method, in all layers of this second pass (from noise the models draw little at sizes they were "
        "not trained for). Same prompts, base runs and noise in every row. Mass kept: share of dense attention's "
        "softmax on the pairs a method reads token by token, on queries, keys and values of one step of the dense "
        "run, all layers; what is read as means does not count. Error: norm of the difference to dense attention's "
        "output over its norm. Call: milliseconds of processor time with the choice included, dense attention "
        "(torch's) in turn; choosing: of it, and as a share of the attention time saved. PSNR: to the dense second "
        "pass. All: share of prompts right in everything the judge reads, at the trained size; change: against "
        "dense, prompt by prompt. Numbers behind ± are standard errors over prompts.",
        "",
    ]
    for name, case in CASES.items():
        if _row(store, name, None) is not None:
            parts += _case(store, name, case)
    return "\n".join(parts)


def _row(store: Store, case: str, setting: Setting | None, kind: str = "outputs") -> Row | None:
    method = "dense" if setting is None else settings_text(setting)
    return store.rows.get(f"{CASES[case].model}/{case}/{kind}/{method}")


def _case(store: Store, name: str, case: Case) -> list[str]:
    dense = _row(store, name, None)
    assert dense is not None, "asked for by the caller"
    size = f"{case.frames}x" if case.frames > 1 else ""
    large = case.side * case.upscale
    parts = [
        f"## {case.model}, {size}{large}x{large}, {name.partition('-')[2]} tokens",
        "",
        f"{dense.settings['dtype']}, weights {dense.weights}; {'; '.join(dense.at)}. The second pass makes "
        f"{case.strength:g} of {case.steps} steps{_guided(case)}, the first {case.dense} dense. All right over "
        f"{dense.count} prompts: base run {_share(dense, 'base')}, dense {_share(dense)}.",
        "",
    ]
    for title, group in case.groups.items():
        cells = [_cells(_row(store, name, one), _row(store, name, one, "look"), one, dense) for one in group]
        parts += [f"### {title[0].upper()}{title[1:]}", "", table(cells), ""]
    return parts + _verdict(store, name, case) + _tail(store, name) + _predicted(store, name, case)


def _guided(case: Case) -> str:
    return f", guidance {case.guidance:g}" if case.guidance > 1 else " without guidance"


def _cells(drawn: Row | None, look: Row | None, setting: Setting, dense: Row) -> dict[str, object]:
    cells: dict[str, object] = {"method": settings_text(setting)}
    for title, name in (("computed %", "computed"), ("executed %", "executed")):
        cells[title] = f"{np.mean(look.values(name)):.1f}" if look else ""
    for title, name in (("mass kept %", "mass"), ("error %", "error")):
        cells[title] = _mean(look.values(name), 1) if look and look.values(name) else ""
    for title, name in (("call ms", "call ms"), ("dense ms", "dense ms"), ("choosing ms", "choosing ms")):
        cells[title] = f"{np.median(look.values(name)):.1f}" if look and look.values(name) else ""
    cells["choosing, of what is saved"] = _choosing(look) if look else ""
    if drawn:
        pairs = zip(drawn.values("all"), dense.values("all"), strict=False)
        cells |= {"prompts": drawn.count, "PSNR": _mean(drawn.values("psnr"), 2), "all": _share(drawn)}
        cells["all, change"] = _mean([100 * (one - other) for one, other in pairs], 1, "+")
    return cells


def _choosing(look: Row) -> str:
    if not look.values("choosing ms"):
        return ""
    call, dense, choosing = (np.median(look.values(f"{name} ms")) for name in ("call", "dense", "choosing"))
    saved = dense - (call - choosing)
    return f"{choosing / saved:.0%}" if saved > 0 else "nothing saved"


def _mean(values: Sequence[float], digits: int, sign: str = "") -> str:
    if len(values) < 2:
        return f"{np.mean(values):{sign}.{digits}f}"
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"


def _share(row: Row, name: str = "all") -> str:
    share = float(np.mean(row.values(name)))
    return f"{100 * share:.0f} ± {100 * max(share * (1 - share), 1e-9) ** 0.5 / row.count**0.5:.0f} %"


def _difference(one: Row, other: Row, name: str) -> tuple[float, float]:
    """Mean difference prompt by prompt and its standard error."""
    both = np.array(list(zip(one.values(name), other.values(name), strict=False)))
    apart = both[:, 0] - both[:, 1]
    return float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5) if len(apart) > 1 else float("nan")


def _verdict(store: Store, name: str, case: Case) -> list[str]:
    """Every fixed mask, and mixture_of_block, against the best method of ``block_select`` and ``pyramid`` that executes
    no more."""
    rows = []
    every = [one for group in case.groups.values() for one in group]
    found = {settings_text(one): (_row(store, name, one), _row(store, name, one, "look")) for one in every}
    whole = {text: pair for text, pair in found.items() if pair[0] and pair[1]}
    for text, (drawn, look) in whole.items():
        if text.startswith(("block_select", "pyramid")):
            continue
        executed = np.mean(look.values("executed"))
        against = {
            other: pair for other, pair in whole.items()
            if other.startswith(("block_select", "pyramid"))
            and np.mean(pair[1].values("executed")) <= _EQUAL * executed
        }  # fmt: skip
        row: dict[str, object] = {"method": text, "executed %": f"{executed:.1f}"}
        for title, kind, part in (("mass", "mass", 1), ("PSNR", "psnr", 0)):
            able = {other: pair for other, pair in against.items() if pair[part].values(kind)}
            if not able:
                row |= {f"best by {title}": "none executes as little", f"{title}, more by": ""}
                continue
            best = max(able, key=lambda other: _difference(able[other][part], (drawn, look)[part], kind)[0])
            more, error = _difference(able[best][part], (drawn, look)[part], kind)
            row |= {f"best by {title}": best, f"{title}, more by": f"{more:+.2f} ± {error:.2f}"}
        both = [other for other, pair in against.items() if _better_in_both(pair, (drawn, look))]
        row["better in both"] = ", ".join(both) or "none"
        rows.append(row)
    if not rows:
        return []
    head = "### Against the best that chooses by content and executes no more"
    return [
        head,
        "",
        f"Up to {_EQUAL - 1:.0%} more, since blocks are whole; differences prompt by prompt.",
        "",
        table(rows),
        "",
    ]


def _better_in_both(pair: tuple[Row, Row], other: tuple[Row, Row]) -> bool:
    """Whether mass and PSNR are both higher on average; methods whose pairs hold no mass of their own are left out."""
    if not pair[1].values("mass"):
        return False
    return _difference(pair[1], other[1], "mass")[0] > 0 and _difference(pair[0], other[0], "psnr")[0] > 0


def _tail(store: Store, name: str) -> list[str]:
    """How much of the PSNR that halving the density loses a tail brings back at that density."""
    rows = [_row(store, name, setting) for setting in TAILS[name]]
    if any(row is None for row in rows):
        return []
    count = min(row.count for row in rows)
    full, half, tail = (np.array(row.values("psnr")[:count]) for row in rows)

    def brought(chosen: np.ndarray) -> float:
        return float((tail - half)[chosen].mean() / (full - half)[chosen].mean())

    everyone = np.arange(count)
    share = brought(everyone)
    without = [brought(np.delete(everyone, one)) for one in everyone] if count > 1 else [share]
    error = ((count - 1) / count * np.sum((np.array(without) - np.mean(without)) ** 2)) ** 0.5
    names = [settings_text(setting) for setting in TAILS[name]]
    return [
        "### What a tail brings back",
        "",
        f"From `{names[0]}` to `{names[1]}` PSNR falls by {_mean(full - half, 2)} dB; `{names[2]}`, of about the same "
        f"density as the latter, has {_mean(tail - half, 2, '+')} dB, {100 * share:.0f} ± {100 * error:.0f} % of the "
        f"loss (error by leaving one prompt out, {count} prompts).",
        "",
    ]


def _predicted(store: Store, name: str, case: Case) -> list[str]:
    """Whether what is read off one step of a dense run orders the methods as their outputs do."""
    every = [one for group in case.groups.values() for one in group]
    pairs = [(_row(store, name, one), _row(store, name, one, "look")) for one in every]
    rows = []
    for title, kind, sign in (("mass kept", "mass", 1), ("error of the output", "error", -1)):
        known = [(drawn, look) for drawn, look in pairs if drawn and look and look.values(kind)]
        told = np.array([[sign * np.mean(look.values(kind)), np.mean(drawn.values("psnr"))] for drawn, look in known])
        if len(told) < 4 or not told.std(0).all():
            continue
        whole = rank_correlation(*told.T)
        without = [rank_correlation(*np.delete(told, one, 0).T) for one in range(len(told))]
        error = ((len(told) - 1) / len(told) * np.sum((np.array(without) - np.mean(without)) ** 2)) ** 0.5
        rows.append({"predictor": title, "methods": len(told), "rank correlation": f"{whole:.2f} ± {error:.2f}"})
    if not rows:
        return []
    return [
        "### Does a look at one step predict the output?",
        "",
        "Spearman's rank correlation with PSNR over the methods of all densities; its error by leaving one method out. "
        "A smaller error of the output counts as better.",
        "",
        table(rows),
        "",
    ]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's: that of the ranks, equal values sharing their mean rank."""
    ranks = []
    for values in (x, y):
        below = (values[:, None] > values[None]).sum(1)
        ranks.append(below + ((values[:, None] == values[None]).sum(1) - 1) / 2)
    return float(np.corrcoef(*ranks)[0, 1])
