"""
The wire: what a message looks like in bytes, and nothing else.

This module is sans-IO.  It knows no transport, no clock, no log and no user; it turns bytes into messages and messages
into bytes, and holds the names and the bounds of the protocol.  docs/protocol.rst describes the same thing for people.

::

    stream  = frame*
    frame   = length:u16  payload[length]
    payload = type:u8  idLength:u16  userId[idLength]  data

All integers are unsigned and big-endian; texts are UTF-8.
"""

from __future__ import annotations

import struct
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from functools import lru_cache

from attrs import frozen

# -- Names ---------------------------------------------------------------------------------------------------------


class MessageType(IntEnum):
    """The first byte of a payload.  0 to 7 are the mission's own and never change."""

    TEXT = 0
    FILE = 1
    CALL_REQUEST = 2
    CALL_ACCEPT = 3
    CALL_REJECT = 4
    CALL_END = 5
    MEDIA_DATA = 6
    HEARTBEAT = 7
    LOGIN = 8
    SIGNUP = 9
    AUTH_RESPONSE = 10
    ERROR = 11
    PRESENCE = 12
    ACK = 13
    DELAY = 14
    GROUP = 15


class ErrorCode(IntEnum):
    """The first byte of an ERROR's data."""

    MALFORMED = 1
    NOT_REGISTERED = 2
    BAD_CREDENTIAL = 3
    ID_IN_USE = 4
    OFFLINE = 5
    NO_SUCH_CALL = 6
    OVERLOADED = 7
    BAD_REQUEST = 8
    FORBIDDEN = 9
    SHUTTING_DOWN = 10
    REPLACED = 11
    IDLE = 12
    TOO_SLOW = 13
    INTERNAL = 14


class RejectCode(IntEnum):
    """Why a call was not taken."""

    DECLINED = 0
    BUSY = 1
    OFFLINE = 2
    NO_ANSWER = 3
    TO_SELF = 4
    OVERLOADED = 5
    FORBIDDEN = 6
    UNSUPPORTED = 7


class EndCode(IntEnum):
    """Why a call is over."""

    HUNG_UP = 0
    CANCELLED = 1
    PEER_LOST = 2
    MAX_DURATION = 3
    SHUTTING_DOWN = 4
    ANSWERED_ELSEWHERE = 5


class FileOp(IntEnum):
    """The first byte of a FILE's data."""

    OFFER = 0
    ACCEPT = 1
    CHUNK = 2
    DONE = 3
    RECEIVED = 4
    CANCEL = 5
    CREDIT = 6


class CancelCode(IntEnum):
    """Why a file transfer was given up."""

    DECLINED = 0
    CANCELLED = 1
    HASH_MISMATCH = 2
    PEER_LOST = 3
    RULE_BROKEN = 4
    NO_SPACE = 5


class PresenceOp(IntEnum):
    """The first byte of a client's PRESENCE."""

    LIST = 0
    SUBSCRIBE = 1
    UNSUBSCRIBE = 2
    LIST_ALL = 3


class AccountOp(IntEnum):
    """The first byte of a LOGIN's data on a registered connection: what a user asks for its own account."""

    LOG_OUT = 0
    CHANGE_PASSWORD = 1
    BLOCK = 2
    UNBLOCK = 3
    LIST_BLOCKED = 4
    NEW_TOKEN = 5


class MediaKind(IntEnum):
    """Bits 0 to 6 of the first byte of media, by custom."""

    AUDIO = 0
    VIDEO_KEY = 1
    VIDEO_DELTA = 2
    OTHER = 3


VIDEO_FLAG = 1
"""Bit 0 of a CALL_REQUEST's flags: the call is a video call."""

CONTINUATION = 0x80
"""Bit 7 of the first byte of media: it continues the frame before it."""

# -- Bounds --------------------------------------------------------------------------------------------------------

MAX_PAYLOAD = 65_535
"""Bytes of a payload, and so of a relayed one: the most that a u16 length can name."""

MAX_FIRST_PAYLOAD = 2_048
"""Bytes of a connection's first payload: a stranger may not make the server hold more."""

MAX_USER_ID = 128
"""Bytes of a user ID."""

MAX_DESCRIPTION = 16_384
"""Bytes of an offer or an answer of a call."""

