/** The page for the operator: asks the server for its figures, and draws them. */

import { CHARTS, across, figure, fiveMinutes, isChinese, merged, parts, roomFor, t, timeOf } from "./figures.js";

const ASK_EVERY = 5;
const ANSWER_WITHIN = 10;
const [WIDTH, HEIGHT] = [720, 160];
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const seconds = (n) => (isChinese ? `${n} 秒` : `${n} s`);

let samples = [];
let answer = null;
let pointedAt = null;

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

function draw(parent, tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

/** One chart: its lines, what they are now or where somebody points, and the same as a table. */
class Chart {
  constructor({ name, unit, fields }) {
    Object.assign(this, { name, unit, fields });
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      draw(this.svg, "path", { class: "grid", d: `M${share * WIDTH} 0V${HEIGHT}` });
      if (share % 0.5 === 0) draw(this.svg, "path", { class: "grid", d: `M0 ${share * HEIGHT}H${WIDTH}` });
    }
    this.area = draw(this.svg, "path", { class: "area" });
    this.lines = fields.map((_, i) => draw(this.svg, "path", { class: `line line-${i}` })).reverse();
    for (const line of this.lines) this.svg.append(line);
    this.lines.reverse();
    this.pointer = draw(this.svg, "path", { class: "pointer" });
    this.values = fields.map(() => make("b", ""));
    this.scale = [0, 1, 2].map(() => make("span", ""));
    this.body = make("tbody", "");
    const heads = [t("time"), ...fields.map((field) => t(field))].map((words) => make("th", "", words));
    for (const head of heads) head.scope = "col";
    const legend = fields.map((field, i) => make("li", `key-${i}`, this.values[i], ` ${t(field)}`));
    const table = make("table", "", make("caption", "", t("highest")), make("thead", "", make("tr", "", ...heads)));
    table.append(this.body);
    this.details = make("details", "", make("summary", "", t("figures")), table);
    this.details.addEventListener("toggle", () => this.tabulate());
    this.when = make("span", "muted");
    const title = make("h2", "", t(name));
    title.id = `chart-${name}`;
    this.node = make(
      "section",
      "chart",
      make("div", "head", title, this.when),
      make("ul", "legend", ...legend),
      make("div", "plot", make("div", "scale", ...this.scale), this.svg),
      make("div", "times", ...[60, 30].map((n) => make("span", "", t("ago", { n }))), make("span", "", t("now"))),
      this.details,
    );
    this.node.setAttribute("aria-labelledby", title.id);
    for (const event of ["pointermove", "pointerdown"]) this.svg.addEventListener(event, (e) => this.point(e));
    for (const event of ["pointerleave", "pointercancel"]) this.svg.addEventListener(event, () => showAt(null));
  }

  most(field) {
    return samples.reduce((most, { [field]: value }) => (value === null ? most : Math.max(most ?? 0, value)), null);
  }

  /** Show what is known now. */
  show() {
    const most = this.fields.map((field) => this.most(field));
    const end = roomFor(Math.max(...most), this.unit);
    this.scale.forEach((node, i) => (node.textContent = figure(end * (1 - i / 2), this.unit, end)));
    const y = (value) => (HEIGHT * (1 - value / end)).toFixed(1);
    const x = (at) => across(at, answer.now, WIDTH).toFixed(1);
    this.fields.forEach((field, i) => {
      const found = parts(samples, field, answer.every);
      const drawn = found.map((part) => `M${part.map(([at, value]) => `${x(at)} ${y(value)}`).join("L")}`);
      // One sample alone is a dot: a line as long as nothing, with round ends.
      this.lines[i].setAttribute("d", drawn.map((d, n) => (found[n].length > 1 ? d : `${d}h.01`)).join(""));
      if (i > 0) return;
      const close = (part) => `L${x(part.at(-1)[0])} ${HEIGHT}L${x(part[0][0])} ${HEIGHT}Z`;
      this.area.setAttribute("d", drawn.map((d, n) => d + close(found[n])).join(""));
    });
    const newest = { ...samples.at(-1), ...answer.current };
    const told = this.fields.map((field, i) =>
      t("summary", { name: t(field), now: this.figure(newest, field), most: figure(most[i], this.unit) }),
    );
    const lines = told.join(isChinese ? "；" : "; ");
    this.svg.setAttribute("aria-label", t("label", { name: t(this.name), unit: t(`in_${this.unit}`), lines }));
    this.tabulate();
    this.tell();
  }

  figure(sample, field) {
    return figure(sample[field], this.unit);
  }

  /** Say how things are now, or were where somebody points. */
  tell() {
    const sample = pointedAt ?? { ...samples.at(-1), ...answer.current };
    this.fields.forEach((field, i) => (this.values[i].textContent = this.figure(sample, field)));
    const isPointed = pointedAt !== null;
    this.pointer.setAttribute("d", isPointed ? `M${across(pointedAt.at, answer.now, WIDTH)} 0V${HEIGHT}` : "");
    this.when.textContent = (pointedAt === null ? "" : `${timeOf(pointedAt.at)} · `) + t(`in_${this.unit}`);
  }

  point(event) {
    const { left, width } = this.svg.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * WIDTH;
    const distance = ({ at }) => Math.abs(across(at, answer.now, WIDTH) - x);
    showAt(samples.reduce((best, one) => (best === null || distance(one) < distance(best) ? one : best), null));
  }

  tabulate() {
    if (!this.details.open) return;
    const rows = fiveMinutes(samples, this.fields).map(([at, values]) => {
      const head = make("th", "", timeOf(at));
      head.scope = "row";
      return make("tr", "", head, ...values.map((value) => make("td", "", figure(value, this.unit))));
    });
    this.body.replaceChildren(...rows);
  }
}

