/**
 * One connection: registration, signs of life, and which answer belongs to which request.
 *
 * The server answers most things only if something is wrong with them.  So a request is followed by a HEARTBEAT with a
 * number: the server handles messages in order, hence an ERROR before that HEARTBEAT's answer is the request's, and
 * when the answer comes without one, all is well.
 */

import {
  ErrorCode, MessageType, WireError, decodeError, decodePayload, decodeText, decodeU32, encodePayload, encodeU64, hex,
  splitId,
} from "./wire.js";

/** Milliseconds for the server to answer a registration: it holds one for 5 s while it probes an older connection. */
const REGISTER_WITHIN = 30_000;

/** Milliseconds that a resumed session waits for the server's count before it asks whether there will be one. */
const ASK_AFTER = 5_000;

/** How often one says that one is there, and how long one believes that the server is, in milliseconds. */
const CALM = { every: 30_000, dead: 75_000 };

/** The same in a call, where a dead connection has to be found while there is time to come back. */
const HURRIED = { every: 2_000, dead: 7_000 };

/** After these the server closes a registered connection. */
const CLOSING = new Set([
  ErrorCode.MALFORMED, ErrorCode.NOT_REGISTERED, ErrorCode.SHUTTING_DOWN, ErrorCode.REPLACED, ErrorCode.IDLE,
  ErrorCode.TOO_SLOW,
]);

/** The clock of the machine; tests have another. */
export const realClock = {
  now: () => performance.now(),
  setTimeout: (f, ms) => setTimeout(f, ms),
  clearTimeout: (timer) => clearTimeout(timer),
};

/** The server said no, with one of its ERRORs. */
export class ServerError extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

/** There is no connection, or it was lost before the answer. */
export class NotConnected extends Error {}

export class Connection {
  #requests = [];
  #count = 0;
  #heardAt;
  #timer = null;
  #lastError = null;
  #registering = null;
  #pace = CALM;
  #isCounted = false;
  #isOver = false;
  #roundTrip = null;
  #isReliable = false;

  /**
   * @param socket a WebSocket that is being opened
   * @param user our own ID
   * @param owner who is told: frameReceived(type, user, data), errorReceived(error, type, user), counted(number or null
   *   where the server counts no texts), lost(error)
   */
  constructor(socket, user, owner, clock = realClock) {
    this.socket = socket;
    this.user = user;
    this.owner = owner;
    this.clock = clock;
    this.sessionId = null;
    this.token = null;
    this.#heardAt = clock.now();
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.#received(data);
    socket.onclose = () => this.#lost(new NotConnected("the connection was lost"));
  }

  /** Bytes that wait in the browser for the network. */
  get backlog() {
    return this.socket.bufferedAmount;
  }

  /** Milliseconds to the server and back, as last seen; null if that is not known yet. */
  get roundTrip() {
    return this.#roundTrip;
  }

  /**
   * Say who we are, as soon as the socket is open.
   *
   * @param isResuming whether `data` names an older session, of which the server's count must be known before anything
   *   else is said: when something arrives in the new session the older one is forgotten
   */
  register(type, data, isResuming = false) {
    this.#isReliable = type === MessageType.ACK;
    const open = () => this.send(type, this.user, data);
    if (this.socket.readyState === 1) open();
    else this.socket.onopen = open;
    this.#timer = this.clock.setTimeout(() => this.abort(), REGISTER_WITHIN);
    return new Promise((resolve, reject) => {
      this.#registering = { resolve, reject, isResuming };
    });
  }

