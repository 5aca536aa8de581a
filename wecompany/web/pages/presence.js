/** Who is there: everyone else whom the server knows, and whether each is online. */

import { Events } from "./events.js";
import { MessageType, PresenceOp } from "./wire.js";

/** Users that are kept in mind: the page of somebody in a company larger than that finds the others by their name. */
const MAX_USERS = 20_000;

/** Milliseconds until a list that the server found one too many is asked for again. */
const AGAIN_AFTER = 15_000;

/** Events: `changed()`. */
export class Presence extends Events {
  #users = new Map();
  #listed = null;
  #knowsAll = false;

  constructor(session) {
    super();
    this.session = session;
    session.on(MessageType.PRESENCE, (user, data) => this.#received(user, data));
    session.on("online", () => this.#watch());
    session.on("offline", () => this.#lost());
  }

  /** Return everyone, as `[user, isOnline]`. */
  get users() {
    return [...this.#users];
  }

  /** Return whether `user` is online; undefined if there is no such user as far as we know. */
  isOnline(user) {
    return this.#users.get(user);
  }

  async #watch() {
    try {
      if (!this.#knowsAll) await this.#list(PresenceOp.LIST_ALL);
      this.#knowsAll = true;
      await this.#list(PresenceOp.SUBSCRIBE);
    } catch {
      // Six lists a minute are allowed; of a lost connection the next one takes care.
      setTimeout(() => this.session.isOnline && this.#watch(), AGAIN_AFTER);
    }
  }

  #list(op) {
    this.#listed = new Set();
    return this.session.ask(MessageType.PRESENCE, "", Uint8Array.of(op));
  }

  #received(user, data) {
    if (user === this.session.user) return; // one is in the list of all, and no contact of one's own
    if (user !== "") {
      this.#listed?.add(user);
      const isOnline = data[0] === 1;
      if (this.#users.get(user) === isOnline || (this.#users.size >= MAX_USERS && !this.#users.has(user))) return;
      this.#users.set(user, isOnline);
      if (this.#listed === null) this.emit("changed");
    } else if (this.#listed !== null) {
      for (const known of this.#users.keys()) if (!this.#listed.has(known)) this.#users.set(known, false);
      this.#listed = null;
      this.emit("changed");
    }
  }

  #lost() {
    this.#listed = null;
    for (const user of this.#users.keys()) this.#users.set(user, false);
    this.emit("changed");
  }
}
