import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test from "node:test";

const pages = new URL("../../wecompany/web/pages/", import.meta.url);
const sources = readdirSync(pages).filter((name) => /\.(js|html)$/.test(name));
const source = Object.fromEntries(sources.map((name) => [name, readFileSync(new URL(name, pages), "utf8")]));
const table = /const WORDS = (\{[\s\S]*?\n\});/.exec(source["i18n.js"])[1];
// The table is a literal of texts, and of ours.
const words = new Function(`return ${table}`)();

test("Everything is said in every language, with the same things to be filled in.", () => {
  for (const [key, said] of Object.entries(words)) {
    assert.equal(said.length, 2, key);
    const [english, chinese] = said.map((text) => (text.match(/\{\w+\}/g) ?? []).sort());
    assert.deepEqual(english, chinese, key);
    assert.ok(said.every((text) => text.length > 0), key);
  }
});

test("All words that the page asks for are there.", () => {
  for (const [name, text] of Object.entries(source)) {
    for (const match of text.matchAll(/\bt\("(\w+)"|data-(?:t|label|placeholder)="(\w+)"/g)) {
      assert.ok((match[1] ?? match[2]) in words, `${name}: ${match[0]}`);
    }
  }
});

test("All words that are there are asked for.", () => {
  const all = Object.entries(source).filter(([name]) => name !== "i18n.js").map(([, text]) => text).join();
  const made = /^(error|why_|file_|call_|theme_|reject|end|microphone_|camera_|missed|incoming)/;
  for (const key of Object.keys(words)) {
    assert.ok(made.test(key) || new RegExp(`"${key}"`).test(all) || source["i18n.js"].includes(`t("${key}")`), key);
  }
});

test("Every icon that is shown is drawn in the page.", () => {
  const drawn = new Set([...source["index.html"].matchAll(/<symbol id="i-([\w-]+)"/g)].map((match) => match[1]));
  for (const [name, text] of Object.entries(source)) {
    const shown = [...text.matchAll(/#i-([\w-]+)"|\b(?:icon|iconButton)\("([\w-]+)"/g)].map((m) => m[1] ?? m[2]);
    for (const icon of shown) assert.ok(drawn.has(icon), `${name}: ${icon}`);
  }
});
