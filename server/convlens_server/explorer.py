"""The explorer's files, over HTTP: the page at `/`, and what it loads under `/explorer/`."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import posixpath
import re
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

_PACKAGE = "convlens_explorer"
_PAGE = "index.html"
_SCRIPT = "js/main.js"
# Of a module: import … from "./x.js", and import "./x.js"; not import("./x.js").
_IMPORT = re.compile(rb'^(?:import\s|[^"\n]*\bfrom\s)[^"(]*"(\.[^"]+\.js)";$', re.MULTILINE)
_TYPES = {".js": "text/javascript", ".json": "application/json", ".svg": "image/svg+xml"}

# The page loads nothing from elsewhere, but images: people give an address of one, or a file of their own.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data: blob: https: http:",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    # Asked for again each time, by its ETag: a page of one release never runs with scripts of another.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    packed: bytes
    tag: str
    media_type: str


def explorer_routes() -> tuple[BaseRoute, ...]:
    """The routes of the page, with all its files in memory."""
    files = dict(_read(resources.files(_PACKAGE), ""))
    files[_PAGE] = _with_preloads(files)

    async def page(request: Request) -> Response:
        return _answer(request, files[_PAGE])

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["path"])
        return PlainTextResponse("no such file\n", 404) if found is None else _answer(request, found)

    return (Route("/", page), Route("/explorer/{path:path}", file))


def _read(folder: Traversable, path: str) -> list[tuple[str, _File]]:
    found: list[tuple[str, _File]] = []
    for entry in folder.iterdir():
        name = path + entry.name
        if entry.is_dir():
            found += _read(entry, f"{name}/")
        elif not name.endswith((".py", ".pyc")):
            suffix = "." + name.rpartition(".")[2]
            media_type = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
            found.append((name, _file(entry.read_bytes(), media_type)))
    return found


def _file(content: bytes, media_type: str) -> _File:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return _File(content, gzip.compress(content, mtime=0), tag, media_type)


def _with_preloads(files: dict[str, _File]) -> _File:
    """The page, with a link to each module that its script needs: a browser then asks for all at once."""
    page = files[_PAGE]
    links = "".join(f'    <link rel="modulepreload" href="explorer/{name}" />\n' for name in _needed(files, _SCRIPT))
    return _file(page.content.replace(b"  </head>", links.encode() + b"  </head>"), page.media_type)


def _needed(files: dict[str, _File], script: str) -> list[str]:
    """The modules that a module imports, directly or not, and itself; those loaded on demand are not among them."""
    found = [script]
    for name in found:
        folder = name.rpartition("/")[0]
        for target in _IMPORT.findall(files[name].content):
            path = posixpath.normpath(posixpath.join(folder, target.decode()))
            if path in files and path not in found:
                found.append(path)
    return found


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    packs = "gzip" in request.headers.get("accept-encoding", "") and len(file.packed) < len(file.content)
    if packs:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if packs else file.content, headers=headers, media_type=file.media_type)
