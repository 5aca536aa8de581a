/** The page's words, in English and Chinese.  A third language is a third column. */

const LANGUAGES = ["en", "zh"];
const KEY = "wecompany.language";

const WORDS = {
  // Signing in
  signIn: ["Sign in", "登录"],
  signUp: ["Create account", "创建账号"],
  welcome: ["Messages, files and calls inside your company.", "公司内部的消息、文件与通话。"],
  name: ["Name", "用户名"],
  password: ["Password", "密码"],
  passwordHint: ["Leave it empty if your server has no accounts.", "如果服务器没有启用账号，请留空。"],
  keepSignedIn: ["Keep me signed in on this device", "在此设备上保持登录"],
  signingIn: ["Signing in …", "正在登录…"],
  badName: [
    "A name has 1 to 128 bytes, no slash, no # at its beginning and no space at its ends.",
    "用户名为 1 至 128 字节，不能含斜杠，不能以 # 开头，首尾不能有空格。",
  ],
  error3: ["The name or the password is wrong, or this server wants a password.", "用户名或密码不正确，或该服务器需要密码。"],
  error4: ["Somebody with this name is online already.", "该用户名已在线。"],
  error5: ["Not delivered: the server knows nobody of this name, or cannot keep texts.", "未送达：服务器不认识此用户，或无法保存消息。"],
  error7: ["Too much at once: please try again in a while.", "操作过于频繁，请稍后再试。"],
  error8: ["The server does not accept this.", "服务器不接受此请求。"],
  error9: ["This is not allowed here.", "此操作不被允许。"],
  error10: ["The server is going down.", "服务器正在关闭。"],
  error11: ["You have signed in elsewhere with this name.", "您已在别处用此用户名登录。"],
  error14: ["The server made a mistake.", "服务器出错。"],
  errorUnknown: ["That did not work.", "操作未成功。"],
  errorConnection: ["The server cannot be reached.", "无法连接服务器。"],
  errorStore: [
    "This browser keeps no data for this page (IndexedDB is off), and without that no text can be kept safe.",
    "此浏览器不为本页保存数据（IndexedDB 不可用），无法可靠地保存消息。",
  ],
  // People
  conversations: ["Conversations", "会话"],
  search: ["Search people", "查找联系人"],
  online: ["online", "在线"],
  offline: ["offline", "离线"],
  you: ["You", "我"],
  server: ["Server", "服务器"],
  nobody: ["Nobody else is here yet. Whoever signs in appears in this list.", "还没有其他人。登录的人会出现在这里。"],
  noMatch: ["No one of that name is known. Press Enter to write to them anyway.", "没有此联系人。按回车键仍可向其发送消息。"],
  unread: ["{n} unread", "{n} 条未读"],
  // Conversation
  chooseSomebody: ["Choose somebody to talk to", "选择一位联系人开始聊天"],
  chooseHint: ["Your messages are kept in this browser only.", "消息记录只保存在此浏览器中。"],
  back: ["Back", "返回"],
  message: ["Write a message", "输入消息"],
  send: ["Send", "发送"],
  sendFile: ["Send a file", "发送文件"],
  dropHere: ["Drop files here to send them", "拖放到此处以发送文件"],
  voiceCall: ["Voice call", "语音通话"],
  videoCall: ["Video call", "视频通话"],
  log: ["Messages", "消息"],
  today: ["Today", "今天"],
  yesterday: ["Yesterday", "昨天"],
  waiting: ["waiting for the server", "等待服务器"],
  stored: ["the server has it", "服务器已收到"],
  failed: ["not delivered", "未送达"],
  retry: ["Try again", "重试"],
  tooLong: ["This text is too long by {n} bytes.", "消息超长 {n} 字节。"],
  newMessages: ["New messages", "新消息"],
  // Files
  accept: ["Accept", "接收"],
  decline: ["Decline", "拒绝"],
  cancel: ["Cancel", "取消"],
  pause: ["Pause", "暂停"],
  resume: ["Resume", "继续"],
  save: ["Save", "保存"],
  file_hashing: ["Preparing …", "准备中…"],
  file_offered: ["Waiting to be accepted", "等待对方接收"],
  file_offeredToYou: ["wants to send you this file", "想向您发送此文件"],
  file_running: ["{done} of {size}", "{done} / {size}"],
  file_paused: ["Paused at {done}", "已暂停：{done}"],
  file_waiting: ["Interrupted: goes on by itself", "已中断，将自动继续"],
  file_done: ["{size}, complete and checked", "{size}，已完成并校验"],
  file_declined: ["Declined", "已拒绝"],
  file_cancelled: ["Cancelled", "已取消"],
  file_failed: ["Failed: {why}", "失败：{why}"],
  why_hash: ["what arrived is not what was sent", "收到的内容与发送的不一致"],
  why_reloaded: ["the page was closed; choose the file again to go on", "页面已关闭，请重新选择该文件以继续"],
  why_withdrawn: ["the offer is gone", "对方已撤回"],
  why_unreadable: ["the file cannot be read", "无法读取文件"],
  why_unwritable: ["there is no space for it", "存储空间不足"],
  why_space: ["the other side has no space", "对方存储空间不足"],
  why_lost: ["the other side is gone", "对方已离线"],
  why_rule: ["the two sides disagreed", "传输出错"],
  why_twice: ["this file is being sent already", "该文件正在发送"],
  why_5: ["not online", "对方不在线"],
  why_7: ["too many files at once", "同时传输的文件过多"],
  why_9: ["not allowed", "不被允许"],
  why_gone: ["this browser no longer has it", "此浏览器中已无此文件"],
  fileFrom: ["{name} offers a file: {file}", "{name} 发来文件：{file}"],
  // Calls
  incomingVoice: ["Voice call", "语音来电"],
  incomingVideo: ["Video call", "视频来电"],
  calls: ["{name} is calling", "{name} 来电"],
  answerVoice: ["Answer with voice", "语音接听"],
  answerVideo: ["Answer with video", "视频接听"],
  hangUp: ["Hang up", "挂断"],
  mute: ["Mute microphone", "静音"],
  unmute: ["Unmute microphone", "取消静音"],
  cameraOn: ["Turn camera on", "打开摄像头"],
  cameraOff: ["Turn camera off", "关闭摄像头"],
  fullScreen: ["Full screen", "全屏"],
  devices: ["Devices", "设备"],
  minimise: ["Back to the messages", "返回消息"],
  yourCamera: ["Your camera", "您的摄像头"],
  theirCamera: ["Video from {name}", "{name} 的视频"],
  call_preparing: ["Opening microphone and camera …", "正在打开麦克风和摄像头…"],
  call_calling: ["Calling …", "正在呼叫…"],
  call_ringing: ["Ringing …", "等待对方接听…"],
  call_accepting: ["Connecting …", "正在接通…"],
  linkDown: ["Connection lost. Reconnecting …", "连接中断，正在重连…"],
  peerSilent: ["Nothing comes from {name} …", "暂时收不到 {name} 的信号…"],
  peerMuted: ["{name} is muted", "{name} 已静音"],
  playedAll: ["{name} has played everything", "{name} 已播放完毕"],
  microphone_denied: ["The browser may not use the microphone: you are not heard.", "浏览器无权使用麦克风，对方听不到您。"],
  microphone_missing: ["No microphone was found: you are not heard.", "未找到麦克风，对方听不到您。"],
  camera_denied: ["The browser may not use the camera: you are not seen.", "浏览器无权使用摄像头，对方看不到您。"],
  camera_missing: ["No camera was found: you are not seen.", "未找到摄像头，对方看不到您。"],
  cannotShow: ["The other side cannot show video.", "对方无法显示视频。"],
  reject0: ["declined", "已拒绝"],
  reject1: ["busy", "对方忙"],
  reject2: ["not online", "对方不在线"],
  reject3: ["no answer", "无人接听"],
  reject4: ["that is you", "不能呼叫自己"],
  reject5: ["too many calls", "呼叫过于频繁"],
  reject6: ["not allowed", "不被允许"],
  reject7: ["not possible on the other side", "对方不支持"],
  end0: ["ended", "通话结束"],
  end1: ["cancelled", "已取消"],
  end2: ["connection lost", "连接中断"],
  end3: ["as long as a call may last", "已达最长通话时间"],
  end4: ["the server went down", "服务器已关闭"],
  end5: ["answered elsewhere", "已在别处接听"],
  missedVoice: ["Missed voice call", "未接语音来电"],
  missedVideo: ["Missed video call", "未接视频来电"],
  missedCall: ["Missed call", "未接来电"],
  quality: ["{rtt} · {loss} % lost · {size} · {fps}/s", "{rtt} · 丢失 {loss} % · {size} · {fps}/秒"],
  qualityVoice: ["{rtt} · {loss} % lost", "{rtt} · 丢失 {loss} %"],
  // What a browser lacks
  why_insecure: [
    "No calls on this page: browsers give camera and microphone only to pages over https, or from this machine itself.",
    "本页无法通话：浏览器只允许 https 页面或本机页面使用摄像头和麦克风。",
  ],
  why_webcodecs: [
    "No calls in this browser: it has no WebCodecs. Current Chrome, Edge, Firefox and Safari have.",
    "此浏览器无法通话：缺少 WebCodecs。新版 Chrome、Edge、Firefox 和 Safari 均支持。",
  ],
  why_worklet: ["No calls in this browser: it has no AudioWorklet.", "此浏览器无法通话：缺少 AudioWorklet。"],
  lacksVideo: ["This browser cannot show VP8 video: calls have sound only.", "此浏览器无法显示 VP8 视频，通话仅有声音。"],
  lacksSending: ["This browser cannot encode Opus: others are heard, but do not hear you.", "此浏览器无法编码 Opus：您听得到对方，对方听不到您。"],
  // Settings
  settings: ["Settings", "设置"],
  close: ["Close", "关闭"],
  language: ["Language", "语言"],
  appearance: ["Appearance", "外观"],
  theme_system: ["As the system", "跟随系统"],
  theme_light: ["Light", "浅色"],
  theme_dark: ["Dark", "深色"],
  notifications: ["Desktop notifications", "桌面通知"],
  notificationsDenied: ["The browser does not allow this page any.", "浏览器不允许本页发送通知。"],
  microphone: ["Microphone", "麦克风"],
  camera: ["Camera", "摄像头"],
  speaker: ["Loudspeaker", "扬声器"],
  standard: ["The system's choice", "系统默认"],
  noDevices: ["Devices have names once a call has been allowed to use them.", "首次允许通话使用设备后才会显示设备名称。"],
  signedInAs: ["Signed in as {name}", "当前用户：{name}"],
  logOut: ["Log out", "退出登录"],
  erase: ["Erase the history on this device", "清除此设备上的记录"],
  eraseSure: ["Erase all messages and files of {name} from this browser?", "确定从此浏览器清除 {name} 的全部消息和文件？"],
  // Connection
  reconnecting: ["No connection to the server. Trying again …", "与服务器的连接已断开，正在重试…"],
  signInHere: ["Sign in here", "在此登录"],
};

