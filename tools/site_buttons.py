"""A Sphinx extension for the published site: its buttons lead to the copies that read well outside it.

The download leads to the copy with outputs. Colab opens files of GitHub only, so its button appears where the project
has an address there, and opens the copy without outputs on the branch ``notebooks``.
"""

from typing import Any

LABEL = "download-source-button"  # of the theme's link to the notebook as it is committed


def buttons(theme: list[dict[str, Any]], page: str, to_root: str, repository: str) -> list[dict[str, Any]]:
    """The theme's buttons of a notebook's page, turned to its copy, and one for Colab.

    Args:
        theme: the header buttons as the theme made them.
        page: the page's name, such as ``book/backends``.
        to_root: the relative way from the page to the site's folder.
        repository: the project's address on GitHub, or "".

    Raises:
        LookupError: if the theme has no download button as this code knows it.
    """
    name = page.rsplit("/", 1)[-1]
    links = [one for group in theme for one in group.get("buttons", []) if one.get("label") == LABEL]
    if len(links) != 1:
        raise LookupError(f"{page}: the theme no longer makes a button {LABEL}; see tools/site_buttons.py.")
    links[0] |= {"url": f"{to_root}notebooks/{name}.ipynb", "tooltip": "Download this chapter as a notebook"}
    if not repository:
        return theme
    path = repository.removeprefix("https://github.com/") + f"/blob/notebooks/notebooks/{name}.ipynb"
    colab = {
        "type": "link",
        "url": f"https://colab.research.google.com/github/{path}",
        "text": "Colab",
        "tooltip": "Run this chapter in Colab",
        "icon": "fas fa-rocket",
        "label": "launch-colab-button",
    }
    return [colab, *theme]


def _turn(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if context.get("page_source_suffix") == ".ipynb" and app.builder.name == "html":
        repository = str(app.config.html_theme_options.get("repository_url") or "").rstrip("/").removesuffix(".git")
        to_root = context["pathto"]("index").removesuffix("index.html").replace("#", "")
        context["header_buttons"] = buttons(context["header_buttons"], pagename, to_root, repository)


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call this after the theme (500 and 501)."""
    app.connect("html-page-context", _turn, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
