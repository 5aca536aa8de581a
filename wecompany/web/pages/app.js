/** The page: puts the parts together. */

import { forgetAccount, saveAccount, savedAccount } from "./account.js";
import { audioContext } from "./audio.js";
import { Calls } from "./calls.js";
import { expose } from "./debug.js";
import { capabilities } from "./devices.js";
import { avatar, byId, textButton } from "./dom.js";
import { currentLanguage, errorText, onLanguage, t, translatePage, useLanguage } from "./i18n.js";
import { Files } from "./files.js";
import { Media } from "./media.js";
import { notify, ring, titleAlarm, titleUnread } from "./notify.js";
import { Presence } from "./presence.js";
import { Session, signUp } from "./session.js";
import { openStore } from "./store.js";
import { Texts } from "./texts.js";
import { CallView } from "./view-call.js";
import { ConversationView } from "./view-conversation.js";
import { PeopleView } from "./view-people.js";
import { SettingsView, applyTheme } from "./view-settings.js";
import { SignInView } from "./view-sign-in.js";
import { AccountOp, MessageType, encodeText } from "./wire.js";

/** Milliseconds after which a token is exchanged for a new one: by default it is good for a day. */
const RENEW_EVERY = 6 * 3_600_000;

/** Milliseconds for which a remark is shown. */
const TOAST_FOR = 5_000;

const address = new URL("ws", document.baseURI);
address.protocol = address.protocol.replace("http", "ws");
const openSocket = () => new WebSocket(address);

let user = null;
const abilities = capabilities();
const noteEnd = expose(() => user);
const signIn = new SignInView(enter);
const settings = new SettingsView({
  user: () => user.session.user,
  logOut: () => user.logOut(),
  erase: () => user.erase(),
  deviceChanged: (role) => user.calls.current?.media?.changeDevice(role),
});

function toast(text) {
  byId("toast").textContent = text;
  setTimeout(() => {
    if (byId("toast").textContent === text) byId("toast").textContent = "";
  }, TOAST_FOR);
}

/** Sign in; fails with what the server says. */
async function enter(name, password, isKept, isNew) {
  let credential = isNew ? await signUp(openSocket, name, password) : password;
  const isToken = isNew || password === "";
  const newcomer = await User.open(name, credential, await abilities);
  try {
    await newcomer.session.start();
  } catch (error) {
    newcomer.store.close();
    throw error;
  }
  if (!isToken) credential = newcomer.session.credential = await newcomer.session.newToken();
  saveAccount(name, credential, isKept);
  user = newcomer;
  user.show();
}

/** Whoever is signed in, with all that belongs to it. */
class User {
  conversations = new Map();
  #stopRinging = () => {};
  #takeBack = () => {};

  static async open(name, credential, can) {
    let store;
    try {
      store = await openStore(name);
    } catch {
      throw Object.assign(new Error(), { key: "errorStore" });
    }
    const self = new User(name, credential, store, can);
    await self.texts.load();
    await self.files.load();
    for (const conversation of await store.conversations()) self.conversations.set(conversation.peer, conversation);
    return self;
  }

