"""An HTTP server on loopback for stores: byte ranges, entity tags, latency, faults, and a record of all requests."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    range: str | None
    status: int
    n_bytes: int


class RangeServer(ThreadingHTTPServer):
    """Serves the files of a folder.

    Attributes
    ----------
    latency
        Seconds before each answer.
    failure_rate
        Share of the requests that fail: with 503, by closing the connection, or with half of the body.
    status
        Answer every request with this status, such as 403; None for what the files say.
    hangs
        Accept requests and never answer.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, folder, latency=0.0):
        self.folder, self.latency = Path(folder), latency
        self.failure_rate, self.status, self.hangs = 0.0, None, False
        self.requests: list[Request] = []
        self.random, self.lock, self.n_active, self.most_active = random.Random(0), threading.Lock(), 0, 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def recording(self):
        """The requests that are made within the context."""
        with self.lock:
            start = len(self.requests)
        found: list[Request] = []
        yield found
        with self.lock:
            found.extend(self.requests[start:])

    def handle_error(self, request, client_address):
        pass  # clients that go away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        server = self.server
        with server.lock:
            server.n_active += 1
            server.most_active = max(server.most_active, server.n_active)
            fault = (
                server.random.choice(["503", "reset", "short"]) if server.random.random() < server.failure_rate else ""
            )
        try:
            while server.hangs:
                time.sleep(0.05)
            time.sleep(server.latency)
            self.send(with_body, fault)
        finally:
            with server.lock:
                server.n_active -= 1

    def send(self, with_body, fault):
        server, key = self.server, self.path.lstrip("/")
        path, wanted = server.folder / key, self.headers.get("Range")
        if fault == "reset":
            self.record(key, wanted, 0, 0)
            self.close_connection = True
            self.connection.close()
            return
        if server.status or fault == "503":
            self.refuse(key, wanted, server.status or 503)
            return
        if not path.is_file():
            self.refuse(key, wanted, 404)
            return
        stat = path.stat()
        start, stop = self.bounds(wanted, stat.st_size)
        if wanted and start >= stat.st_size:
            self.refuse(key, wanted, 416)
            return
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start) if with_body else b""
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        tag = sha256(f"{stat.st_mtime_ns} {stat.st_size} {stat.st_ino}".encode()).hexdigest()[:16]
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Last-Modified", self.date_time_string(int(stat.st_mtime)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{stat.st_size}")
        self.end_headers()
        if fault == "short" and body:
            body, self.close_connection = body[: len(body) // 2], True
        self.record(key, wanted, 206 if wanted else 200, len(body))
        self.wfile.write(body)
        self.wfile.flush()

    def refuse(self, key, wanted, status):
        self.record(key, wanted, status, 0)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.wfile.flush()

    def record(self, key, wanted, status, n_bytes):
        with self.server.lock:
            self.server.requests.append(Request(self.command, key, wanted, status, n_bytes))

    @staticmethod
    def bounds(wanted, size):
        if not wanted:
            return 0, size
        if found := re.fullmatch(r"bytes=-(\d+)", wanted):
            return max(0, size - int(found[1])), size
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        return int(first), min(size, int(last) + 1 if last else size)
