/**
 * Texts that are not lost, over lost connections and reloaded pages.
 *
 * Both sides count the texts of a session, from 0, in each direction.  What we took and what the server has of ours is
 * written into the store in one transaction with the texts themselves, and before anything is said of it; so whatever
 * is torn down when, a new session goes on where the old one was.
 */

import { MessageType, encodeText, encodeU32, hex, join, unhex } from "./wire.js";

const NO_SESSION = "00".repeat(16);

export class Texts {
  #work = Promise.resolve();
  #connection = null;
  #outbox = [];
  #session = { id: NO_SESSION, isCounted: false, taken: 0, settled: 0 };
  #acknowledged = 0;

  /**
   * @param store has outbox(), session(), takeText(), addText(), settle() and begin(), as store.js
   * @param changed called with a message that has changed
   * @param came called with a text that has come
   */
  constructor(store, changed, came) {
    this.store = store;
    this.changed = changed;
    this.came = came;
    /** Whether the server counts texts: it has a store.  Null if that is not known yet. */
    this.isReliable = null;
  }

  /** Read what an earlier page left. */
  async load() {
    this.#outbox = await this.store.outbox();
    this.#session = (await this.store.session()) ?? this.#session;
  }

  /** Return what stands before the credential in an ACK that registers; all that has come is in the store by then. */
  async registration() {
    await this.#work;
    return join(encodeU32(this.#session.taken), unhex(this.#session.id));
  }

  /** How many texts wait for the server. */
  get waiting() {
    return this.#outbox.length;
  }

  /** Whether there is a session whose counts are to be gone on from. */
  get isResuming() {
    return this.#session.isCounted;
  }

  /**
   * A session has begun: send again what the server does not have.
   *
   * @param count how many texts the server took in the session before; null if it counts none
   */
  begun(connection, count) {
    const id = hex(connection.sessionId);
    this.#connection = connection;
    this.isReliable = count !== null;
    return this.#inTurn(async () => {
      const stored = this.#outbox.splice(0, Math.max(0, (count ?? 0) - this.#session.settled));
      this.#session = { id, isCounted: count !== null, taken: 0, settled: 0 };
      this.#acknowledged = 0;
      for (const message of stored) message.state = "stored";
      await this.store.settle(stored, this.#session);
      stored.forEach(this.changed);
      // One that has been lost meanwhile sends nothing; what it was to send waits for the next.
      for (const message of this.isReliable ? this.#outbox : this.#outbox.splice(0)) this.#send(message, connection);
    });
  }

  /** Send a text, now or when the connection is back; returns the message. */
  add(peer, text) {
    const message = { peer, mine: true, kind: "text", text, at: Date.now(), state: "waiting" };
    return this.#inTurn(async () => {
      await this.store.addText(message);
      this.changed(message);
      const isPlain = this.isReliable === false && this.#connection !== null;
      if (!isPlain) this.#outbox.push(message);
      if (this.#connection !== null) this.#send(message, this.#connection);
      return message;
    });
  }

  /** A text has come; it counts as taken when the store has it. */
  received(peer, text, at) {
    const connection = this.#connection;
    return this.#inTurn(async () => {
      const message = { peer, mine: false, kind: "text", text, at };
      const session = { ...this.#session, taken: this.#session.taken + 1 };
      await this.store.takeText(message, this.isReliable ? session : null);
      this.#session = session;
      this.came(message);
      // One ACK for all that came together.
      queueMicrotask(() => this.#acknowledge(connection));
    });
  }

  /** The server has the first `count` texts of this session. */
  acknowledged(count) {
    return this.#inTurn(() => this.#settle(count - this.#session.settled, "stored"));
  }

  /** The server answers a text with an ERROR: that is the first one that it has not acknowledged. */
  refused(error) {
    return this.#inTurn(() => this.#settle(1, "failed", error.code));
  }

  /** The connection is gone. */
  lost() {
    this.#connection = null;
  }

  #acknowledge(connection) {
    if (connection === null || connection !== this.#connection || !this.isReliable) return;
    if (this.#session.id !== hex(connection.sessionId) || this.#acknowledged === this.#session.taken) return;
    this.#acknowledged = this.#session.taken;
    connection.send(MessageType.ACK, "", encodeU32(this.#session.taken));
  }

  #send(message, connection) {
    const data = encodeText(message.text);
    if (this.isReliable) {
      connection.send(MessageType.TEXT, message.peer, data);
      return;
    }
    connection.ask(MessageType.TEXT, message.peer, data).then(
      () => this.#finish(message, "stored"),
      (error) => this.#finish(message, "failed", error.code ?? 0),
    );
  }

  #finish(message, state, error) {
    return this.#inTurn(async () => {
      Object.assign(message, { state, error });
      await this.store.settle([message], this.#session);
      this.changed(message);
    });
  }

  async #settle(number, state, error) {
    const settled = this.#outbox.splice(0, Math.max(0, number));
    if (settled.length === 0) return;
    this.#session = { ...this.#session, settled: this.#session.settled + settled.length };
    for (const message of settled) Object.assign(message, { state, error });
    await this.store.settle(settled, this.#session);
    settled.forEach(this.changed);
  }

  /** Do one thing after the other: each finds the store as the one before it left it. */
  #inTurn(task) {
    const done = this.#work.then(task);
    this.#work = done.catch((error) => console.error(error));
    return done;
  }
}
