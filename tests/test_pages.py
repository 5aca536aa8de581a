"""The page for browsers: what its files may be, and what its modules do, as far as that needs no browser."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from wecompany.media import MediaFrame, Reassembler, StreamDescription, encodeFrame
from wecompany.wire import FileOffer, MediaKind, WireError, checkUserId, decodePayload
from wecompany.wire import encodeFrame as encodeMessage

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "wecompany" / "web" / "pages"
NODE = shutil.which("node")

MAX_SIZE = 150_000
"""Bytes of the whole page, as a browser asks for it: compressed."""

MAX_SOURCE = 225_000
"""Bytes of the same as it stands in the package, with all that is said in it for who reads it."""

NODE_WITHIN = 120.0
"""Seconds for all tests of the modules."""

PAGE_DESCRIPTION = (
    '{"v":1,"audio":{"codec":"opus","rate":48000,"channels":1},'
    '"video":{"codec":"vp8","width":640,"height":480,"rate":"30"},"receives":["opus"],"feedback":1}'
)
"""What the page says of its streams."""


class _Markup(HTMLParser):
    """Collects what a page loads, and what of it is inline."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        address = given.get("src") or given.get("href")
        if address is not None and not address.startswith("#"):
            self.loaded.append(address)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


def _frames(seed: random.Random) -> list[MediaFrame]:
    """Return frames of every kind, small and large."""
    return [
        MediaFrame(kind, seed.randrange(2**32), seed.randrange(2**53), seed.randbytes(size))
        for kind in MediaKind
        for size in (0, 1, 4_082, 4_083, 9_000)
    ]