MAX_REASON = 1_024
"""Bytes of a reason text, and of a credential."""

MAX_CHUNK = 60_000
"""Bytes of a file in one CHUNK: leaves room for the longest user ID in the relayed frame."""

FILE_WINDOW = 1_048_576
"""Bytes of a file that its sender may have under way."""

MAX_FILE_NAME = 255
"""Bytes of a file's name: what common file systems take."""

ID_SIZE = 16
"""Bytes of a call ID, a transfer ID and a session ID."""

NO_TYPE = 255
"""Stands in an ERROR for the type of a frame that had none."""

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class WireError(Exception):
    """
    What the other side sent breaks a rule of the protocol.

    @ivar code: which rule, as the ERROR that answers it says.
    @ivar text: the same for a person to read; it quotes nothing that the other side sent.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


# -- Frames --------------------------------------------------------------------------------------------------------


packHead = struct.Struct(">HB").pack
"""Called with the length of a payload and its type; returns what a frame begins with, in front of the tag."""


def encodeTag(userId: bytes) -> bytes:
    """
    Return the length-prefixed form of C{userId}, which stands in every frame from or about that user.

    It is made once for each user and used for each of its messages.
    """
    return len(userId).to_bytes(2, "big") + userId


def encodeHead(messageType: int, tag: bytes, size: int) -> bytes:
    """
    Return what stands in a frame before its data.

    @param tag: what L{encodeTag} gave for the frame's user ID.
    @param size: bytes of the data.
    @raise WireError: badRequest, if the payload would exceed L{MAX_PAYLOAD}.
    """
    length = 1 + len(tag) + size
    if length > MAX_PAYLOAD:
        raise WireError(ErrorCode.BAD_REQUEST, f"too long by {length - MAX_PAYLOAD} bytes to be passed on")
    return packHead(length, messageType) + tag


def encodeTagged(messageType: int, tag: bytes, data: bytes) -> bytes:
    """
    Return a whole frame, its length included.

    @param tag: what L{encodeTag} gave for the frame's user ID.
    @raise WireError: badRequest, if the payload would exceed L{MAX_PAYLOAD}.
    """
    return encodeHead(messageType, tag, len(data)) + data


def encodeRun(messageType: int, tag: bytes, bodies: Sequence[bytes], isEven: bool) -> bytes:
    """
    Return what L{encodeTagged} returns for each of C{bodies}, one behind the other.

    @param isEven: whether all of them have the same length, so that the same stands before each.
    @raise WireError: badRequest, if one of them is too long.
    """
    if not isEven:
        return b"".join([encodeTagged(messageType, tag, data) for data in bodies])
    head = encodeHead(messageType, tag, len(bodies[0]))
    return head + head.join(bodies)


def encodeFrame(messageType: int, userId: bytes, data: bytes = b"") -> bytes:
    """
    Return a whole frame, its length included.

    @param userId: the other party, the own ID where the protocol says so, or empty for the server.
    @raise WireError: badRequest, if the payload would exceed L{MAX_PAYLOAD}.
    """
    return encodeTagged(messageType, encodeTag(userId), data)


@lru_cache(maxsize=64)
def _cutter(head: int, body: int, n: int) -> Callable[[bytes], tuple[bytes, ...]]:
    """Return what cuts C{n} frames of so many bytes before and in their bodies into those parts, all in one call."""
    return struct.Struct(f"{head}s{body}s" * n).unpack


def decodeRun(stream: bytes, start: int, most: int) -> tuple[int, bytes, Sequence[bytes], bool, int] | None:
    """
    Return C{(type, userId, bodies, isEven, end)} of the frames of one type and user ID that begin at C{start} in
    C{stream}.

    C{isEven} says whether all bodies are known to have the same length, C{end} is the offset behind the last frame.
    Neither type nor user ID is judged here.

    @param most: the frames that are decoded at most.
    @return: C{None} if there is no whole frame there.
    @raise WireError: malformed, if the first frame cannot be one.
    """
    size = len(stream)
    if size - start < 2:
        return None
    length = stream[start] << 8 | stream[start + 1]
    if length < 3:
        raise WireError(ErrorCode.MALFORMED, f"a payload of {length} bytes is too short: it has at least 3")
    end = start + 2 + length
    if end > size:
        return None
    body = start + 5 + (stream[start + 3] << 8 | stream[start + 4])
    if body > end:
        raise WireError(ErrorCode.MALFORMED, "the user ID is longer than the payload")
    messageType, userId = stream[start + 2], stream[start + 5 : body]
    if end == size:
        return messageType, userId, [stream[body:]], True, end
    head = stream[start:body]
    step = end - start
    n = size // step
    if not start and n * step == size and n <= most:  # often all frames that there are have as many bytes
        parts = _cutter(len(head), step - len(head), n)(stream)
        if parts[::2].count(head) == n:
            return messageType, userId, parts[1::2], True, size
    bodies = [stream[body:end]]
    prefix = head[2:]
    for _ in range(most - 1):
        if stream.startswith(head, end):
            next_ = end + step
        elif stream.startswith(prefix, end + 2):
            next_ = end + 2 + (stream[end] << 8 | stream[end + 1])
        else:
            break
        body = end + len(head)
        if not body <= next_ <= size:
            break
        bodies.append(stream[body:next_])
        end = next_
    return messageType, userId, bodies, False, end


def decodeFrames(stream: bytes) -> Iterator[tuple[int, bytes, bytes, int]]:
    """
    Yield C{(type, userId, data, end)} for each whole frame at the beginning of C{stream}.

    C{end} is the offset in C{stream} behind that frame: C{stream[end:]} of the last one is what has to be kept until
    more arrives.  Neither type nor user ID is judged here.

    @raise WireError: malformed, at the first frame that cannot be one, when those before it have been yielded.
    """
    at = 0
    while (run := decodeRun(stream, at, sys.maxsize)) is not None:
        messageType, userId, bodies, _, _ = run
        for data in bodies:
            at += 5 + len(userId) + len(data)
            yield messageType, userId, data, at


def hasFrame(stream: bytes) -> bool:
    """Return whether C{stream} begins with a whole frame, or with what cannot become one."""
    if len(stream) < 2:
        return False
    length = stream[0] << 8 | stream[1]
    return length < 3 or len(stream) - 2 >= length


def decodePayload(payload: bytes) -> tuple[int, bytes, bytes]:
    """
    Return C{(type, userId, data)} of one payload, as an Int16StringReceiver or a WebSocket delivers it.

    @raise WireError: malformed.
    """
    for messageType, userId, data, _ in decodeFrames(len(payload).to_bytes(2, "big") + payload):
        return messageType, userId, data
    raise AssertionError("a whole frame is decoded or refused")  # pragma: no cover


def checkUserId(userId: bytes) -> str:
    """
    Return C{userId} as text.

    @raise WireError: badRequest, if it is not 1 to 128 bytes of UTF-8 in NFC without control, format or separator
        characters and spaces at the ends, or if it has a form that is kept for groups.
    """
    if not userId:
        raise WireError(ErrorCode.BAD_REQUEST, "this needs a user ID")
    if len(userId) > MAX_USER_ID:
        raise WireError(ErrorCode.BAD_REQUEST, f"a user ID has at most {MAX_USER_ID} bytes")
    try:
        text = userId.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError(ErrorCode.BAD_REQUEST, "a user ID is UTF-8") from None
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        raise WireError(ErrorCode.BAD_REQUEST, "a user ID is in Unicode's normal form NFC")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text):
        raise WireError(ErrorCode.BAD_REQUEST, "a user ID has no control, format or separator characters")
    if text != text.strip():
        raise WireError(ErrorCode.BAD_REQUEST, "a user ID neither begins nor ends with a space")
    if text.startswith("#") or "/" in text:
        raise WireError(ErrorCode.BAD_REQUEST, "a user ID neither begins with # nor contains /")
    return text


# -- The data of each type -----------------------------------------------------------------------------------------


def encodeU32(number: int) -> bytes:
    """Return a count of texts or users as it stands on the wire."""
    return _U32.pack(number)


def decodeU32(data: bytes) -> int:
    """
    Return the count that C{data} is.

    @raise WireError: badRequest, if C{data} is not exactly four bytes.
    """
    if len(data) != _U32.size:
        raise WireError(ErrorCode.BAD_REQUEST, "a count has 4 bytes")
    return int(_U32.unpack(data)[0])


def encodeError(code: int, messageType: int, text: str) -> bytes:
    """Return the data of an ERROR about a frame of C{messageType}."""
    return bytes((code, messageType)) + text.encode("utf-8")


def decodeError(data: bytes) -> tuple[int, int, str]:
    """
    Return C{(code, type, text)} of an ERROR.

    @raise WireError: badRequest, if it is shorter than that.
    """
    if len(data) < 2:
        raise WireError(ErrorCode.BAD_REQUEST, "an ERROR has a code and a type")
    return data[0], data[1], data[2:].decode("utf-8", "replace")


def splitId(data: bytes) -> tuple[bytes, bytes]:
    """
    Return the 16-byte ID at the beginning of C{data}, and the rest.

    @raise WireError: badRequest, if it is shorter than that.
    """
    if len(data) < ID_SIZE:
        raise WireError(ErrorCode.BAD_REQUEST, f"an ID has {ID_SIZE} bytes")
    return data[:ID_SIZE], data[ID_SIZE:]


def checkLength(data: bytes, most: int, what: str) -> bytes:
    """
    Return C{data}.

    @raise WireError: badRequest, if it has more than C{most} bytes.
    """
    if len(data) > most:
        raise WireError(ErrorCode.BAD_REQUEST, f"{what} has at most {most} bytes")
    return data


def splitReason(data: bytes) -> tuple[int, bytes]:
    """
    Return C{(code, text)} of a CALL_REJECT, CALL_END or file CANCEL; a code that was left out is 0.

    @raise WireError: badRequest, if the text is longer than L{MAX_REASON}.
    """
    if not data:
        return 0, b""
    return data[0], checkLength(data[1:], MAX_REASON, "a reason")


def encodeReason(text: str) -> bytes:
    """Return as much of a reason as may be sent: what a person typed is cut rather than refused."""
    return text.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore").encode()


@frozen
class FileOffer:
    """
    What a sender says of its file.

    @ivar size: bytes.
    @ivar sha256: 32 bytes, of the whole file.
    @ivar name: without any folder.
    """

    size: int
    sha256: bytes
    name: str

    def encode(self) -> bytes:
        """Return the data that follows the transfer ID."""
        return _U64.pack(self.size) + self.sha256 + self.name.encode("utf-8")

    @classmethod
    def decode(cls, data: bytes) -> FileOffer:
        """
        Return the offer that C{data} is.

        @raise WireError: badRequest, if a field is missing or the name is one that could lead out of a folder.
        """
        if len(data) < 41:
            raise WireError(ErrorCode.BAD_REQUEST, "an offer has a size, a SHA-256 and a name")
        try:
            name = checkLength(data[40:], MAX_FILE_NAME, "a file name").decode("utf-8")
        except UnicodeDecodeError:
            raise WireError(ErrorCode.BAD_REQUEST, "a file name is UTF-8") from None
        if name in (".", "..") or any(c in "/\\" or unicodedata.category(c) == "Cc" for c in name):
            raise WireError(
                ErrorCode.BAD_REQUEST, "a file name is not . or .. and has no slash, backslash or control character"
            )
        return cls(int(_U64.unpack_from(data)[0]), data[8:40], name)


def encodeOffset(offset: int) -> bytes:
    """Return an offset in a file as it stands on the wire."""
    return _U64.pack(offset)


def splitOffset(data: bytes) -> tuple[int, bytes]:
    """
    Return the offset at the beginning of C{data}, and the rest.

    @raise WireError: badRequest, if it is shorter than that.
    """
    if len(data) < _U64.size:
        raise WireError(ErrorCode.BAD_REQUEST, f"an offset has {_U64.size} bytes")
    return int(_U64.unpack_from(data)[0]), data[_U64.size :]


def decodeOffset(data: bytes) -> int:
    """
    Return the offset that C{data} is.

    @raise WireError: badRequest, if C{data} is not exactly eight bytes.
    """
    offset, rest = splitOffset(data)
    if rest:
        raise WireError(ErrorCode.BAD_REQUEST, "there is more here than an offset")
    return offset
