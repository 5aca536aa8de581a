/** A user's session with the server: it comes back by itself when the connection is lost. */

import { Connection, NotConnected, ServerError, realClock } from "./connection.js";
import { Events } from "./events.js";
import {
  AccountOp, ErrorCode, MessageType, decodeText, decodeU32, decodeU64, encodeText, join,
} from "./wire.js";

/** Milliseconds until one connects again: the first time, doubling, and at most; half of it is chance. */
export const BACKOFF = { first: 1_000, most: 30_000, mostInCall: 2_000 };

/** After these one does not connect again by oneself. */
const FINAL = new Set([ErrorCode.BAD_CREDENTIAL, ErrorCode.ID_IN_USE, ErrorCode.FORBIDDEN, ErrorCode.REPLACED]);

const isFinal = (error) => error instanceof ServerError && FINAL.has(error.code);

/** Return the milliseconds before the `attempt`th try (from 1) to connect again. */
export function backoff(attempt, most = BACKOFF.most, chance = Math.random()) {
  return Math.min(most, BACKOFF.first * 2 ** Math.min(attempt - 1, 16)) * (0.5 + chance / 2);
}

/**
 * Make the account and return its first token; the connection is closed again, as it counts no texts.
 */
export async function signUp(openSocket, user, password) {
  const owner = { frameReceived() {}, errorReceived() {}, counted() {}, lost() {} };
  const connection = new Connection(openSocket(), user, owner);
  await connection.register(MessageType.SIGNUP, encodeText(password));
  connection.abort();
  return connection.token ?? "";
}

/**
 * Events: `online()`, `offline(error)`, `stopped(error)` when the server does not want us, `error(error, type, user)`
 * for an ERROR that answers nothing, and the type of each message that comes: `[type](user, data, sentAt)`.
 */
export class Session extends Events {
  #connection = null;
  #trying = null;
  #timer = null;
  #attempt = 0;
  #isRunning = false;
  #delayed = null;
  #commands = [];
  #isHurried = false;
  #first = null;

  constructor(openSocket, user, credential, texts, clock = realClock) {
    super();
    this.openSocket = openSocket;
    this.user = user;
    this.credential = credential;
    this.texts = texts;
    this.clock = clock;
    /** Connections that were registered so far. */
    this.registrations = 0;
  }

  get isOnline() {
    return this.#connection !== null;
  }

  get backlog() {
    return this.#connection?.backlog ?? 0;
  }

  get roundTrip() {
    return this.#connection?.roundTrip ?? null;
  }

  /**
   * Connect and register, and from then on stay so; the promise is broken with the server's no.
   *
   * @param isPatient whether to go on trying when the first try finds no server
   */
  start(isPatient = false) {
    this.#isRunning = true;
    return new Promise((resolve, reject) => {
      this.#first = { resolve, reject, isPatient };
      this.#connect();
    });
  }

