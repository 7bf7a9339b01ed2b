"""A server that wandb's own client takes for Weights & Biases: it keeps runs, and says of one that is resumed where it stands."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"


@dataclass
class WandbServer:
    """What it was told.

    Attributes:
        history: rows of each run, by its id, as they came.
        states: what each run's process said when it ended: (exit code, whether it was being preempted).
        preempting: runs that said so, and have not ended.
    """

    url: str = ""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    states: dict[str, list[tuple[int, bool]]] = field(default_factory=dict)
    preempting: set[str] = field(default_factory=set)

    @property
    def env(self) -> dict[str, str]:
        """For a script: the client talks to this server, and keeps what it must on disk in its folder."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "a" * 40,
            "WANDB_SILENT": "true",
            "WANDB_CONSOLE": "off",
        }

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answer a query of GraphQL."""
        entity = {"id": "e", "name": "me"}
        run = given.get("name")
        match operation:
            case "Viewer":
                viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}
                return {"viewer": {**viewer, "teams": {"edges": []}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                bucket = None
                if run in self.history:
                    rows = self.history[run]
                    bucket = {
                        "id": "r", "name": run, "summaryMetrics": json.dumps(rows[-1] if rows else {}), "displayName": run, "logLineCount": 0,
                        "historyLineCount": len(rows), "eventsLineCount": 0,
                        "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
                        "eventsTail": "[]", "config": "{}", "tags": [], "notes": "", "wandbConfig": '{"t": 1}',
                    }  # fmt: skip
                return {"model": {"id": "m", "name": "p", "entity": entity, "bucket": bucket}}
            case "UpsertBucket":
                project = {"id": "p", "name": given.get("project") or "p", "entity": entity}
                is_new = run not in self.history
                self.history.setdefault(run, [])
                bucket = {
                    "id": "r", "name": run, "displayName": given.get("displayName") or run, "description": "",
                    "config": "{}", "sweepName": None, "project": project, "historyLineCount": len(self.history[run]),
                }  # fmt: skip
                return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case _:
                return {}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """Take lines of a run's files: they replace what is there from their offset on."""
        for name, chunk in sent.get("files", {}).items():
            if name == HISTORY:
                rows = self.history.setdefault(run, [])
                rows[chunk["offset"] :] = [json.loads(line) for line in chunk["content"]]
        if sent.get("preempting"):
            self.preempting.add(run)
        if sent.get("complete"):
            self.states.setdefault(run, []).append((sent["exitcode"], run in self.preempting))
            self.preempting.discard(run)


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve on a port of this machine."""
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            self._send({})

        def do_PUT(self) -> None:
            self._body()
            self._send({})

        def do_POST(self) -> None:
            body = self._body()
            if self.path == "/graphql":
                asked = json.loads(body)
                found = state.answer(asked.get("operationName", ""), asked.get("variables") or {})
                self._send({"data": found})
                return
            if self.path.endswith("/file_stream"):
                state.stream(self.path.split("/")[-2], json.loads(body))
            self._send({})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _send(self, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """A client that was killed."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
