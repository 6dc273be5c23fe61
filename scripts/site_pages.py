"""Pages of the documentation site that are made when it is built (a hook of mkdocs): model cards, results, changelog
and contributing from where they live; the command line reference from the commands; the API from docstrings.

Links between pages are rewritten to where the pages are on the site. A link to a file that is no page of the site
becomes plain code: the file is in the repository.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from enum import Enum
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.draw_rooms import arrows, draw  # noqa: E402

MODELS = [path.parent.name for path in sorted(ROOT.glob("genkit/models/*/README.md"))]
RESULTS = [path.stem for path in sorted(ROOT.glob("benchmarks/results/*.md"))]
METHODS = [path.stem for path in sorted(ROOT.glob("docs/methods/*.md"))]

# Page on the site -> the file it is made from.
MOVED = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples.md": "examples/README.md",
    **{f"models/{name}.md": f"genkit/models/{name}/README.md" for name in MODELS},
    **{f"results/{name}.md": f"benchmarks/results/{name}.md" for name in RESULTS},
}
PICTURES = {
    **{f"models/{name}/samples.png": f"genkit/models/{name}/samples.png" for name in MODELS},
    **{f"results/{path.name}": f"benchmarks/results/{path.name}" for path in ROOT.glob("benchmarks/results/*.png")},
}

API = {
    "genkit": (
        "Loading, patching, schedules, recipes: what `import genkit` offers.",
        ["genkit.pipelines.load.load", "genkit.patching.patch", "genkit.patching.PatchHandle", "genkit.patching.Part"]
        + ["genkit.patching.Schedule", "genkit.patching.attn_processors", "genkit.patching.why_not"]
        + ["genkit.pipelines.recipes.recipe", "genkit.attention.registry.methods", "genkit.families.families"]
        + ["genkit.layout.TokenLayout"],
    ),
    "methods": (
        "The attention methods: one frozen dataclass each. `genkit.Radial(...)` and so on.",
        ["genkit.attention.method.Method", *(f"genkit.attention.{name}" for name in METHODS)],
    ),
    "kernels": ("Operators on plain tensors.", ["genkit.kernels"]),
    "world": ("The toy world and its judge.", ["genkit.world"]),
    "media": ("Reading and writing pictures, video and sound.", ["genkit.media"]),
    "errors": ("What genkit raises.", ["genkit.errors"]),
}


def on_files(files: Files, config) -> Files:
    for page, source in {**MOVED, **PICTURES}.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for name, (first, objects) in API.items():
        files.append(File.generated(config, f"reference/{name}.md", content=_api(name, first, objects)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    picture = files.get_file_from_path("img/rooms.svg")
    if picture is not None:
        files.remove(picture)
    files.append(File.generated(config, "img/rooms.svg", content=draw(arrows())))
    return files


def on_config(config):
    for section in config.nav:
        ((name, pages),) = section.items()
        if name == "Methods":
            pages[:] = [f"methods/{method}.md" for method in METHODS]
            pages.insert(0, {"How patching works": "gate.md"})
        elif name == "Operators":
            pages[:] = [page for page in ("operators.md", "kernels.md") if (ROOT / "docs" / page).exists()]
        elif name == "Models":
            pages[:] = [{model: f"models/{model}.md"} for model in MODELS]
            pages += [{"The toy world": "toy-world.md"}, {"How they are made": "training.md"}]
        elif name == "Results":
            pages[:] = [{result.replace("_", " "): f"results/{result}.md"} for result in RESULTS]
        elif name == "Reference":
            pages[:] = [{"Commands": "reference/commands.md"}, *({name: f"reference/{name}.md"} for name in API)]
        elif name == "Development":
            pages[:] = ["contributing.md", *_development(), "examples.md", "changelog.md"]
    return config


def _development() -> list[str]:
    return [f"development/{path.name}" for path in sorted((ROOT / "docs" / "development").glob("*.md"))]


def _api(name: str, first: str, objects: list[str]) -> str:
    parts = [f"# {name}", first]
    for path in objects:
        package = path.count(".") == 1 or (ROOT / path.replace(".", "/") / "__init__.py").exists()
        options = ["      members_order: source"]
        if package:
            options += ["      show_root_heading: false", "      show_root_toc_entry: false", "      heading_level: 2"]
        parts.append("\n".join([f"::: {path}", "    options:", *options]))
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Links as they are in the repository become links of the site."""
    here = page.file.src_uri
    if here.startswith("results/") or here == "index.md":
        page.meta["hide"] = ["toc", *(["navigation"] if here == "index.md" else [])]  # room for wide tables
    source = MOVED.get(here, f"docs/{here}")
    made = {file: site for site, file in {**MOVED, **PICTURES}.items()} | {"README.md": "index.md"}
    made["docs/README.md"] = "index.md"

    def link(found: re.Match) -> str:
        text, target = found.group(1), found.group(2)
        if re.match(r"[a-z]+:|#|<", target):
            return found.group(0)
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if file in made:
            site = made[file]
        elif file.startswith("docs/"):
            site = file.removeprefix("docs/")
        else:
            return f"`{file}`" if not found.group(0).startswith("!") else found.group(0)
        where = posixpath.relpath(site, posixpath.dirname(here) or ".")
        return f"[{text}]({where}{'#' + anchor if anchor else ''})"

    return re.sub(r"\[([^\]]*)\]\(([^()\s]+)\)", link, _no_front_matter(markdown))


def _no_front_matter(markdown: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.S)


def commands_page() -> str:
    """Every command with its arguments and options, read from the command line itself."""
    import typer.main

    from genkit.cli.main import app

    lines = ["# Commands", "", "Read from the program: the same as `genkit COMMAND --help`.", ""]
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        lines += _command(f"genkit {name}", command)
    return "\n".join(lines) + "\n"


def _command(name: str, command) -> list[str]:
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    usage = " ".join([name, *(f"[{_name(item)}]" for item in arguments), "[OPTIONS]"])
    lines = [f"## {name}", "", _text(command.help or ""), "", "```", usage, "```", ""]
    rows = [_row(item) for item in command.params if not getattr(item, "hidden", False)]
    if rows:
        lines += [
            '<div class="options" markdown>',
            "",
            "| option | meaning |",
            "| --- | --- |",
            *rows,
            "",
            "</div>",
            "",
        ]
    return lines


def _row(item) -> str:
    argument = item.param_type_name == "argument"
    names = _name(item) if argument else ", ".join([*item.opts, *item.secondary_opts])
    kind = "" if argument or item.is_flag else f" {item.metavar or _values(item.type_descriptor.annotation)}"
    said = _text(getattr(item, "help", None) or "")
    cells = [f"`{names}{kind}`", said]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(kind: type) -> str:
    """What stands for a value in the list of options."""
    if issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return {int: "INTEGER", float: "NUMBER", Path: "FILE"}.get(kind, "TEXT")


def _name(argument) -> str:
    return argument.metavar or argument.name.upper()


def _text(said: str) -> str:
    """Help text as a paragraph of Markdown."""
    return html.escape(" ".join(said.split()), quote=False).replace("[", "\\[")
