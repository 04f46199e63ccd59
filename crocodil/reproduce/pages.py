"""What a reproduction leaves behind: JSON, Markdown, pictures and one HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from crocodil.atomic import write_atomically
from crocodil.reproduce import markdown, page
from crocodil.reproduce.draw import Picture, draw
from crocodil.reproduce.result import Result, to_json


def write(out: Path, results: Sequence[Result], beside: str | None = None) -> Path:
    """Write NAME.json, NAME.md and pictures of each result, and index.html of all of them.

    Args:
        beside: a Markdown page of all of them elsewhere; its pictures and the JSON go into a folder of its name.

    Returns:
        The path of the HTML page.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = {result.name: draw(result) for result in results}
    for result in results:
        names = _pictures(out, result.name, pictures[result.name], ("svg", "png"))
        write_atomically(out / f"{result.name}.json", to_json(result))
        write_atomically(out / f"{result.name}.md", markdown.section(result, names["png"]))
    if beside is not None:
        write_markdown(Path(beside), results, pictures)
    html = page.render(results, {name: [one.svg for one in drawn] for name, drawn in pictures.items()})
    write_atomically(out / "index.html", html)
    return out / "index.html"


def write_markdown(file: Path, results: Sequence[Result], pictures: dict[str, list[Picture]]) -> None:
    """One Markdown page, with a folder beside it that holds what it is made of."""
    folder = file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for result in results:
        names = _pictures(folder, result.name, pictures[result.name], ("png",))["png"]
        paths[result.name] = [os.path.join(folder.name, name) for name in names]
        write_atomically(folder / f"{result.name}.json", to_json(result))
    write_atomically(file, markdown.render(results, paths))


def _pictures(
    folder: Path, name: str, pictures: Sequence[Picture], kinds: Sequence[str]
) -> dict[str, list[str]]:
    """Write the pictures of a result: their file names, by kind. One picture has the figure's name, more are numbered."""
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for at, picture in enumerate(pictures, start=1):
        stem = name if len(pictures) == 1 else f"{name}-{at}"
        for kind in kinds:
            write_atomically(folder / f"{stem}.{kind}", getattr(picture, kind))
            found[kind].append(f"{stem}.{kind}")
    return found