  /** Send what nobody waits for an answer to; returns whether there was a connection. */
  send(type, user, data) {
    if (this.#isOver || this.socket.readyState !== 1) return false;
    this.socket.send(encodePayload(type, user, data));
    return true;
  }

  /** Send a message; the promise is kept when the server has handled it, and broken with its ERROR. */
  ask(type, user, data) {
    return new Promise((resolve, reject) => {
      const number = encodeU64(++this.#count);
      this.#requests.push({ number: hex(number), type, resolve, reject, error: null, at: this.clock.now() });
      if (type !== null) this.send(type, user, data);
      if (!this.send(MessageType.HEARTBEAT, "", number)) this.#lost(new NotConnected("there is no connection"));
    });
  }

  /** In a call, look more often whether the server is there. */
  hurry(isHurried) {
    this.#pace = isHurried ? HURRIED : CALM;
    if (this.sessionId !== null && this.#registering === null) this.#beat();
  }

  /** Drop the connection at once: the network may be gone, so nothing is waited for. */
  abort(error = new NotConnected("the connection was lost")) {
    this.socket.close();
    this.#lost(error);
  }

  #received(buffer) {
    if (this.#isOver) return;
    this.#heardAt = this.clock.now();
    try {
      const { type, user, data } = decodePayload(buffer);
      if (type === MessageType.ERROR) this.#errorFrame(user, decodeError(data));
      else if (!this.#isCounted && this.#isAnswer(type, user, data)) return;
      else if (type === MessageType.HEARTBEAT) this.#heartbeatFrame(user, data);
      else this.owner.frameReceived(type, user, data);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.abort(error);
    }
  }

  /** Take what comes while we register; returns whether that was all there is to it. */
  #isAnswer(type, user, data) {
    if (this.sessionId !== null) {
      const isCount = type === MessageType.ACK && user === "";
      this.#counted(isCount ? decodeU32(data) : null);
      return isCount;
    }
    if (type === MessageType.HEARTBEAT) {
      this.sessionId = splitId(data)[0];
      if (!this.#isReliable) {
        this.#counted(null);
      } else if (this.#registering.isResuming) {
        this.clock.clearTimeout(this.#timer);
        this.#timer = this.clock.setTimeout(() => this.#askForCount(), ASK_AFTER);
      } else {
        this.#askForCount();
      }
    } else if (type === MessageType.AUTH_RESPONSE && data[0] === 1) {
      this.token = decodeText(data.subarray(1));
    } else if (type === MessageType.AUTH_RESPONSE) {
      this.abort(new ServerError(ErrorCode.BAD_CREDENTIAL, decodeText(data.subarray(1))));
    } else {
      throw new WireError("something came before the registration's answer");
    }
    return true;
  }

  #askForCount() {
    this.ask(null).catch(() => {}); // a loss is told by register()
  }

  #counted(count) {
    this.#isCounted = true;
    const { resolve } = this.#registering;
    this.#registering = null;
    this.owner.counted(count);
    resolve(this);
    this.#beat();
  }

  #beat() {
    this.clock.clearTimeout(this.#timer);
    if (this.#isOver) return;
    if (this.clock.now() - this.#heardAt >= this.#pace.dead) {
      this.abort();
      return;
    }
    this.ask(null).catch(() => {}); // whoever has to know is told by lost()
    this.#timer = this.clock.setTimeout(() => this.#beat(), this.#pace.every);
  }

  #heartbeatFrame(user, data) {
    if (user !== "") {
      this.send(MessageType.HEARTBEAT, ""); // the server asks whether we live
      return;
    }
    const request = this.#requests[0];
    if (request === undefined || hex(data) !== request.number) return;
    this.#requests.shift();
    this.#roundTrip = this.clock.now() - request.at;
    if (request.error === null) request.resolve();
    else request.reject(request.error);
  }

  #errorFrame(user, { code, type, text }) {
    const error = new ServerError(code, text);
    const request = this.#requests[0];
    if (this.#registering !== null || CLOSING.has(code)) this.#lastError = error;
    else if (request !== undefined && request.type === type && request.error === null) request.error = error;
    else this.owner.errorReceived(error, type, user);
  }

  #lost(error) {
    if (this.#isOver) return;
    this.#isOver = true;
    this.clock.clearTimeout(this.#timer);
    const why = this.#lastError ?? error;
    if (this.#registering !== null) this.#registering.reject(why);
    else this.owner.lost(why);
    for (const request of this.#requests.splice(0)) request.reject(why);
  }
}
