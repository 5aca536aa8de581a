/** The list of people: whom one has talked to, newest first, and everyone else whom the server knows. */

import { avatar, byId, make, soon } from "./dom.js";
import { onLanguage, outcomeText, shortTime, t } from "./i18n.js";

/** People that are shown at once; the others are found by their names. */
const MAX_SHOWN = 300;

/** Return what stands in the list for a message. */
function excerpt({ kind, mine, text, file, call }) {
  if (kind === "file") return file.name;
  if (kind === "text") return mine ? `${t("you")}: ${text}` : text;
  if (call.isMissed) return t("missedCall");
  return `${t(call.isVideo ? "videoCall" : "voiceCall")} · ${outcomeText(call)}`;
}

export class PeopleView {
  #items = new Map();
  #chosen = null;
  #stop = null;

  /**
   * @param conversations a Map of what the store keeps of each peer
   * @param choose called with the peer whom the user wants to talk to
   */
  constructor(presence, conversations, choose) {
    this.presence = presence;
    this.conversations = conversations;
    this.choose = choose;
    this.changed = soon(() => this.#draw());
    presence.on("changed", this.changed);
    onLanguage(this.changed);
    byId("search").oninput = this.changed;
    byId("search-form").onsubmit = (event) => {
      event.preventDefault();
      const name = byId("search").value.trim().normalize("NFC");
      if (name !== "") choose(this.#matches(name)[0] ?? name);
    };
    byId("people").onkeydown = (event) => {
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const next = step && event.target.closest("li")[step]?.firstChild;
      if (!next) return;
      event.preventDefault();
      next.focus();
    };
    byId("people").addEventListener("focusin", ({ target }) => this.#stopAt(target.closest(".person")));
    this.changed();
  }

  /** Mark whom the user talks to. */
  chosen(peer) {
    this.#chosen = peer;
    byId("search").value = "";
    this.changed();
  }

  /** The Tab key comes by the list once, however many people there are; within it the arrow keys lead on. */
  #stopAt(button) {
    if (this.#stop !== null) this.#stop.tabIndex = -1;
    this.#stop = button;
    if (button !== null) button.tabIndex = 0;
  }

  #matches(wanted) {
    const needle = wanted.toLowerCase();
    const names = new Set([...this.conversations.keys(), ...this.presence.users.map(([user]) => user)]);
    const rank = (name) => [
      this.conversations.get(name)?.last?.at ?? 0, this.presence.isOnline(name) ? 1 : 0,
    ];
    return [...names]
      .filter((name) => name.toLowerCase().includes(needle))
      .map((name) => [name, ...rank(name)])
      .sort((a, b) => b[1] - a[1] || b[2] - a[2] || a[0].localeCompare(b[0]))
      .slice(0, MAX_SHOWN)
      .map(([name]) => name);
  }

  #draw() {
    const wanted = byId("search").value.trim();
    const names = this.#matches(wanted);
    const nobody = byId("nobody");
    nobody.hidden = names.length > 0;
    nobody.textContent = t(wanted === "" ? "nobody" : "noMatch");
    const list = byId("people");
    const items = names.map((name) => this.#item(name));
    // Moving what is there already would take the focus away from it.
    if (items.some((item, i) => list.children[i] !== item) || list.children.length !== items.length) {
      const focused = document.activeElement;
      list.replaceChildren(...items);
      if (list.contains(focused)) focused.focus();
    }
    if (!list.contains(this.#stop)) this.#stopAt(list.querySelector("[aria-current=true]") ?? list.querySelector("button"));
  }

  #item(name) {
    const { last, unread = 0, draft = "" } = this.conversations.get(name) ?? {};
    const isOnline = this.presence.isOnline(name) === true;
    let item = this.#items.get(name);
    if (item === undefined) {
      const parts = {
        state: make("span", { class: "hidden-text" }),
        dot: make("i", { class: "dot" }),
        time: make("time", {}),
        text: make("span", { class: "ellipsis muted" }),
        badge: make("span", { class: "badge" }),
      };
      const face = make("span", { class: "face" }, avatar(name), parts.dot);
      const title = make("strong", { class: "ellipsis" }, name || t("server"));
      const button = make(
        "button", { class: "person", type: "button", tabIndex: -1, onclick: () => this.choose(name) }, face,
        make("span", { class: "line" }, title, parts.state, parts.time),
        make("span", { class: "line" }, parts.text, parts.badge),
      );
      item = Object.assign(make("li", {}, button), { parts, button });
      this.#items.set(name, item);
    }
    const { parts, button } = item;
    parts.dot.classList.toggle("on", isOnline);
    parts.state.textContent = `, ${t(isOnline ? "online" : "offline")}`;
    parts.time.textContent = last === undefined ? "" : shortTime(last.at);
    parts.text.textContent = last === undefined ? t(isOnline ? "online" : "offline") : excerpt(last);
    if (draft !== "" && name !== this.#chosen) parts.text.textContent = `✎ ${draft}`;
    parts.badge.hidden = unread === 0;
    parts.badge.textContent = unread;
    parts.badge.title = t("unread", { n: unread });
    button.ariaCurrent = name === this.#chosen ? "true" : null;
    return item;
  }
}
