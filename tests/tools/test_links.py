"""Outside links: one that is slow is told apart from one that is dead, and each with the pages that have it."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import links

LIMIT_S = 4
ANSWERS = {"/fine": 200, "/late": 200, "/never": 200, "/dead": 404, "/gone": 410, "/barred": 403, "/moved": 301}
ANSWERS |= {"/login": 401, "/picky": 406, "/busy": 429, "/out": 503, "/loop": 302}
PAUSES = {"/late": 2.0, "/never": LIMIT_S + 4.0}
KINDS = {
    "/fine": "fine",
    "/late": "fine",
    "/never": "slow",
    "/dead": "dead",
    "/gone": "dead",
    "/barred": "barred",
    "/moved": "moved",
    "/login": "barred",
    "/picky": "barred",
    "/busy": "barred",
    "/out": "barred",
    "/loop": "dead",
}


class Answer(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        time.sleep(PAUSES.get(self.path, 0))
        self.send_response(ANSWERS.get(self.path, 404))
        if self.path == "/moved":
            self.send_header("Location", "/fine")
        if self.path == "/loop":
            self.send_header("Location", "/loop")
        if self.path == "/busy":
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.handle_error = lambda *arguments: None  # type: ignore[method-assign] # who asked has left
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refused() -> str:
    """The address of a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/refused"


def test_a_slow_link_is_not_dead_and_a_late_one_is_fine(host: str) -> None:
    nobody = refused()
    pages = {f"{host}{path}": ["book/a.html"] for path in KINDS} | {nobody: ["README.md", "book/a.html"]}
    found = links.answers(pages, LIMIT_S)
    kinds = {link.removeprefix(host): links.kind(answer) for link, answer in found.items()}
    assert kinds == KINDS | {nobody: "dead"}
    lines, dead = links.report(pages, found)
    assert dead == 4
    order = ["dead"] * 4 + ["slow"] + ["barred"] * 5 + ["moved"]
    assert [line.split(":")[0] for line in lines[:-1]] == order
    assert f"{nobody} in README.md, book/a.html" in "\n".join(lines)
    assert lines[-1] == "13 links: 5 barred, 4 dead, 2 fine, 1 moved, 1 slow"


def test_without_a_way_out_no_link_is_called_dead(host: str) -> None:
    pages = {refused(): ["a"], f"{host}/barred": ["a"]}  # a proxy may bar everything
    with pytest.raises(SystemExit, match=r"No link of 2 led to a page, so this says nothing about them\."):
        links.report(pages, links.answers(pages, LIMIT_S))


def test_an_address_that_is_none_is_dead() -> None:
    assert links.kind(links.answers(["http://[half/"], LIMIT_S)["http://[half/"]) == "dead"


def test_addresses_reach_sphinx_as_they_are(host: str) -> None:
    listed = [f"{host}/fine?a=b_&c=<d>", f"{host}/under_", f"{host}/a`b"]
    assert set(links.answers(listed, LIMIT_S)) == set(listed)


def test_links_come_from_the_site_and_the_project_s_pages(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no site: make book, then make links"):
        links.outside_links(tmp_path)
    (tmp_path / "book").mkdir()
    (tmp_path / "index.html").write_text('<a href="https://a.org/x#y">A</a><a href="book/b.html">B</a>')
    (tmp_path / "book" / "b.html").write_text(
        '<a href="https://a.org/x#y">A</a><a href="http://localhost:8000">B</a>'
        '<a href=" https://a.org/two words">C</a><a href="mailto:a@a.org">D</a>'
    )
    found = links.outside_links(tmp_path)
    assert found["https://a.org/x#y"] == ["book/b.html", "index.html"]
    assert "CONTRIBUTING.md" in found["https://pre-commit.com"]
    assert found["https://a.org/two%20words"] == ["book/b.html"]
    assert not any("localhost" in link or "mailto" in link for link in found)
