/** What the page makes of the server's figures before anything is drawn: words, units, scales and lines. */

const HOUR = 3_600_000;

const WORDS = {
  title: ["Server status", "服务器状态"],
  running: ["Running", "运行正常"],
  failing: ["The store does not work", "存储无法写入"],
  stopping: ["Stopping", "正在停止"],
  silent: ["No connection", "无法连接"],
  noStore: ["No store", "未启用存储"],
  storeIdle: ["Store: nothing waits", "存储：无等待操作"],
  store: ["Store: {n} operations wait, the oldest for {lag}", "存储：{n} 个操作等待中，最久已等 {lag}"],
  lost: [
    "No answer from the server since {time}: what is shown is as old as that. Trying again every {every}.",
    "自 {time} 起服务器没有应答，以下数据截至该时刻。每 {every}重试一次。",
  ],
  never: ["No answer from the server. Trying again every {every}.", "服务器没有应答。每 {every}重试一次。"],
  refused: ["The server does not give its figures to this browser ({code}).", "服务器拒绝向此浏览器提供数据（{code}）。"],
  nothing: ["No figures yet: the first come {every} after the start.", "暂无数据：启动 {every}后开始显示。"],
  notMeasured: ["no data", "无数据"],
  figures: ["Figures", "数据表"],
  highest: ["The highest in each five minutes", "每五分钟内的最高值"],
  time: ["Time", "时间"],
  now: ["now", "现在"],
  ago: ["{n} min ago", "{n} 分钟前"],
  summary: ["{name} {now} now, {most} at most", "{name}现在 {now}，最高 {most}"],
  label: ["{name}, {unit}: {lines}", "{name}（{unit}）：{lines}"],
  foot: [
    "The last hour, one sample every {every}; what is counted is the average of that time. In this browser's time zone. "
      + "The same figures for Prometheus: ",
    "最近一小时，每 {every}采样一次；速率为该时段内的平均值。时间按此浏览器的时区显示。供 Prometheus 使用的相同数据：",
  ],
  // The charts, what each is measured in, and their lines
  people: ["Connections and users", "连接与用户"],
  messages: ["Messages", "消息"],
  traffic: ["Traffic", "流量"],
  calls: ["Calls", "通话"],
  troubles: ["Drops and errors", "丢弃与错误"],
  waiting: ["Waiting for receivers", "等待接收方"],
  relay: ["Relay latency", "转发延迟"],
  lag: ["Reactor lag", "事件循环延迟"],
  in_number: ["number", "数量"],
  in_rate: ["per second", "每秒"],
  in_bytes: ["bytes", "字节"],
  in_byteRate: ["bytes per second", "字节每秒"],
  in_seconds: ["time", "时间"],
  connections: ["connections", "连接"],
  users: ["users online", "在线用户"],
  messagesIn: ["from clients", "来自客户端"],
  messagesOut: ["to clients", "发往客户端"],
  bytesIn: ["from clients", "来自客户端"],
  bytesOut: ["to clients", "发往客户端"],
  callsActive: ["active", "通话中"],
  callsRinging: ["ringing", "振铃中"],
  dropped: ["media dropped", "丢弃的媒体帧"],
  errors: ["errors", "错误"],
  limits: ["limits hit", "触及限制"],
  queuedBytes: ["queued", "排队中"],
  relayMedian: ["median", "中位数"],
  relayMost: ["longest", "最长"],
  lagMedian: ["median", "中位数"],
  lagMost: ["longest", "最长"],
};

/** All charts: what each is measured in, and which fields of a sample it draws. */
export const CHARTS = [
  ["people", "number", ["connections", "users"]],
  ["calls", "number", ["callsActive", "callsRinging"]],
  ["messages", "rate", ["messagesIn", "messagesOut"]],
  ["traffic", "byteRate", ["bytesIn", "bytesOut"]],
  ["troubles", "rate", ["dropped", "errors", "limits"]],
  ["waiting", "bytes", ["queuedBytes"]],
  ["relay", "seconds", ["relayMedian", "relayMost"]],
  ["lag", "seconds", ["lagMedian", "lagMost"]],
].map(([name, unit, fields]) => ({ name, unit, fields }));

const language = globalThis.localStorage?.getItem("wecompany.language") ?? globalThis.navigator?.language ?? "";

export const isChinese = language.startsWith("zh");

/** Return the words of that name, with what belongs into their braces. */
export const t = (key, values = {}) =>
  WORDS[key][Number(isChinese)].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));

const numbers = new Intl.NumberFormat(isChinese ? "zh" : "en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat(isChinese ? "zh" : "en", { timeStyle: "medium", hourCycle: "h23" });

export const timeOf = (at) => clock.format(at);

/** The end of the scale of a chart in which nothing has happened. */
const LEAST = { number: 2, rate: 1, bytes: 1000, byteRate: 1000, seconds: 0.001 };

const STEPS = {
  number: [["", 1]],
  rate: [["/s", 1]],
  bytes: [["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]],
  byteRate: [["GB/s", 1e9], ["MB/s", 1e6], ["kB/s", 1e3], ["B/s", 1]],
  seconds: [["s", 1], ["ms", 1e-3], ["µs", 1e-6]],
};

/** Return a figure with its unit, in the step of it that suits `like`; nothing measured is said so. */
export function figure(value, unit, like = value) {
  if (value === null || value === undefined) return t("notMeasured");
  const [name, size] = STEPS[unit].find(([, one]) => like >= one * 0.9999) ?? STEPS[unit].at(-1);
  return `${numbers.format(value / size)}${name && "\u202f"}${name}`;
}

/** Return the end of a scale that has room for `most`, and half of which is a round number, too. */
export function roomFor(most, unit) {
  if (!(most > 0)) return LEAST[unit];
  const power = 10 ** Math.floor(Math.log10(most) + 1e-9);
  const end = power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= most * 0.9999);
  return unit === "number" ? Math.max(LEAST.number, end) : end;
}

/** Return the samples of the hour before `answer.now`: those that were kept, and those that are new. */
export function merged(kept, { now, fields, samples }) {
  const newer = samples.map((row) => Object.fromEntries(fields.map((name, i) => [name, row[i]])));
  return [...kept, ...newer].filter(({ at }) => at > now - HOUR && at <= now);
}

/** Return where in the picture a sample of that time is: 0 an hour ago, and `width` now. */
export const across = (at, now, width) => ((at - now + HOUR) / HOUR) * width;

/** Return the parts of a line, each a list of points [time, value]: it ends where nothing is known. */
export function parts(samples, field, every) {
  const found = [];
  let last = -Infinity;
  for (const { at, [field]: value } of samples) {
    if (value === null) continue;
    if (at - last > every * 1500) found.push([]);
    found.at(-1).push([at, value]);
    last = at;
  }
  return found;
}

/** Return the highest of each five minutes, newest first: [time at which they begin, one for each field]. */
export function fiveMinutes(samples, fields) {
  const rows = new Map();
  for (const sample of samples) {
    const begin = sample.at - (sample.at % 300_000);
    const row = rows.get(begin) ?? fields.map(() => null);
    rows.set(begin, row.map((most, i) => (sample[fields[i]] === null ? most : Math.max(most ?? 0, sample[fields[i]]))));
  }
  return [...rows].reverse();
}