  /** Disconnect and stay so. */
  stop() {
    this.#isRunning = false;
    this.clock.clearTimeout(this.#timer);
    (this.#connection ?? this.#trying)?.abort();
  }

  /** Do not wait for the next try: the network is back. */
  retryNow() {
    if (!this.#isRunning || this.#connection !== null || this.#trying !== null) return;
    this.clock.clearTimeout(this.#timer);
    this.#connect();
  }

  /** In a call, find out sooner that the connection is dead, and come back sooner. */
  hurry(isHurried) {
    this.#isHurried = isHurried;
    this.#connection?.hurry(isHurried);
  }

  /** Send what nobody waits for an answer to; returns whether there was a connection. */
  send(type, user, data) {
    return this.#connection?.send(type, user, data) ?? false;
  }

  /** Send a message; the promise is kept when the server has handled it. */
  ask(type, user, data) {
    return this.#connection?.ask(type, user, data) ?? Promise.reject(new NotConnected("there is no connection"));
  }

  /** Ask something for one's own account; kept with what the server says. */
  command(op, user = "", data = new Uint8Array()) {
    return new Promise((resolve, reject) => {
      this.#commands.push({ resolve, reject, send: () => this.send(MessageType.LOGIN, user, join(op, data)) });
      if (!this.isOnline) this.#failCommands(new NotConnected("there is no connection"));
      else if (this.#commands.length === 1) this.#commands[0].send();
    });
  }

  /** Return a token, which stands for the password from now on; empty where the server knows of none. */
  async newToken() {
    try {
      return decodeText(await this.command(AccountOp.NEW_TOKEN));
    } catch (error) {
      if (error instanceof ServerError && error.code === ErrorCode.BAD_REQUEST) return "";
      throw error;
    }
  }

  async #connect() {
    let connection = null;
    try {
      const data = join(await this.texts.registration(), encodeText(this.credential));
      const owner = {
        frameReceived: (type, user, data) => this.#frame(type, user, data),
        errorReceived: (error, type, user) => this.#error(error, type, user),
        counted: (count) => this.#registered(connection, count),
        lost: (error) => this.#lost(error),
      };
      if (!this.#isRunning) return;
      connection = this.#trying = new Connection(this.openSocket(), this.user, owner, this.clock);
      await connection.register(MessageType.ACK, data, this.texts.isResuming);
    } catch (error) {
      this.#trying = null;
      connection?.socket.close();
      const first = this.#first;
      if (first === null || (first.isPatient && !isFinal(error))) {
        this.#again(error);
      } else {
        this.#first = null;
        this.#isRunning = false;
        first.reject(error);
      }
    }
  }

  #registered(connection, count) {
    this.#trying = null;
    this.#connection = connection;
    this.#attempt = 0;
    this.#delayed = null;
    this.registrations += 1;
    this.texts.begun(connection, count);
    connection.hurry(this.#isHurried);
    this.#first?.resolve();
    this.#first = null;
    this.emit("online");
  }

  #lost(error) {
    this.#connection = null;
    this.texts.lost();
    this.#failCommands(error);
    this.emit("offline", error);
    this.#again(error);
  }

  #again(error) {
    if (!this.#isRunning) return;
    if (isFinal(error)) {
      this.#isRunning = false;
      this.emit("stopped", error);
      return;
    }
    this.#attempt += 1;
    const wait = backoff(this.#attempt, this.#isHurried ? BACKOFF.mostInCall : BACKOFF.most);
    this.#timer = this.clock.setTimeout(() => this.#connect(), wait);
  }

  #frame(type, user, data) {
    if (type === MessageType.DELAY) {
      this.#delayed = { user, at: decodeU64(data) };
      return;
    }
    // A DELAY is about the very next text or missed call.
    let sentAt = null;
    if (type === MessageType.TEXT || type === MessageType.CALL_REJECT) {
      sentAt = this.#delayed?.user === user ? this.#delayed.at : null;
      this.#delayed = null;
    }
    if (type === MessageType.TEXT) this.texts.received(user, decodeText(data), sentAt ?? Date.now());
    else if (type === MessageType.ACK) this.texts.acknowledged(decodeU32(data));
    else if (type === MessageType.AUTH_RESPONSE) this.#answered(data);
    else this.emit(type, user, data, sentAt);
  }

  #error(error, type, user) {
    if (type === MessageType.TEXT && this.texts.isReliable) this.texts.refused(error);
    else if (type === MessageType.LOGIN && this.#commands.length > 0) this.#nextCommand().reject(error);
    else this.emit("error", error, type, user);
  }

  #answered(data) {
    const command = this.#nextCommand();
    if (data[0] === 1) command?.resolve(data.subarray(1));
    else command?.reject(new ServerError(ErrorCode.FORBIDDEN, decodeText(data.subarray(1))));
  }

  #nextCommand() {
    const command = this.#commands.shift();
    this.#commands[0]?.send();
    return command;
  }

  #failCommands(error) {
    for (const command of this.#commands.splice(0)) command.reject(error);
  }
}
