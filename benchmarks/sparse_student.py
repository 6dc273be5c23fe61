"""A student under sparse attention (``genkit train distill``) against the dense model, on the same prompts and noise:
what the judge says, and the time of one sample."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import SPLITS, shares, split_counts, tell
from genkit.reading import whole

#: Steps of training between two rows of the learning curve.
_CURVE = 12
#: What is told of a row that was put beside those of an earlier run.
_BESIDE = " (that of the last row is not, its error is that of two independent shares)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks sparse_student``."""
    parser.add_argument("--model", default="toy-dit", help="toy-dit or toy-video (default toy-dit)")
    parser.add_argument("--lora", type=Path, required=True, help="folder of genkit train distill --attention ...")
    parser.add_argument("--log", type=Path, help="its log.jsonl, for the learning curve; beside the LoRA if left out")
    parser.add_argument("--command", dest="told", default="", help="the command that made it, for the report")
    parser.add_argument("--title", default="the student", help="of its row")
    parser.add_argument("--side", type=int, default=128, help="height and width in pixels (default 128)")
    parser.add_argument("--prompts", type=int, default=96, help="half of them seen, half held out (default 96)")
    parser.add_argument("--timed", type=int, default=5, help="samples whose time is taken, in turns; the median")
    parser.add_argument(
        "--earlier", type=Path, help="report of another student of the same model, size and prompts: its rows stand "
        "before this one's, and nothing of them is measured again",
    )  # fmt: skip
    parser.add_argument("--threads", type=whole(1))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--name", default="sparse_student")


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import torch

    import genkit
    from genkit.lora.files import Lora, lora_file
    from genkit.pipelines.trained_attention import facts_of

    if options.threads:
        torch.set_num_threads(options.threads)
    file = lora_file(options.lora)
    facts = facts_of(Lora(file))
    if facts is None or facts.attention is None:
        raise SystemExit(f"{options.lora} does not tell which attention it was trained through")
    pipeline = genkit.load(options.model, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    bench = _Bench(pipeline, options, facts)
    rows = bench.rows()
    facts = environment()
    data = {
        "environment": facts, "model": options.model, "side": options.side, "prompts": options.prompts,
        "attention": bench.method.describe(), "command": options.told, "sha256": _digest(file),
        "density": bench.density, "beside": _BESIDE if options.earlier else "", "rows": rows,
        "curve": _curve(options.log or options.lora / "log.jsonl"),
    }  # fmt: skip
    report(options.name, data, _text(data, facts), options.output)
    return 0


class _Bench:
    """One model, dense and with its student.

    Args:
        pipeline: of the toy world.
        options: of the command.
        facts: of the student's file.
    """

    def __init__(self, pipeline: Any, options: argparse.Namespace, facts: Any):
        from genkit.attention import registry
        from genkit.lora.files import Lora, lora_file
        from genkit.pipelines.few_steps import few_steps_of

        self.pipeline, self.options = pipeline, options
        self.pictures = options.model != "toy-video"
        args = dict(facts.attention_args)
        if facts.attention_weights is not None:
            args["weights"] = str(options.lora / facts.attention_weights)
        self.method = registry.build(facts.attention, args)
        self.few = few_steps_of([Lora(lora_file(options.lora))])
        self.density: float | None = None
        self.chosen = self._prompts()

    def rows(self) -> list[dict[str, object]]:
        """Dense, the method or the steps without the LoRA, and the student; each against the first."""
        if self.options.earlier is not None:
            return self._beside(json.loads(self.options.earlier.read_text()))
        full = self._request()
        found = {f"dense, {full.steps} steps": self._judged(full, None)}
        short = full
        if self.few is None:
            found["the method without the LoRA"] = self._judged(full, self.method)
        else:
            short = replace(full, steps=self.few.sampling.steps, guidance_scale=self.few.sampling.guidance_scale)
        own = self.pipeline.scheduler
        if self.few is not None:
            self.few.apply(self.pipeline, None)
        self.pipeline.load_lora_weights(str(self.options.lora))
        student = f"{self.options.title}, {short.steps} steps"
        found[student] = self._judged(short, self.method)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(self.options.timed):
            for name, request in ((next(iter(found)), full), (student, short)):
                seconds[name].append(self._timed(request, own, name == student))
        first = next(iter(found.values()))
        return [self._row(name, each, first, seconds[name]) for name, each in found.items()]

    def _beside(self, earlier: dict) -> list[dict[str, object]]:
        """The rows of an earlier run, and the student's; its change counts as if the prompts were others."""
        same = ("model", "side", "prompts", "attention")
        told = {"model": self.options.model, "side": self.options.side, "prompts": self.options.prompts}
        told["attention"] = self.method.describe()
        if any(earlier[name] != told[name] for name in same):
            raise SystemExit(f"{self.options.earlier} is of another run: {', '.join(same)} must be the same")
        full = self._request()
        if self.few is not None:
            full = replace(full, steps=self.few.sampling.steps, guidance_scale=self.few.sampling.guidance_scale)
            self.few.apply(self.pipeline, None)
        self.pipeline.load_lora_weights(str(self.options.lora))
        found = self._judged(full, self.method)
        row = self._row(f"{self.options.title}, {full.steps} steps", found, found, [])
        share, error = (float(part) for part in str(row["all"]).split(" ± "))
        first, its = (float(part) for part in str(earlier["rows"][0]["all"]).split(" ± "))
        row["all, change"] = f"{share - first:+.1f} ± {(error**2 + its**2) ** 0.5:.1f}"
        return [*earlier["rows"], row]

    def _timed(self, request: Any, own: Any, student: bool) -> float:
        """Seconds of one sample, text and decoding included; teacher and student take turns."""
        if student:
            self.pipeline.enable_lora()
            if self.few is not None:
                self.few.apply(self.pipeline, None)
        else:
            self.pipeline.disable_lora()
            self.pipeline.scheduler = own
        started = time.perf_counter()
        self._drawn(replace(request, batch=1), self.method if student else None, self.chosen[:1])
        return time.perf_counter() - started

    def _drawn(self, request: Any, method: Any, chosen: list[Any], progress: Any = None) -> np.ndarray:
        import torch

        import genkit
        from genkit.evaluation.toy import generate_clips
        from genkit.evaluation.toy_picture import generate_pictures

        make = generate_pictures if self.pictures else generate_clips
        torch.manual_seed(1000)  # of samplers that draw noise in every step
        texts = [text for _, text in chosen]
        if method is None:
            return make(self.pipeline, texts, request, 1000, progress)[0]
        with genkit.patch(self.pipeline, method) as patch:
            made = make(self.pipeline, texts, request, 1000, progress)[0]
            densities = [site.density for site in patch.report().sites if site.density is not None]
            self.density = float(np.mean([each.computed for each in densities]))
        return made

    def _judged(self, request: Any, method: Any) -> list[dict[str, bool]]:
        from genkit.evaluation.toy import judge_clips
        from genkit.evaluation.toy_picture import judge_pictures

        title = f"{request.steps} steps, {'dense' if method is None else method.name}"
        samples = self._drawn(request, method, self.chosen, lambda done, total: tell(title, done, total))
        judge = judge_pictures if self.pictures else judge_clips
        _, results = judge([scene for scene, _ in self.chosen], samples)
        print(title, float(np.mean([each["all"] for each in results])), flush=True)
        return results

    def _request(self) -> Any:
        from genkit.evaluation.toy import ClipRequest
        from genkit.evaluation.toy_picture import PictureRequest

        side = self.options.side
        if self.pictures:
            return PictureRequest.of_model(self.options.model, side, side, 20)
        return ClipRequest(height=side, width=side)

    def _prompts(self) -> list[Any]:
        """(scene, caption) of everything that is asked for: one object each."""
        from genkit.evaluation.toy import draw_prompts
        from genkit.evaluation.toy_picture import draw_picture_prompts

        draw = draw_picture_prompts if self.pictures else draw_prompts
        counts = split_counts(self.options.prompts)
        return [each for split, _ in SPLITS for each in draw(split, counts[split], seed=1234, actors=1)]

    def _row(self, name: str, found: list, first: list, seconds: list[float]) -> dict[str, object]:
        from genkit.evaluation.toy import ATTRIBUTES, accuracy_of
        from genkit.evaluation.toy_picture import ATTRIBUTES as PICTURE

        names = PICTURE if self.pictures else ATTRIBUTES
        change = np.array([one["all"] - other["all"] for one, other in zip(found, first, strict=True)], float) * 100
        told = f"{change.mean():+.1f} ± {change.std() / len(change) ** 0.5:.1f}" if found is not first else ""
        row: dict[str, object] = {"sampled": name, **shares(accuracy_of(found, names), names), "all, change": told}
        return row | {"s a sample": f"{np.median(seconds):.2f}" if seconds else ""}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _curve(log: Path) -> list[dict[str, object]]:
    """About a dozen lines of the log, the last one among them; figures as the log has them, averaged on the way."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    every = max(1, len(lines) // _CURVE)
    kept = [line for line in lines if line["step"] % every == 0 or line is lines[-1]]
    names = [name for name in kept[-1] if name.startswith(("loss", "distance"))]
    return [{"step": line["step"], **{name: f"{line[name]:.4f}" for name in names if name in line}} for line in kept]


def _text(data: dict, facts: dict) -> str:
    size = f"{data['side']}x{data['side']}"
    density = "" if data["density"] is None else f", which reads {data['density']:.1%} of the pairs"
    return "\n".join(
        [
            f"# A sparse student of {data['model']}",
            "",
            machine_line(facts),
            f"{size}, bfloat16, {data['prompts']} prompts with one object, half of them seen, the same noise in every "
            "row. "
            f'`{data["attention"]}`{density}. Shares in percent with their standard error; the change of "all" is '
            f"prompt by prompt{data.get('beside', '')}. "
            "Seconds: the median of one sample at a time, text and decoding included, teacher and "
            "student in turns.",
            "",
            table(data["rows"]),
            "",
            f"The last student was made by (SHA-256 {data['sha256'][:16]}):",
            "",
            "```text",
            data["command"],
            "```",
            "",
            "## Learning curve",
            "",
            table(data["curve"]),
            "",
        ]
    )