  constructor(name, credential, store, can) {
    this.can = can;
    this.store = store;
    this.texts = new Texts(store, (message) => this.#changed(message), (message) => this.#came(message));
    this.session = new Session(openSocket, name, credential, this.texts);
    this.presence = new Presence(this.session);
    this.files = new Files(this.session, store, () => this.calls.current !== null);
    this.calls = new Calls(this.session, (call) => this.#makeMedia(call), () => can.why);
    this.session.on("offline", () => this.#connection());
    this.session.on("online", () => this.#connection());
    this.session.on("stopped", (error) => this.#stopped(error));
    this.session.on("error", (error) => toast(errorText(error)));
    this.files.on("offered", (message) => this.#fileCame(message));
    this.files.on("changed", (message) => this.#changed(message));
    this.files.on("received", (message, file) => this.conversation?.save(message, file));
    this.calls.on("changed", (call) => this.#callChanged(call));
    this.calls.on("ended", (call) => this.#callEnded(call));
    this.calls.on("missed", (peer, at, id) => this.#missed(peer, at, id));
  }

  show() {
    const name = this.session.user;
    signIn.hide();
    byId("app").hidden = false;
    byId("own-avatar").replaceChildren(avatar(name));
    byId("own-name").textContent = name;
    this.callView = new CallView(this.calls, { devices: () => settings.open() });
    this.conversation = new ConversationView(this.store, this.files, {
      send: (peer, text) => this.texts.add(peer, text),
      retry: (message) => this.texts.add(message.peer, message.text),
      call: (peer, isVideo) => this.#dial(peer, isVideo),
      draft: (peer, draft) => this.#change(peer, { draft }),
      back: () => this.#choose(null),
      isOnline: (peer) => this.presence.isOnline(peer),
      problem: toast,
    });
    this.people = new PeopleView(this.presence, this.conversations, (peer) => this.#choose(peer));
    this.presence.on("changed", () => this.conversation.showPresence());
    onLanguage(() => this.#words());
    document.onvisibilitychange = () => this.#seen();
    window.onfocus = () => this.#seen();
    window.ononline = () => this.session.retryNow();
    // A page that goes takes its call with it, and the other side need not wait for that to show.
    window.onpagehide = () => this.calls.hangUp();
    window.onpopstate = () => this.#choose(null, true);
    this.#words();
    this.#connection();
    this.#countUnread();
    setInterval(() => this.renewToken(), RENEW_EVERY);
  }

  /** Exchange the token for a new one, so that who is there every day need not sign in every day. */
  async renewToken() {
    const { credential } = this.session;
    const account = savedAccount();
    if (credential === "" || account === null || !this.session.isOnline) return;
    const token = await this.session.newToken().catch(() => "");
    if (token === "") return;
    this.session.credential = token;
    saveAccount(account.user, token, account.isKept);
    await this.session.command(AccountOp.LOG_OUT, "", encodeText(credential)).catch(() => {}); // it dies of age
  }

  // -- leaving

  async logOut() {
    // Without an answer the token dies of age.
    await this.session.command(AccountOp.LOG_OUT, "", encodeText(this.session.credential)).catch(() => {});
    this.#leave();
  }

  async erase() {
    this.session.stop();
    await this.files.clear().catch(() => {});
    await this.store.erase();
    this.#leave();
  }

  #leave() {
    this.calls.hangUp();
    this.session.stop();
    forgetAccount();
    location.reload(); // nothing of this user's stays in memory
  }

  #stopped(error) {
    const banner = byId("down");
    banner.textContent = `${errorText(error)} `;
    banner.append(textButton(t("signInHere"), () => location.reload(), "small"));
    banner.hidden = false;
  }

  #connection() {
    const { isOnline } = this.session;
    byId("down").hidden = isOnline;
    byId("down").textContent = t("reconnecting");
    byId("own-state").textContent = t(isOnline ? "online" : "offline");
    byId("own-state").classList.toggle("on", isOnline);
  }

  #words() {
    byId("language-button").textContent = currentLanguage() === "en" ? "中文" : "EN";
    byId("language-button").ariaLabel = currentLanguage() === "en" ? "中文" : "English";
    const { why, receives, sendsAudio } = this.can;
    let lacks = sendsAudio ? null : "lacksSending";
    if (!receives.includes("vp8")) lacks = "lacksVideo";
    if (why !== null) lacks = `why_${why}`;
    byId("lacking").hidden = lacks === null;
    byId("lacking").textContent = lacks === null ? "" : t(lacks);
    this.#connection();
  }

  // -- conversations

  async #choose(peer, isBack = false) {
    const isOpen = peer !== null;
    if (isOpen && byId("app").dataset.view !== "talk") history.pushState(null, "");
    else if (!isOpen && !isBack && history.length > 1) history.back();
    byId("app").dataset.view = isOpen ? "talk" : "people";
    this.people.chosen(peer);
    if (!isOpen) {
      this.conversation.hide();
      return;
    }
    if (this.calls.current !== null) this.callView.shrink(true);
    await this.conversation.show(peer, this.conversations.get(peer)?.draft ?? "");
    byId("text").focus();
    this.#seen();
  }

  /** Whoever looks at a conversation has read it. */
  #seen() {
    const { peer } = this.conversation;
    if (peer === null || document.visibilityState !== "visible" || !document.hasFocus()) return;
    if (this.conversations.get(peer)?.unread > 0) this.#change(peer, { unread: 0 });
  }

  #change(peer, changes) {
    if (this.conversations.has(peer) || changes.draft) {
      this.conversations.set(peer, { peer, unread: 0, ...this.conversations.get(peer), ...changes });
    }
    this.people.changed();
    this.#countUnread();
    return this.store.change(peer, changes);
  }

  #countUnread() {
    titleUnread([...this.conversations.values()].reduce((sum, { unread }) => sum + unread, 0));
  }

  /** Show a message that is new or has changed. */
  #changed(message) {
    const before = this.conversations.get(message.peer);
    if (before?.last === undefined || message.at >= before.last.at) {
      this.conversations.set(message.peer, { unread: 0, ...before, peer: message.peer, last: message });
    }
    this.conversation?.put(message);
    this.people?.changed();
  }

  /** A message that the user has not seen yet. */
  #came(message, title = message.peer || t("server"), body = message.text) {
    const unread = (this.conversations.get(message.peer)?.unread ?? 0) + 1;
    this.#changed(message);
    this.conversations.get(message.peer).unread = unread;
    this.#countUnread();
    if (this.conversation !== undefined) this.#seen();
    notify(title, body, () => this.#choose(message.peer));
  }

  #fileCame(message) {
    const { peer: name, mine, file } = message;
    if (mine) this.#changed(message);
    else this.#came(message, name, t("fileFrom", { name, file: file.name }));
  }

  // -- calls

  #dial(peer, isVideo) {
    if (this.can.why !== null) toast(t(`why_${this.can.why}`));
    else if (this.calls.current !== null) this.callView.shrink(false);
    else this.calls.dial(peer, isVideo);
  }

  #makeMedia(call) {
    const link = {
      send: (piece) => call.state === "active" && this.session.send(MessageType.MEDIA_DATA, call.peer, piece),
      isReady: () => call.state === "active" && this.session.isOnline,
      backlog: () => this.session.backlog,
    };
    return new Media(this.can, link, this.callView.canvas, this.callView.preview);
  }

