"""A Sphinx extension for the published site: it mends what keeps a screen reader out, searches and filters.

Boxes of task lists, which only decorate, are passed over; a table's empty corner is no header; the list of references
has roles that are allowed. The search page gets Pagefind's results (see tools/site_search.py),
those of symptoms and of verdicts a filter.
"""

import re
from typing import Any

BOX = re.compile(r'<input class="task-list-item-checkbox"')
CORNER = re.compile(r"<th( [^>]*)?>\s*</th>")
LIST = re.compile(r'<div role="list" class="citation-list">')
ITEM = re.compile(r' role="doc-biblioentry"')
SCRIPTS = {"search": "search.js", "book/symptoms": "symptoms.js", "book/verdicts": "verdicts.js"}  # by page


def mended(body: str) -> str:
    """A page's HTML with roles as they should be.

    >>> mended('<th></th><input class="task-list-item-checkbox" disabled>')
    '<td></td><input class="task-list-item-checkbox" aria-hidden="true" disabled>'
    """
    body = BOX.sub('<input class="task-list-item-checkbox" aria-hidden="true"', body)
    body = CORNER.sub(r"<td\1></td>", body)
    return ITEM.sub("", LIST.sub('<div class="citation-list">', body))


def _mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = mended(context["body"])
    if script := SCRIPTS.get(pagename):
        app.add_js_file(script)


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call this."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
