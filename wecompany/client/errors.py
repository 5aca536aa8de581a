"""What can go wrong for a client, as exceptions."""

from __future__ import annotations

from wecompany.wire import CancelCode, ErrorCode, RejectCode


def _name(kind: type[ErrorCode] | type[RejectCode] | type[CancelCode], code: int) -> str:
    try:
        return kind(code).name.lower().replace("_", " ")
    except ValueError:
        return f"code {code}"


class ClientError(Exception):
    """What this library raises."""


class NotConnected(ClientError):
    """There is no connection now, or it was lost before the answer came."""


class TlsFailed(NotConnected):
    """The connection could not be made safe: most often, the server's certificate is not to be trusted."""


class AccountRefused(ClientError):
    """The server did not do what was asked for one's own account; the text is its reason."""


class ServerError(ClientError):
    """
    The server answered with an ERROR.

    @ivar code: an L{ErrorCode<wecompany.ErrorCode>}, or a number that this version does not know.
    @ivar text: the server's words.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{_name(ErrorCode, code)}: {text}")
        self.code = code
        self.text = text


class CallRejected(ClientError):
    """
    The call was not taken.

    @ivar code: a L{RejectCode<wecompany.RejectCode>}.
    @ivar text: the other party's words, may be empty.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(_name(RejectCode, code) + (f": {text}" if text else ""))
        self.code = code
        self.text = text


class TransferCancelled(ClientError):
    """
    The file did not get through.

    @ivar code: a L{CancelCode<wecompany.CancelCode>}.
    @ivar text: the words of whoever cancelled it, may be empty.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(_name(CancelCode, code) + (f": {text}" if text else ""))
        self.code = code
        self.text = text
