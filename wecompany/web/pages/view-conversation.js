/** A conversation: what was said, and what is being written. */

import { avatar, byId, icon, linked, make, textButton } from "./dom.js";
import { bytes, day, duration, errorText, hasWords, onLanguage, outcomeText, t, timeOfDay } from "./i18n.js";
import { PAGE } from "./store.js";
import { MAX_TEXT, encodeText } from "./wire.js";

const MARKS = { waiting: "clock", stored: "check", failed: "alert" };

/** Pixels from the end within which one follows what comes. */
const NEAR = 80;

/** Milliseconds between two texts of one side that stand together. */
const TOGETHER = 300_000;

const DRAFT_AFTER = 400;

/** Bytes of a picture that is shown, and types that no program runs. */
const MAX_PICTURE = 20_000_000;
const PICTURES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };

export class ConversationView {
  peer = null;
  #nodes = new Map();
  #first = null;
  #last = null;
  #hasMore = false;
  #draftTimer = null;
  #url = new Map();

  /** @param on what the user wants: send, retry, call, file, draft, back, isOnline(peer) */
  constructor(store, files, on) {
    this.store = store;
    this.files = files;
    this.on = on;
    this.log = byId("log");
    this.text = byId("text");
    byId("composer").onsubmit = (event) => {
      event.preventDefault();
      this.#send();
    };
    this.text.onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    };
    this.text.oninput = () => this.#typed();
    this.text.onpaste = ({ clipboardData }) => this.#sendFiles(clipboardData.files);
    byId("back").onclick = () => on.back();
    byId("voice-call").onclick = () => on.call(this.peer, false);
    byId("video-call").onclick = () => on.call(this.peer, true);
    byId("file-button").onclick = () => byId("file-input").click();
    byId("file-input").onchange = ({ target }) => {
      this.#sendFiles(target.files);
      target.value = "";
    };
    this.#acceptDrops(byId("conversation"), byId("drop"));
    this.log.onscroll = () => {
      if (this.#isAtEnd) byId("to-bottom").hidden = true;
      if (this.log.scrollTop < NEAR && this.#hasMore) this.#loadOlder();
    };
    byId("to-bottom").onclick = () => this.#toEnd();
    onLanguage(() => this.peer !== null && this.show(this.peer));
  }

  /** Show the conversation with somebody. */
  async show(peer, draft = this.text.value) {
    this.peer = peer;
    byId("nothing").hidden = true;
    byId("conversation").hidden = false;
    byId("peer-avatar").replaceChildren(avatar(peer));
    byId("peer-name").textContent = peer || t("server");
    this.text.value = draft;
    this.#fit();
    this.showPresence();
    const messages = await this.store.messages(peer);
    if (this.peer !== peer) return;
    for (const url of this.#url.values()) URL.revokeObjectURL(url);
    this.#url.clear();
    this.#nodes.clear();
    this.#last = null;
    this.#first = messages[0]?.id;
    this.#hasMore = messages.length === PAGE;
    // What was there before is not news to a screen reader.
    this.log.ariaLive = "off";
    this.log.replaceChildren();
    for (const message of messages) this.#append(message);
    this.#toEnd();
    setTimeout(() => (this.log.ariaLive = "polite"), 500);
  }

  hide() {
    this.peer = null;
    byId("conversation").hidden = true;
    byId("nothing").hidden = false;
  }

  showPresence() {
    if (this.peer === null) return;
    const isOnline = this.on.isOnline(this.peer) === true;
    byId("peer-state").textContent = t(isOnline ? "online" : "offline");
    byId("peer-state").classList.toggle("on", isOnline);
  }

  /** Show a message that is new, or has changed. */
  put(message) {
    if (message.peer !== this.peer || message.id === undefined) return;
    const node = this.#nodes.get(message.id);
    if (node !== undefined) {
      if (message.kind !== "file" || !this.#progress(node, message)) this.#fill(node, message);
      return;
    }
    const follows = this.#isAtEnd || message.mine;
    this.#append(message);
    if (follows) this.#toEnd();
    else byId("to-bottom").hidden = false;
  }

  // -- the log

  get #isAtEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR;
  }

  #toEnd() {
    this.log.scrollTop = this.log.scrollHeight;
    byId("to-bottom").hidden = true;
  }

  #append(message) {
    if (this.#last === null || day(this.#last.at) !== day(message.at)) {
      this.log.append(make("p", { class: "day" }, day(message.at)));
      this.#last = null;
    }
    this.log.append(this.#node(message, this.#last));
    this.#last = message;
  }

  #node(message, before) {
    const { kind, mine, peer, at } = message;
    const isTogether =
      before?.mine === mine && before.kind === "text" && kind === "text" && at - before.at < TOGETHER;
    const node = make("article", { class: `message ${kind} ${mine ? "mine" : "theirs"}` });
    node.classList.toggle("together", isTogether);
    node.ariaLabel = `${mine ? t("you") : peer || t("server")}, ${timeOfDay(at)}`;
    this.#nodes.set(message.id, node);
    this.#fill(node, message);
    return node;
  }