let language = initial();

function initial() {
  const chosen = globalThis.localStorage?.getItem(KEY) ?? globalThis.navigator?.language ?? "";
  return chosen.startsWith("zh") ? "zh" : "en";
}

const listeners = new Set();

/** Return the language that is shown now. */
export const currentLanguage = () => language;

/** Show another language from now on. */
export function useLanguage(name) {
  language = LANGUAGES.includes(name) ? name : "en";
  localStorage.setItem(KEY, language);
  translatePage();
  for (const listener of listeners) listener();
}

/** Call `listener` when the language has changed. */
export const onLanguage = (listener) => listeners.add(listener);

/** Whether there are words of that name. */
export const hasWords = (key) => key in WORDS;

/** Return the words of that name, with what belongs into their braces. */
export function t(key, values = {}) {
  const words = WORDS[key][LANGUAGES.indexOf(language)];
  return words.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** Put the words where the page says which belong: as text, label or placeholder. */
export function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-label]")) label(node, node.dataset.label);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
}

/** Give a button without text its name, now and in every language. */
export function label(node, key) {
  node.dataset.label = key;
  node.setAttribute("aria-label", t(key));
  node.title = t(key);
}

// -- Times and sizes ------------------------------------------------------------------------------------------------

const format = (date, options) => new Intl.DateTimeFormat(language, options).format(date);

