// What the tests of the page's modules share: a clock that stands still, and the other end of a WebSocket.

import { MessageType, decodePayload, encodePayload } from "../../wecompany/web/pages/wire.js";

export class FakeClock {
  time = 0;
  #timers = new Map();
  #count = 0;

  now = () => this.time;

  setTimeout = (f, ms) => {
    this.#count += 1;
    this.#timers.set(this.#count, { at: this.time + ms, f });
    return this.#count;
  };

  clearTimeout = (timer) => this.#timers.delete(timer);

  /** Let time pass, and do what is due. */
  advance(ms) {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (due === undefined) break;
      this.#timers.delete(due[0]);
      this.time = due[1].at;
      due[1].f();
    }
    this.time = end;
  }
}

/** A WebSocket, and the server behind it as far as a test plays it. */
export class FakeSocket {
  readyState = 0;
  bufferedAmount = 0;
  sent = [];

  send(payload) {
    this.sent.push(decodePayload(payload));
  }

  close() {
    this.readyState = 3;
  }

  open() {
    this.readyState = 1;
    this.onopen?.();
  }

  /** The server says something. */
  say(type, user, data) {
    const { buffer } = encodePayload(type, user, data === undefined ? undefined : Uint8Array.from(data));
    this.onmessage({ data: buffer });
  }

  /** The server answers the HEARTBEATs with a number that have come since the last time. */
  answer() {
    for (const { type, user, data } of this.sent) {
      if (type === MessageType.HEARTBEAT && user === "" && data.length === 8) this.say(type, "", data);
    }
    this.sent = this.sent.filter(({ type, data }) => type !== MessageType.HEARTBEAT || data.length !== 8);
  }

  /** The connection is lost. */
  lose() {
    this.readyState = 3;
    this.onclose();
  }

  /** Return what was sent of a type since the last time, and forget it. */
  take(type) {
    const taken = this.sent.filter((message) => message.type === type);
    this.sent = this.sent.filter((message) => message.type !== type);
    return taken;
  }
}

/** What promises that have been kept have to say. */
export const settled = async () => {
  for (let i = 0; i < 50; i += 1) await Promise.resolve();
};

/** The store's part that texts need, in memory. */
export class FakeStore {
  messages = [];
  kept = null;

  outbox = async () => this.messages.filter(({ waiting }) => waiting);
  session = async () => this.kept;

  async addText(message) {
    message.id = this.messages.length + 1;
    message.waiting = 1;
    this.messages.push(message);
  }

  async takeText(message, session) {
    message.id = this.messages.length + 1;
    this.messages.push(message);
    if (session !== null) this.kept = session;
  }

  async settle(messages, session) {
    for (const message of messages) delete message.waiting;
    this.kept = session;
  }
}
