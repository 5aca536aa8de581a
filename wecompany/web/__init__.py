"""
The server in the browser: the page's files, and the wire contract over WebSocket.

It needs the extra C{wecompany[web]}; L{wecompany.web.site.WebSite} is what an application listens with.
"""

MAX_CONNECTIONS = 2_000
"""Connections that ask for files or have not shaken hands yet.  Those that have are counted by the hub."""
