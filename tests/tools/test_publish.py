"""What is published is what was tested, from one commit; what is in the way is said in words."""

import hashlib
import http.client
import json
import re
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import build_site, check_publish, common, publish_notebooks, run_notebooks, serve, weights


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A. Reader", "-c", "user.email=reader@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all of it")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one file, what is built left aside."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("build/\n_build/\n")
    (folder / "source.txt").write_text("one")
    commit_all(folder)
    return folder


def test_a_commit_is_named_whole_and_changes_are_told(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert common.commit(checkout) == head
    (checkout / "source.txt").write_text("two")
    assert common.commit(checkout) == f"{head}-dirty"


def test_outside_git_the_commit_is_unknown(checkout: Path) -> None:
    inner = checkout / "unpacked"
    inner.mkdir()
    assert common.commit(inner) == "unknown", "not the commit of the project around it"


# --- may it be published? ----------------------------------------------------------------------------


@pytest.fixture
def built(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose site was built, and its notebook executed, at its commit; the tools are turned towards it."""
    head = git(checkout, "rev-parse", "HEAD")
    notebook, executed = checkout / "one.ipynb", checkout / "build" / "executed"
    executed.mkdir(parents=True)
    site = checkout / "_build" / "html"
    site.mkdir(parents=True)
    (executed / "one.json").write_text(json.dumps({"commit": head, "processes": 5}))
    (site / "index.html").write_text("<h1>One</h1>")
    (site / "commit.txt").write_text(f"site {head}\nnotebooks {head}\n")
    monkeypatch.setattr(run_notebooks, "EXECUTED", executed)
    for module in (check_publish, build_site):
        monkeypatch.setattr(module, "ROOT", checkout)
        monkeypatch.setattr(module, "notebooks", lambda: [notebook])
    monkeypatch.setattr(check_publish, "all_stale", list)
    for module in (check_publish, build_site):
        monkeypatch.setattr(module, "SITE", site)
    monkeypatch.setattr(build_site, "STAMP", checkout / "build" / "site.sha256")
    build_site.STAMP.write_text(f"inputs {build_site.published_files()}")
    monkeypatch.setattr(weights, "problem", lambda path: None)
    return checkout


def refusals(capsys: pytest.CaptureFixture[str]) -> list[str]:
    code = check_publish.main()
    lines = capsys.readouterr().out.splitlines()
    assert code == int("Not to be published" in lines[0])
    return lines


def test_a_site_of_this_commit_may_be_published(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusals(capsys) == [f"to be published: commit {git(built, 'rev-parse', 'HEAD')}"]


def test_a_site_from_another_commit_than_its_notebooks_is_refused(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = git(built, "rev-parse", "HEAD")
    (built / "build" / "executed" / "one.json").write_text(json.dumps({"commit": "0" * 40, "processes": 5}))
    (built / "_build" / "html" / "commit.txt").write_text(build_site.origins())
    build_site.STAMP.write_text(f"inputs {build_site.published_files()}")
    (found,) = refusals(capsys)
    assert f"Notebooks were executed at commit {'0' * 40}, the site was built from {head}. make book" in found


def test_a_site_from_another_commit_than_is_checked_out_is_refused(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = git(built, "rev-parse", "HEAD")
    (built / "source.txt").write_text("two")
    after = commit_all(built)
    (found,) = refusals(capsys)
    assert f"The site was built from commit {before}, checked out is {after}." in found


def test_changes_that_no_commit_has_are_refused(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (built / "source.txt").write_text("two")
    assert "Files differ from the commit that is checked out" in refusals(capsys)[0]


def test_a_checkout_that_git_refuses_is_told(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (built / ".git" / "HEAD").write_text("damaged")
    assert "This is no git checkout, or one that git refuses (git status says why)" in refusals(capsys)[0]


@pytest.mark.parametrize("file", ["index.html", "results.json"])
def test_files_that_nobody_checked_are_refused(built: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    (built / "_build" / "html" / file).write_text("another")
    assert "Files of the site differ from those that were checked" in refusals(capsys)[0]


def test_a_stand_in_for_the_published_weights_is_refused(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "problem", lambda path: "net.pth is not the published file.")
    assert "The published weights are not in the cache that the chapters read. net.pth is not" in refusals(capsys)[0]


def test_too_few_processes_are_refused(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = git(built, "rev-parse", "HEAD")
    (built / "build" / "executed" / "one.json").write_text(json.dumps({"commit": head, "processes": 2}))
    assert "Timed in fewer than 5 processes: one. make book PROCESSES=5" in refusals(capsys)[0]


def test_a_stale_notebook_is_refused(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_publish, "all_stale", lambda: ["one"])
    assert "Not executed in their present state: one." in refusals(capsys)[0]


def test_no_site_is_refused(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (built / "_build" / "html" / "commit.txt").unlink()
    assert "There is no site, or one that does not say where it comes from: make book" in refusals(capsys)[0]


# --- the published weights ---------------------------------------------------------------------------


@pytest.fixture
def offered(tmp_path: Path, empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``make weights`` will find a file; its name has the first digits of its hash."""
    content = b"not really weights"
    file = tmp_path / "offered" / f"net_{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.parent.mkdir()
    file.write_bytes(content)

    class Official:
        url = file.as_uri()

    class Loaded:
        is_imagenet, notes = True, ()

    monkeypatch.setattr(weights.published, "OFFICIAL", Official)
    monkeypatch.setattr(weights.published, "pretrained_mobilenet_v2", lambda timeout_s: Loaded)
    monkeypatch.setattr(weights, "KNOWN", common.ROOT / "tools" / "none-recorded.sha256")
    return file


def test_weights_are_downloaded_and_what_was_not_checked_is_said(
    offered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.main()
    assert weights.cached().read_bytes() == offered.read_bytes()
    said = capsys.readouterr().out
    assert "only 8 digits are known, and they match" in said
    assert f"{hashlib.sha256(offered.read_bytes()).hexdigest()}  {offered.name}" in said


def test_a_recorded_hash_is_compared_whole(
    offered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "KNOWN", tmp_path / "known.sha256")
    digest = hashlib.sha256(offered.read_bytes()).hexdigest()
    weights.KNOWN.write_text(f"{digest}  {offered.name}\n")
    weights.main()
    assert "has the recorded SHA-256, all 64 digits" in capsys.readouterr().out
    weights.KNOWN.write_text(f"{digest[:8]}{'0' * 56}  {offered.name}\n")  # a forged file would match 8 digits
    with pytest.raises(SystemExit, match="is not the file that is recorded"):
        weights.main()


def test_a_download_with_another_hash_is_not_kept(offered: Path) -> None:
    offered.write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"could not be downloaded: invalid hash value"):
        weights.main()
    assert not weights.cached().exists()


def test_weights_that_cannot_be_downloaded_are_named(offered: Path) -> None:
    offered.unlink()
    with pytest.raises(SystemExit, match=re.escape(f"{offered.as_uri()} could not be downloaded")):
        weights.main()


def test_a_stand_in_in_the_cache_is_not_published(offered: Path) -> None:
    weights.cached().parent.mkdir(parents=True)
    weights.cached().write_bytes(b"saved anew")
    with pytest.raises(SystemExit, match=r"is not the published file: its SHA-256 begins with \w{8}, not with \w{8}\."):
        weights.main()
    assert weights.cached().read_bytes() == b"saved anew", "what the reader has is left alone"


# --- the branch that Colab opens ---------------------------------------------------------------------


@pytest.fixture
def remote(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository that the built checkout pushes to."""
    folder = tmp_path / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(folder)], check=True)
    git(built, "remote", "add", "origin", str(folder))
    monkeypatch.setattr(publish_notebooks, "ROOT", built)
    cleared = built / "_build" / "html" / "notebooks" / "cleared"
    cleared.mkdir(parents=True)
    (cleared / "one.ipynb").write_text("{}")
    return folder


def publish(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["publish_notebooks", str(site)])
    publish_notebooks.main()


@pytest.mark.parametrize("packed", [False, True])
def test_cleared_copies_become_the_one_commit_of_the_branch(
    built: Path, remote: Path, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = built / "_build" / "html"
    if packed:
        with tarfile.open(tmp_path / "artifact.tar", "w") as archive:
            archive.add(site, arcname=".")
        site = tmp_path / "artifact.tar"
    publish(site, monkeypatch)
    publish(site, monkeypatch)
    files = git(remote, "ls-tree", "-r", "--name-only", "notebooks").splitlines()
    assert files == ["README.md", "notebooks/one.ipynb"]
    assert git(remote, "rev-list", "--count", "notebooks") == "1"
    assert not common.commit(built).endswith("-dirty")


def test_copies_of_another_commit_s_site_are_not_pushed(
    built: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (built / "source.txt").write_text("two")
    after = commit_all(built)
    with pytest.raises(SystemExit, match=f"The site's commit.txt says .*, but commit {after} is checked out"):
        publish(built / "_build" / "html", monkeypatch)
    assert git(remote, "branch", "--list") == ""


def test_a_site_without_copies_and_a_missing_one_are_refused(
    built: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (built / "_build" / "html" / "notebooks" / "cleared" / "one.ipynb").unlink()
    with pytest.raises(SystemExit, match="has no notebooks in notebooks/cleared"):
        publish(built / "_build" / "html", monkeypatch)
    with pytest.raises(SystemExit, match="Give the folder of the site"):
        publish(built / "nowhere", monkeypatch)
    (built / "build" / "artifact.tar").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"artifact\.tar is no archive of a site, or a damaged one"):
        publish(built / "build" / "artifact.tar", monkeypatch)


def test_what_git_says_of_a_failed_push_is_passed_on(
    built: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(built, "remote", "set-url", "origin", str(remote / "nowhere"))
    with pytest.raises(SystemExit, match=r"git push failed: .*nowhere"):
        publish(built / "_build" / "html", monkeypatch)


# --- make serve, and folders -------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something else listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("<h1>One</h1>")
    return tmp_path


def test_a_port_in_use_is_said_and_the_next_free_one_serves(
    site: Path, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve.server(site, taken) as serving:
        port = serving.server_port
        assert taken < port < taken + serve.TRIED
        assert f"Port {taken} is in use." in capsys.readouterr().out
        thread = threading.Thread(target=serving.handle_request)
        thread.start()
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        asked.request("GET", "/index.html")
        assert asked.getresponse().read() == b"<h1>One</h1>"
        asked.close()
        thread.join()


def test_the_address_is_printed(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "SITE", site)
    monkeypatch.setattr(serve.ThreadingHTTPServer, "serve_forever", ended)
    monkeypatch.setattr(sys, "argv", ["serve", "--port", "8123"])
    serve.main()
    assert re.search(r"The book: http://localhost:81\d\d/ \(Ctrl-C ends it\)", capsys.readouterr().out)


def test_no_free_port_is_said(site: Path, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TRIED", 1)
    with pytest.raises(SystemExit, match=f"No port from {taken} to {taken} is free: make serve PORT=…"):
        serve.server(site, taken)


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "8000.5", ""])
def test_what_is_no_port_is_refused(
    port: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", f"--port={port}"])
    with pytest.raises(SystemExit):
        serve.main()
    assert f"{port!r} is no port: give a number from 1 to 65535." in capsys.readouterr().err


def test_serving_without_a_site_says_what_builds_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"There is no site in .*: make book builds it"):
        serve.server(tmp_path, 8000)


def test_a_build_folder_that_cannot_be_written_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build").write_text("a file stands where the folder should")
    monkeypatch.setattr(sys, "argv", ["run_notebooks"])
    monkeypatch.setattr(run_notebooks, "BUILD", tmp_path / "build")
    with pytest.raises(SystemExit, match=r"build cannot be written: file exists\. Give it to the user who runs make"):
        run_notebooks.main()
    monkeypatch.setattr(build_site, "STAGE", tmp_path / "build" / "site")
    with pytest.raises(SystemExit, match="build cannot be written"):
        build_site.main()
    monkeypatch.setattr(build_site, "STAGE", tmp_path / "other" / "site")
    monkeypatch.setattr(build_site, "SITE", Path("/proc/self/_build/html"))  # not even root can make a folder there
    with pytest.raises(SystemExit, match=r"/proc/self/_build cannot be written: .+\. Give it to"):
        build_site.main()


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(common.tempfile, "TemporaryFile", refused)
    with pytest.raises(SystemExit, match="cannot be written: permission denied"):
        common.require_writable(tmp_path)