export const timeOfDay = (at) => format(at, { hour: "2-digit", minute: "2-digit" });

/** Return which day that was, as people say it. */
export function day(at) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (at >= midnight) return t("today");
  if (at >= midnight - 86_400_000) return t("yesterday");
  return format(at, { weekday: "short", year: "numeric", month: "short", day: "numeric" });
}

/** Return when that was, as short as a list has room for. */
export function shortTime(at) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  return at >= midnight ? timeOfDay(at) : format(at, { month: "short", day: "numeric" });
}

/** Return a duration as minutes and seconds. */
export function duration(seconds) {
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor(seconds / 60) % 60;
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}

/** Return a number of bytes as a person reads it. */
export function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; size >= 1000 && unit < units.length - 1; unit += 1) size /= 1000;
  return `${size.toFixed(unit > 0 && size < 100 ? 1 : 0)} ${units[unit]}`;
}

/** Return how a call ended. */
export function outcomeText({ rejected, code }) {
  const key = `${rejected ? "reject" : "end"}${code}`;
  return t(hasWords(key) ? key : "end0");
}

/** Return what an ERROR of the server, or a lost connection, means to a person. */
export function errorText(error) {
  if (error?.code === undefined) return t("errorConnection");
  return hasWords(`error${error.code}`) ? t(`error${error.code}`) : t("errorUnknown");
}
