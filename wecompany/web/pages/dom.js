/** Making elements.  Whatever somebody else wrote becomes text, and never markup. */

import { label } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";
const HUES = 10;

export const byId = (id) => document.getElementById(id);

/** Return an element; children are elements or texts, and those that are null or false are left out. */
export function make(tag, properties = {}, ...children) {
  const { class: className, ...rest } = properties;
  const node = document.createElement(tag);
  if (className !== undefined) node.className = className;
  Object.assign(node, rest);
  node.append(...children.filter((child) => child !== null && child !== false));
  return node;
}

/** Return the icon of that name in the page. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Show another icon. */
export function setIcon(node, name) {
  node.querySelector("use").setAttribute("href", `#i-${name}`);
}

/** Return a button with an icon; `key` names what it does. */
export function iconButton(name, key, onclick, className = "icon-button") {
  const button = make("button", { class: className, type: "button", onclick }, icon(name));
  label(button, key);
  return button;
}

/** Return a button with words. */
export const textButton = (words, onclick, className = "") =>
  make("button", { class: `button ${className}`, type: "button", onclick }, words);

/** Return the round picture of a user: the first letter, in a colour of its own. */
export function avatar(user, className = "avatar") {
  let hash = 0;
  for (const character of user) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  const [first = "·"] = [...user];
  return make("span", { class: `${className} hue-${hash % HUES}`, ariaHidden: "true" }, first.toUpperCase());
}

/** Return a text with its web addresses as links. */
export function linked(text) {
  const fragment = document.createDocumentFragment();
  let at = 0;
  for (const { 0: address, index } of text.matchAll(/https?:\/\/[^\s<>"]+[^\s<>".,;:!?)\]}'，。！？；：）]/g)) {
    fragment.append(text.slice(at, index));
    fragment.append(make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, address));
    at = index + address.length;
  }
  fragment.append(text.slice(at));
  return fragment;
}

/** Return a function that does `work` before the next picture is drawn, once however often it is called. */
export function soon(work) {
  let isPlanned = false;
  return () => {
    if (isPlanned) return;
    isPlanned = true;
    setTimeout(() => {
      isPlanned = false;
      work();
    }, 16);
  };
}
