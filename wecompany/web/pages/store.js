/**
 * What this browser keeps for one user, in IndexedDB: conversations, texts that wait to be sent, and where the session
 * with the server stands.
 */

/** Messages of a conversation that are read at once. */
export const PAGE = 60;

/** Characters of the last message that stand in the list of conversations. */
const EXCERPT = 120;

const VERSION = 1;
const SESSION = "session";

function request(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

function create(database) {
  const messages = database.createObjectStore("messages", { keyPath: "id", autoIncrement: true });
  messages.createIndex("peer", ["peer", "id"]);
  messages.createIndex("waiting", "waiting");
  database.createObjectStore("conversations", { keyPath: "peer" });
  database.createObjectStore("state");
}

/** Open what is kept for `user`; fails where the browser keeps nothing. */
export async function openStore(user) {
  const opening = indexedDB.open(`wecompany ${user}`, VERSION);
  opening.onupgradeneeded = () => create(opening.result);
  return new Store(await request(opening), user);
}

export class Store {
  constructor(database, user) {
    this.database = database;
    this.user = user;
    // Another tab wants to erase it.
    database.onversionchange = () => database.close();
  }

  close() {
    this.database.close();
  }

  /** Forget everything. */
  async erase() {
    this.close();
    await request(indexedDB.deleteDatabase(this.database.name));
  }

  /** Run `work` with the named tables; kept with what it returns when all of it is written. */
  #write(names, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(names, "readwrite");
      const tables = names.map((name) => transaction.objectStore(name));
      let result;
      transaction.oncomplete = () => resolve(result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
      work(...tables, (value) => (result = value));
    });
  }

  #table(name) {
    return this.database.transaction(name).objectStore(name);
  }

  // -- for texts.js

  /** Return the texts that the server has not acknowledged, oldest first. */
  outbox() {
    return request(this.#table("messages").index("waiting").getAll());
  }

  session() {
    return request(this.#table("state").get(SESSION));
  }

  addText(message) {
    return this.add({ ...message, waiting: 1 }).then((id) => {
      Object.assign(message, { id, waiting: 1 });
    });
  }

  /** Keep a text that has come, and with it that it has. */
  takeText(message, session) {
    return this.add(message, session).then((id) => {
      message.id = id;
    });
  }

  /** Keep what became of texts, and with it the session's counts. */
  settle(messages, session) {
    return this.#write(["messages", "state"], (table, state) => {
      for (const message of messages) {
        delete message.waiting;
        table.put(message);
      }
      state.put(session, SESSION);
    });
  }

  // -- for everyone

  /** Add a message to its conversation; kept with its ID. */
  add(message, session = null) {
    return this.#write(["messages", "conversations", "state"], (messages, conversations, state, give) => {
      if (session !== null) state.put(session, SESSION);
      messages.add(message).onsuccess = ({ target }) => give(target.result);
      conversations.get(message.peer).onsuccess = ({ target }) => {
        const conversation = target.result ?? { peer: message.peer, unread: 0, draft: "" };
        conversation.last = { ...message, text: message.text?.slice(0, EXCERPT) };
        if (!message.mine && !message.isRead) conversation.unread += 1;
        conversations.put(conversation);
      };
    });
  }

  /** Keep a message as it is now. */
  update(message) {
    return this.#write(["messages"], (messages) => messages.put(message));
  }

  /** Change something of the conversation with `peer`. */
  change(peer, changes) {
    return this.#write(["conversations"], (conversations) => {
      conversations.get(peer).onsuccess = ({ target }) => {
        if (target.result === undefined && !changes.draft) return;
        conversations.put({ peer, unread: 0, draft: "", ...target.result, ...changes });
      };
    });
  }

  conversations() {
    return request(this.#table("conversations").getAll());
  }

  /** Return the newest `PAGE` messages with `peer` before the one with the ID `before`, oldest first. */
  messages(peer, before = Infinity) {
    const range = IDBKeyRange.bound([peer, 0], [peer, before], false, true);
    const found = [];
    return new Promise((resolve, reject) => {
      const walk = this.#table("messages").index("peer").openCursor(range, "prev");
      walk.onerror = () => reject(walk.error);
      walk.onsuccess = () => {
        const cursor = walk.result;
        if (cursor === null || found.length === PAGE) {
          resolve(found.reverse());
          return;
        }
        found.push(cursor.value);
        cursor.continue();
      };
    });
  }

  /** Return all messages of `kind` for which `accepts` says yes. */
  async find(kind, accepts) {
    const all = [];
    await new Promise((resolve, reject) => {
      const walk = this.#table("messages").openCursor();
      walk.onerror = () => reject(walk.error);
      walk.onsuccess = () => {
        if (walk.result === null) return resolve();
        if (walk.result.value.kind === kind && accepts(walk.result.value)) all.push(walk.result.value);
        walk.result.continue();
      };
    });
    return all;
  }
}