def _streams(seed: random.Random) -> list[dict[str, Any]]:
    """Return what becomes of pieces that are lost, doubled and out of order."""
    streams = []
    for _ in range(40):
        frames = [
            MediaFrame(seed.choice(list(MediaKind)), n // 2, n * 20_000, seed.randbytes(seed.choice((3, 5_000, 9_000))))
            for n in range(8)
        ]
        pieces = [piece for frame in frames for piece in encodeFrame(frame)] + [b"", b"\x00", b"\x05" + bytes(20)]
        pieces = [piece for piece in pieces for _ in range(seed.choice((0, 1, 1, 1, 1, 2)))]
        if seed.random() < 0.5:
            seed.shuffle(pieces)
        reassembler = Reassembler()
        read = [reassembler.feed(piece) for piece in pieces]
        streams.append(
            {
                "pieces": [piece.hex() for piece in pieces],
                "frames": [frame and [int(frame.kind), frame.sequence, frame.data.hex()] for frame in read],
                "dropped": reassembler.dropped,
                "ignored": reassembler.ignored,
            }
        )
    return streams


def _isUser(name: str) -> bool:
    try:
        checkUserId(name.encode())
    except WireError:
        return False
    return True


def makeVectors() -> dict[str, Any]:
    """Return what the modules are compared with: the same things as this package says them."""
    seed = random.Random(5)
    names = [
        "a",
        "林小红",
        "é",
        "e\u0301",
        "",
        " a",
        "a ",
        "#a",
        "a#",
        "a/b",
        "a\n",
        "a\u200b",
        "a\u2028",
        "x" * 128,
        "x" * 129,
    ]
    offer = FileOffer(2**40 + 5, bytes(range(32)), "Bericht – 报告.pdf")
    payloads = [(0, "bob", b"hello"), (7, "", b""), (6, "林", bytes(range(256))), (13, "alice", bytes(20))]
    return {
        "payloads": [
            {
                "type": kind,
                "user": user,
                "data": data.hex(),
                "payload": encodeMessage(kind, user.encode(), data)[2:].hex(),
            }
            for kind, user, data in payloads
        ],
        "names": [{"name": name, "isGood": _isUser(name)} for name in names],
        "offer": {
            "size": offer.size,
            "sha256": offer.sha256.hex(),
            "name": offer.name,
            "data": offer.encode().hex(),
        },
        "frames": [
            {
                "kind": int(frame.kind),
                "sequence": frame.sequence,
                "timestamp": frame.timestamp,
                "data": frame.data.hex(),
                "pieces": [piece.hex() for piece in encodeFrame(frame)],
            }
            for frame in _frames(seed)
        ],
        "streams": _streams(seed),
        "description": '{"v":1,"audio":{"codec":"opus","rate":48000,"channels":1},'
        '"video":{"codec":"vp8","width":320,"height":240,"rate":"30000/1001"},"later":1}',
        "page": PAGE_DESCRIPTION,
    }


class PagesTests(SynchronousTestCase):
    """The files in C{wecompany/web/pages}."""

    def setUp(self) -> None:
        self.files = {path.name: path.read_bytes() for path in sorted(PAGES.iterdir())}
        self.sources = {
            name: data.decode() for name, data in self.files.items() if name.endswith((".css", ".html", ".js", ".svg"))
        }
        self.markup = _Markup()
        self.markup.feed(self.sources["index.html"])

    def test_small(self) -> None:
        """All of it together is small, both on its way and in the package."""
        self.assertLess(sum(len(gzip.compress(data)) for data in self.files.values()), MAX_SIZE)
        self.assertLess(sum(map(len, self.files.values())), MAX_SOURCE)

    def test_nothingInline(self) -> None:
        """There is no script, style or handler in the markup: the Content-Security-Policy would not let it."""
        self.assertEqual(self.markup.inline, [])

    def test_nobodyElse(self) -> None:
        """No file is asked of another host."""
        known = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
        for name, source in self.sources.items():
            for address in re.findall(r"""["'(](?:https?:)?//[\w.]+[^"')]*""", source):
                self.assertIn(address[1:], known, name)

    def test_whole(self) -> None:
        """Whatever a file of the page names is there, and every file is named by another."""
        named = set(self.markup.loaded) | {"index.html"}
        for source in self.sources.values():
            named |= set(re.findall(r"""["'](?:\./)?([\w-]+\.(?:js|svg|css))["']""", source))
        self.assertEqual(named, set(self.files))

    def test_textIsText(self) -> None:
        """What somebody wrote never becomes markup, nor code."""
        for name, source in self.sources.items():
            forbidden = re.findall(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source
            )
            self.assertEqual(forbidden, [], name)

    def test_described(self) -> None:
        """The terminal understands what the page says of its streams."""
        said = StreamDescription.decode(PAGE_DESCRIPTION.encode())
        assert said.audio is not None
        assert said.video is not None
        self.assertEqual((said.audio.channels, said.video.width, said.video.rate), (1, 640, 30))

    def test_vectors(self) -> None:
        """What the modules are compared with is what this package reads, too."""
        vectors = makeVectors()
        for one in vectors["payloads"]:
            read = decodePayload(bytes.fromhex(one["payload"]))
            self.assertEqual(read, (one["type"], one["user"].encode(), bytes.fromhex(one["data"])))
        self.assertEqual({one["isGood"] for one in vectors["names"]}, {True, False})
        self.assertTrue(any(one["dropped"] for one in vectors["streams"]))

    @skipUnless(NODE, "there is no node, which runs the tests of the page's modules")
    def test_modules(self) -> None:
        """The modules do what tests/web says."""
        assert NODE is not None
        folder = temporaryFolder(self)
        shutil.copytree(PAGES, folder / "wecompany" / "web" / "pages")
        shutil.copytree(ROOT / "tests" / "web", folder / "tests" / "web")
        # Browsers know a module by how it is loaded, and node by this.
        (folder / "package.json").write_text('{"type": "module"}')
        (folder / "vectors.json").write_text(json.dumps(makeVectors()))
        done = subprocess.run(
            [NODE, "--test", *sorted(str(path) for path in (folder / "tests" / "web").glob("*.test.js"))],
            cwd=folder,
            env={**os.environ, "WECOMPANY_VECTORS": str(folder / "vectors.json")},
            capture_output=True,
            text=True,
            timeout=NODE_WITHIN,
        )
        self.assertEqual(done.returncode, 0, done.stdout[-8_000:] + done.stderr[-2_000:])
        passed = re.search(r"^# pass (\d+)$|^ℹ pass (\d+)$", done.stdout, re.MULTILINE)
        assert passed is not None
        self.assertGreater(int(passed[1] or passed[2]), 40)