  #callChanged(call) {
    this.#stopRinging();
    this.#takeBack();
    this.#stopRinging = this.#takeBack = () => {};
    titleAlarm(call.state === "incoming" ? `☎ ${call.peer}` : "");
    if (call.state === "ringing") this.#stopRinging = ring("outgoing");
    if (call.state !== "incoming") return;
    this.#stopRinging = ring("incoming");
    const title = t("calls", { name: call.peer });
    this.#takeBack = notify(title, t(call.isVideo ? "incomingVideo" : "incomingVoice"), () => {}, true);
  }

  #callEnded(call) {
    noteEnd(call);
    const { id, peer, isIncoming, isVideo, seconds, outcome, begunAt: at } = call;
    const wasDeclinedHere = outcome.rejected && outcome.code === 0;
    const isMissed = isIncoming && call.startedAt === null && !wasDeclinedHere;
    this.#noteCall({ peer, mine: !isIncoming, at, call: { id, isVideo, seconds, isMissed, ...outcome } });
  }

  /** The server tells of a call that was not taken; one that rang here before a reload is noted already. */
  async #missed(peer, at, id) {
    const known = await this.store.messages(peer);
    if (known.some(({ call }) => call?.id === id)) return;
    this.#noteCall({ peer, mine: false, at, call: { id, isMissed: true } });
  }

  async #noteCall(details) {
    const message = { kind: "call", ...details, isRead: !details.call.isMissed };
    message.id = await this.store.add(message);
    if (message.isRead) this.#changed(message);
    else this.#came(message, message.peer, t("missedCall"));
  }
}

applyTheme();
translatePage();
byId("language-button").onclick = () => useLanguage(currentLanguage() === "en" ? "zh" : "en");
byId("settings-button").onclick = () => settings.open();
document.addEventListener("pointerdown", () => audioContext(), { once: true });

const saved = savedAccount();
if (saved === null) {
  signIn.show();
} else {
  const { user: name, token, isKept } = saved;
  byId("sign-in-keep").checked = isKept;
  try {
    user = await User.open(name, token, await abilities);
    user.show(); // what was said is there without a server, too
    await user.session.start(true);
    await user.renewToken();
  } catch (error) {
    forgetAccount();
    user = null;
    byId("app").hidden = true;
    signIn.show(error, name);
  }
}
