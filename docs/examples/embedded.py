"""A Twisted application with a WeCompany server in it: it greets everyone and prints how calls end."""

import sys
from typing import Any

from twisted.internet import defer, task

from wecompany import CallSession, EndCode, ServerObserver, WeCompanyFactory


class Receptionist(ServerObserver):
    def __init__(self, server: WeCompanyFactory) -> None:
        self.server = server

    def clientConnected(self, userId: str) -> None:
        self.server.sendMessage(userId, f"Welcome, {userId}. Online: {', '.join(self.server.getOnlineUsers())}")

    def callEnded(self, session: CallSession, code: int, reason: str) -> None:
        print(f"{session.caller} and {session.callee}: {EndCode(code).name}")


async def main(reactor: Any, port: str = "8888") -> None:
    server = WeCompanyFactory(reactor, ringTimeout=20)
    server.addObserver(Receptionist(server))
    await server.startServer(int(port), interface="127.0.0.1")
    print("Listening", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", server.stopServer)
    await defer.Deferred()


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