  async #loadOlder() {
    this.#hasMore = false;
    const { peer } = this;
    const messages = await this.store.messages(peer, this.#first);
    if (this.peer !== peer || messages.length === 0) return;
    const height = this.log.scrollHeight;
    const nodes = [];
    let before = null;
    for (const message of messages) {
      const date = day(message.at);
      if (before === null || day(before.at) !== date) nodes.push(make("p", { class: "day" }, date));
      nodes.push(this.#node(message, before));
      before = message;
    }
    this.log.ariaLive = "off";
    this.log.prepend(...nodes);
    this.log.scrollTop += this.log.scrollHeight - height;
    this.#first = messages[0].id;
    this.#hasMore = messages.length === PAGE;
    setTimeout(() => (this.log.ariaLive = "polite"), 500);
  }

  #fill(node, message) {
    const fill = { text: this.#textOf, file: this.#fileOf, call: this.#callOf }[message.kind];
    node.dataset.state = message.file?.state ?? "";
    node.replaceChildren(...fill.call(this, message), this.#foot(message));
  }

  /** Show how far a file has come; returns whether that is all that has changed. */
  #progress(node, message) {
    const bar = node.querySelector("progress");
    if (bar === null || node.dataset.state !== message.file.state) return false;
    bar.value = this.files.of(message)?.done ?? 0;
    node.querySelector(".muted").textContent = this.#fileWords(message);
    return true;
  }

  #fileWords(message) {
    const { file, mine } = message;
    const state = file.state === "offered" && !mine ? "offeredToYou" : file.state;
    const why = hasWords(`why_${file.reason}`) ? t(`why_${file.reason}`) : t("errorUnknown");
    const words = t(`file_${state}`, { done: bytes(this.files.of(message)?.done ?? 0), size: bytes(file.size), why });
    return file.state === "running" || file.state === "done" ? words : `${words} · ${bytes(file.size)}`;
  }

