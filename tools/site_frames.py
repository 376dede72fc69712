"""A Sphinx extension for the published site: a slider's frames after the first lie in a file beside the page.

The browser reads that file when the slider comes near (``book/_static/frames.js``). It is a script and not data, so
that this also works for pages opened from disk, and its SVG is put into the page, so that it follows the theme.
"""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = "_frames"  # below the site
SLIDER = re.compile(
    r'<figure class="qb-figure qb-slider" id="(?P<name>\w+)">(?P<frames>.*?)(?=<label hidden>)', re.DOTALL
)
LATER = re.compile(
    r'(?P<opening><div data-frame="\d+" data-label="[^"]*" hidden>)(?P<frame>.*?)</div>(?=<div data-frame="|\Z)',
    re.DOTALL,
)


def moved(body: str) -> tuple[str, dict[str, list[str]]]:
    """A page's HTML whose sliders hold their first frame only, and the other frames by the slider's name."""
    later: dict[str, list[str]] = {}

    def emptied(slider: re.Match[str]) -> str:
        later[slider["name"]] = [frame["frame"] for frame in LATER.finditer(slider["frames"])]
        return slider[0].replace(slider["frames"], LATER.sub(r"\g<opening></div>", slider["frames"]))

    return SLIDER.sub(emptied, body), later


def script(name: str, frames: list[str]) -> str:
    """The file with a slider's later frames."""
    return f"qbFrames({json.dumps(name)}, {json.dumps(frames, ensure_ascii=False)});\n"


def frames_of(text: str) -> list[str]:
    """The frames in such a file."""
    frames: list[str] = json.loads(f"[{text.strip().removeprefix('qbFrames(').removesuffix(');')}]")[1]
    return frames


def _move(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if app.builder.name != "html" or "qb-slider" not in context.get("body", ""):
        return
    body, later = moved(context["body"])
    (Path(app.outdir) / FOLDER).mkdir(exist_ok=True)
    for name, frames in later.items():
        file = f"{FOLDER}/{name}.js"
        (Path(app.outdir) / file).write_text(script(name, frames), encoding="utf-8")
        opening = f'<figure class="qb-figure qb-slider" id="{name}"'
        body = body.replace(opening, f'{opening} data-frames="{context["pathto"](file, 1)}"')
    context["body"] = body
    app.add_js_file("frames.js")


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call this."""
    app.connect("html-page-context", _move)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
