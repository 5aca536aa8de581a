"""Tells twistd that there is a ``wecompany`` service; the service itself is imported only when it is asked for."""

from twisted.application.service import ServiceMaker

wecompany = ServiceMaker(
    "WeCompany Server",
    "wecompany.service",
    "Messages, files and audio/video calls for one's own company.",
    "wecompany",
)