  #foot({ mine, kind, at, state }) {
    const foot = make("footer", {}, make("time", { dateTime: new Date(at).toISOString() }, timeOfDay(at)));
    if (mine && kind === "text") {
      const mark = make("span", { class: state, title: t(state) }, icon(MARKS[state]));
      foot.append(make("span", { class: "hidden-text" }, `, ${t(state)}`), mark);
    }
    return foot;
  }

  #textOf(message) {
    const parts = [make("p", { dir: "auto" }, linked(message.text))];
    if (message.state === "failed") {
      const retry = textButton(t("retry"), () => this.on.retry(message), "link");
      const why = errorText(message.error ? { code: message.error } : null);
      parts.push(make("p", { class: "problem" }, `${why} `, retry));
    }
    return parts;
  }

  #callOf({ mine, call }) {
    const kind = call.isVideo ? "Video" : "Voice";
    const title = call.isMissed ? t(`missed${kind}`) : t(mine ? `${kind.toLowerCase()}Call` : `incoming${kind}`);
    const detail = call.seconds > 0 ? duration(call.seconds) : outcomeText(call);
    const name = call.isMissed ? "missed" : call.isVideo ? "video" : "phone";
    return [
      make("span", { class: `round${call.isMissed ? " bad" : ""}` }, icon(name)),
      make("p", {}, make("strong", {}, title), make("span", { class: "muted" }, call.isMissed ? "" : detail)),
    ];
  }

  #fileOf(message) {
    const { file, mine } = message;
    const transfer = this.files.of(message);
    const isOffered = file.state === "offered" && !mine && transfer !== undefined;
    const isMoving = file.state === "running" || file.state === "paused" || file.state === "waiting";
    const button = (key, act, className = "") => textButton(t(key), act, `small ${className}`);
    const buttons = make("p", { class: "buttons" });
    if (isOffered) buttons.append(button("accept", () => this.files.accept(transfer), "primary"));
    if (isOffered) buttons.append(button("decline", () => this.files.cancel(transfer)));
    if (file.state === "running") buttons.append(button("pause", () => this.files.pause(transfer)));
    if (file.state === "paused") buttons.append(button("resume", () => this.files.resume(transfer), "primary"));
    if (transfer && !isOffered) buttons.append(button("cancel", () => this.files.cancel(transfer)));
    if (file.state === "done" && !mine) buttons.append(button("save", () => this.save(message)));
    return [
      make("span", { class: "round" }, icon("file")),
      make(
        "p", {}, make("strong", { dir: "auto" }, file.name),
        make("span", { class: "muted" }, this.#fileWords(message)),
      ),
      isMoving && make("progress", { max: file.size || 1, value: transfer?.done ?? 0, ariaLabel: file.name }),
      this.#picture(message),
      buttons.children.length > 0 && buttons,
    ].filter(Boolean);
  }

  #picture(message) {
    const { file, mine } = message;
    const type = PICTURES[file.name.split(".").at(-1).toLowerCase()];
    if (mine || file.state !== "done" || type === undefined || file.size > MAX_PICTURE) return null;
    const image = make("img", { class: "picture", alt: file.name, hidden: true });
    image.onload = () => {
      const follows = this.#isAtEnd;
      image.hidden = false;
      if (follows) this.#toEnd();
    };
    this.#urlOf(message, type).then((url) => url && (image.src = url));
    return image;
  }

  async #urlOf(message, type) {
    if (this.#url.has(message.id)) return this.#url.get(message.id);
    const file = await this.files.read(message);
    if (file === null) return null;
    const url = URL.createObjectURL(new Blob([file], { type }));
    this.#url.set(message.id, url);
    return url;
  }

  /** Save a file that came where the browser puts its downloads. */
  async save(message, file = null) {
    const content = file ?? (await this.files.read(message));
    if (content === null) {
      this.on.problem(t("why_gone"));
      return;
    }
    // Of no type that a browser would open rather than save.
    const href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
    make("a", { href, download: message.file.name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  }

  // -- writing

  #send() {
    const text = this.text.value.trim();
    if (text === "") return;
    const excess = encodeText(text).length - MAX_TEXT;
    if (excess > 0) {
      this.on.problem(t("tooLong", { n: excess }));
      return;
    }
    this.text.value = "";
    this.#typed();
    this.on.send(this.peer, text);
  }

  #typed() {
    this.#fit();
    clearTimeout(this.#draftTimer);
    const { peer } = this;
    const draft = this.text.value;
    this.#draftTimer = setTimeout(() => this.on.draft(peer, draft), DRAFT_AFTER);
  }

  /** Make room for what is written. */
  #fit() {
    this.text.rows = Math.min(6, this.text.value.split("\n").length);
  }

  #sendFiles(files) {
    for (const file of files) this.files.send(this.peer, file);
  }

  #acceptDrops(zone, cover) {
    const hasFiles = (event) => event.dataTransfer.types.includes("Files");
    zone.ondragover = (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      cover.hidden = false;
    };
    zone.ondragleave = (event) => {
      if (!zone.contains(event.relatedTarget)) cover.hidden = true;
    };
    zone.ondrop = (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      cover.hidden = true;
      this.#sendFiles(event.dataTransfer.files);
    };
  }
}
