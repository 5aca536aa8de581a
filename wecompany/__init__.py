"""
WeCompany Server: messages, files and audio/video calls for one's own company, on one's own machine.

What an application that embeds the server needs is here; C{docs/embedding.rst} shows how to use it.
"""

from wecompany._version import version as __version__
from wecompany.calls import VideoCallServer
from wecompany.interfaces import CallSession, IServerObserver
from wecompany.protocol import WeCompanyProtocol
from wecompany.server import ServerObserver, WeCompanyFactory
from wecompany.wire import (
    CancelCode,
    EndCode,
    ErrorCode,
    FileOp,
    MediaKind,
    MessageType,
    PresenceOp,
    RejectCode,
    WireError,
)

__all__ = [
    "CallSession",
    "CancelCode",
    "EndCode",
    "ErrorCode",
    "FileOp",
    "IServerObserver",
    "MediaKind",
    "MessageType",
    "PresenceOp",
    "RejectCode",
    "ServerObserver",
    "VideoCallServer",
    "WeCompanyFactory",
    "WeCompanyProtocol",
    "WireError",
    "__version__",
]
