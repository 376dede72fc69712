"""Interaction that works without a kernel: plain HTML over frames computed when the page was built."""

import html
import uuid
from collections.abc import Mapping, Sequence

from IPython.display import HTML


class WidgetError(ValueError):
    """A widget was given nothing to show, or parts that do not match."""


def frame_slider(frames: Sequence[str], labels: Sequence[str], caption: str, alt: str) -> HTML:
    """A slider over frames; arrow keys work, and without JavaScript the first frame stands alone.

    Args:
        frames: HTML of each frame (an ``<svg>`` or ``<img>`` with its own alt text).
        labels: what each frame shows, read out and written beside the slider.
        caption: what to look for.
        alt: what the slider moves through, its accessible name.

    Raises:
        WidgetError: if there is no frame, the numbers differ, or the caption or alt text is empty.

    >>> "range" in frame_slider(["<b>1</b>", "<b>2</b>"], ["one", "two"], "Numbers.", "a number").data
    True
    """
    if not frames or len(frames) != len(labels):
        raise WidgetError(f"A slider needs as many labels as frames: {len(frames)} frames, {len(labels)} labels.")
    if not caption.strip() or not alt.strip():
        raise WidgetError("A slider needs a caption and alt text.")
    name = f"s{uuid.uuid4().hex[:8]}"
    shown = "".join(
        f'<div data-frame="{i}" data-label="{html.escape(label)}"{" hidden" if i else ""}>{frame}</div>'
        for i, (frame, label) in enumerate(zip(frames, labels, strict=True))
    )
    script = f"""(function () {{
  var root = document.getElementById("{name}");
  var input = root.querySelector("input"), output = root.querySelector("output");
  var frames = root.querySelectorAll("[data-frame]");
  function show() {{
    frames.forEach(function (frame, i) {{ frame.hidden = i !== Number(input.value); }});
    output.textContent = frames[input.value].dataset.label;
    input.setAttribute("aria-valuetext", output.textContent);
  }}
  input.addEventListener("input", show);
  root.querySelector("label").hidden = false;
  show();
}})();"""
    return HTML(  # type: ignore[no-untyped-call]
        f'<figure class="qb-figure qb-slider" id="{name}">{shown}'
        f'<label hidden><input type="range" min="0" max="{len(frames) - 1}" value="0" step="1" '
        f'aria-label="{html.escape(alt)}" autocomplete="off" style="width:min(100%,28em)"> '
        f"<output>{html.escape(labels[0])}</output></label>"
        f"<figcaption>{html.escape(caption)}</figcaption><script>{script}</script></figure>"
    )


def switcher(panels: Mapping[str, str], caption: str) -> HTML:
    """Panels of which one is shown, chosen by radio buttons; no JavaScript at all.

    Args:
        panels: label to HTML; the first one is shown at the start.
        caption: what to look for.

    Raises:
        WidgetError: if there is no panel or no caption.

    >>> switcher({"cat": "<b>cat</b>", "dog": "<b>dog</b>"}, "Two animals.").data.count("radio")
    2
    """
    if not panels:
        raise WidgetError("A switcher needs at least one panel.")
    if not caption.strip():
        raise WidgetError("A switcher needs a caption.")
    name = f"w{uuid.uuid4().hex[:8]}"
    inputs, bodies, rules = "", "", f"#{name} .qb-panel{{display:none}}"
    for i, (label, body) in enumerate(panels.items()):
        checked = " checked" if i == 0 else ""
        inputs += (
            f'<input type="radio" name="{name}" id="{name}-{i}"{checked} autocomplete="off">'
            f'<label for="{name}-{i}">{html.escape(label)}</label>'
        )
        bodies += f'<div class="qb-panel">{body}</div>'
        rules += f"#{name}-{i}:checked~.qb-panels .qb-panel:nth-child({i + 1}){{display:block}}"
    return HTML(  # type: ignore[no-untyped-call]
        f'<figure class="qb-figure qb-switcher" id="{name}"><style>{rules}</style>{inputs}'
        f'<div class="qb-panels">{bodies}</div><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
