"""The tokens of whoever has logged in: a file that nobody else can read."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from wecompany.cli.running import Problem

MAX_FILE = 1_048_576
"""Bytes of the file; there are more in none that we have written."""


def tokenFile() -> Path:
    """Return where the tokens are: in C{$XDG_CONFIG_HOME}, or C{~/.config}."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(configured) if configured.startswith("/") else Path.home() / ".config"
    except RuntimeError as e:  # nobody's home
        raise Problem(f"there is no place for tokens: {e}") from None
    return folder / "wecompany" / "tokens.json"


def loadToken(server: str, user: str) -> bytes:
    """
    Return the token of C{user} at C{server}; empty if there is none.

    @raise Problem: if the file cannot be read.
    """
    return _load(tokenFile()).get(server, {}).get(user, "").encode()


def saveToken(server: str, user: str, token: bytes) -> None:
    """
    Keep a token in place of the one before; an empty one is none.

    @raise Problem: if the file cannot be read or written.
    """
    path = tokenFile()
    tokens = _load(path)
    users = tokens.setdefault(server, {})
    if token:
        users[user] = token.decode("utf-8", "replace")
    else:
        users.pop(user, None)
    text = json.dumps({server: users for server, users in tokens.items() if users}, indent=1, ensure_ascii=False)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        # mkstemp's file is the owner's alone from its first moment on, and takes the other's place as a whole.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix="tokens-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as e:
        raise Problem(f"{path}: the token cannot be kept: {e.strerror or e}") from None


def _load(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open("rb") as file:
            tokens = json.loads(file.read(MAX_FILE))
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise Problem(f"{path}: {e.strerror or e}") from None
    except (ValueError, RecursionError):
        tokens = None
    if not isinstance(tokens, dict) or not all(
        isinstance(users, dict) and all(isinstance(token, str) for token in users.values()) for users in tokens.values()
    ):
        raise Problem(f"{path} is damaged; remove it and log in again")
    return tokens
