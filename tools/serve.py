"""Show the built site to this machine's browsers, on the first port that is free.

python -m tools.serve [--port 8000]
"""

import argparse
import errno
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tools.common import SITE

TRIED = 20  # ports, from the wanted one upwards


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a folder, on the wanted port or the next free one.

    Raises:
        SystemExit: if there is no site, or none of the ports can be had.
    """
    if not (folder / "index.html").is_file():
        raise SystemExit(f"There is no site in {folder}: make book builds it.")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    last = min(port + TRIED, 65_536) - 1
    for candidate in range(port, last + 1):
        try:
            return ThreadingHTTPServer(("127.0.0.1", candidate), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):  # the second: of ports below 1024
                raise
            print(f"Port {candidate} {'is in use' if error.errno == errno.EADDRINUSE else 'is reserved'}.", flush=True)
    raise SystemExit(f"No port from {port} to {last} is free: make serve PORT=… takes another.")


def port_number(text: str) -> int:
    """A port from the command line.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535.")
    return int(text)


def main() -> None:
    """Serve until the reader ends it with Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=port_number, default=8000)
    with server(SITE, parser.parse_args().port) as serving:
        print(f"The book: http://localhost:{serving.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