const charts = CHARTS.map((one) => new Chart(one));

/** Let all charts say how things were at one sample, or how they are now. */
function showAt(sample) {
  if (sample === pointedAt || answer === null) return;
  pointedAt = sample;
  for (const chart of charts) chart.tell();
}

function say(id, words) {
  // A screen reader says aloud what changes: so nothing does that has not.
  if (byId(id).textContent !== words) byId(id).textContent = words;
}

function showState(name) {
  byId("state").dataset.state = name;
  say("state", t(name));
}

function show(problem) {
  document.body.classList.toggle("is-stale", problem !== "");
  showState(problem === "" ? answer.state : "silent");
  if (answer === null) return say("problem", problem);
  const { storeOperations: n, storeLag: lag } = answer.current;
  const waiting = n > 0 ? t("store", { n, lag: figure(lag, "seconds") }) : t("storeIdle");
  say("store", n === null ? t("noStore") : waiting);
  say("problem", problem || (samples.length > 0 ? "" : t("nothing", { every: seconds(answer.every) })));
  for (const chart of charts) chart.show();
}

async function ask() {
  try {
    const response = await fetch(`status/data?after=${samples.at(-1)?.at ?? 0}`, {
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_WITHIN * 1000),
    });
    if (!response.ok) return show(t("refused", { code: response.status }));
    answer = await response.json();
    samples = merged(samples, answer);
    return show("");
  } catch {
    const every = seconds(ASK_EVERY);
    return show(answer === null ? t("never", { every }) : t("lost", { time: timeOf(answer.now), every }));
  }
}

/** Ask again and again, but not while nobody looks. */
async function goOn() {
  if (!document.hidden) await ask();
  setTimeout(goOn, ASK_EVERY * 1000);
}

document.documentElement.lang = isChinese ? "zh-Hans" : "en";
document.documentElement.dataset.theme = localStorage.getItem("wecompany.theme") ?? "system";
document.title = `${t("title")} · WeCompany`;
byId("title").textContent = t("title");
const metrics = make("a", "", "/metrics");
metrics.href = "metrics";
byId("foot").append(t("foot", { every: seconds(10) }), metrics);
byId("charts").append(...charts.map(({ node }) => node));
document.addEventListener("visibilitychange", () => !document.hidden && ask());
goOn();
