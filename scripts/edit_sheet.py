"""Before and after of one edit of every kind: python scripts/edit_sheet.py -o docs/tasks/img/editing.png

Rendered pictures of the toy world above, what ``genkit edit`` makes of them with the preset of their kind below. The
first case of each kind from one seed; nothing is picked by hand. The reading of the judge is printed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

PRESETS = {
    "colour": "colour", "shape": "shape", "texture": "material", "background": "background", "add": "add",
    "remove": "remove",
}  # fmt: skip
GAP = 6


def edited(case, preset: str, model: str, folder: Path) -> np.ndarray:
    """What the command makes of a case."""
    from PIL import Image

    from genkit.pipelines.session import run
    from genkit.pipelines.tasks.edit.settings import EditSettings

    path = folder / "source.png"
    Image.fromarray(case.source).save(path)
    settings = EditSettings(
        image=str(path), source_prompt=case.source_prompt, prompt=case.target_prompt, model=model, preset=preset, seed=0
    )
    return run(settings).frames[0]


def main() -> None:
    """Draw the sheet."""
    from PIL import Image

    from genkit.evaluation.edits import draw_edits
    from genkit.world.edits import judge_edit, psnr_of_stay

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy-image")
    parser.add_argument("--seed", type=int, default=11, help="of the cases")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    columns = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, preset in PRESETS.items():
            (case,) = draw_edits(kind, 1, seed=given.seed)
            made = edited(case, preset, given.model, Path(folder))
            verdict = judge_edit(case, made)
            print(f"{kind}: {case.source_prompt} -> {case.target_prompt}: right {bool(verdict['right'])}, "
                  f"{psnr_of_stay(case, made):.1f} dB where it stays")  # fmt: skip
            space = np.full((GAP, case.source.shape[1], 3), 255, np.uint8)
            columns += [np.concatenate([case.source, space, made]), None]
    bar = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
    sheet = np.concatenate([bar if column is None else column for column in columns[:-1]], 1)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
