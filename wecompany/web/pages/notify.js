/** Telling a user who looks elsewhere: desktop notifications, a title that blinks, and ringing. */

import { audioContext } from "./audio.js";

const KEY = "wecompany.notifications";
const TITLE = "WeCompany";
const BLINK_EVERY = 1_000;

/** Hz, and seconds of sound and of a whole turn, of each way to ring. */
const TONES = {
  incoming: { notes: [659, 784, 988, 784], sound: 0.13, turn: 2.4 },
  outgoing: { notes: [425], sound: 1, turn: 4 },
};

let unread = 0;
let alarm = "";
let blinking = null;

function showTitle(isAlarm) {
  const count = unread > 0 ? `(${unread}) ${TITLE}` : TITLE;
  document.title = isAlarm ? alarm : count;
}

/** Show in the title how many messages wait. */
export function titleUnread(count) {
  unread = count;
  if (alarm === "") showTitle(false);
}

/** Let the title blink with that text; with none, no more. */
export function titleAlarm(text) {
  alarm = text;
  clearInterval(blinking);
  let isAlarm = text !== "";
  showTitle(isAlarm);
  if (isAlarm) blinking = setInterval(() => showTitle((isAlarm = !isAlarm)), BLINK_EVERY);
}

export const canNotify = () => "Notification" in window && Notification.permission !== "denied";
export const notifies = () =>
  canNotify() && Notification.permission === "granted" && localStorage.getItem(KEY) !== "off";

/** Turn notifications on or off; on, the browser asks the user. */
export async function setNotifies(isOn) {
  localStorage.setItem(KEY, isOn ? "on" : "off");
  if (isOn && canNotify()) await Notification.requestPermission();
}

/** Show a notification if the user does not see the page; returns what takes it back. */
export function notify(title, body, onclick, isUrgent = false) {
  if (!notifies() || (document.visibilityState === "visible" && document.hasFocus())) return () => {};
  try {
    const shown = new Notification(title, { body, icon: "favicon.svg", tag: title, requireInteraction: isUrgent });
    shown.onclick = () => {
      window.focus();
      shown.close();
      onclick();
    };
    return () => shown.close();
  } catch {
    return () => {}; // phones have them for installed pages only
  }
}

/** Ring until what is returned is called; `name` is one of incoming and outgoing. */
export function ring(name) {
  const { notes, sound, turn } = TONES[name];
  const context = audioContext();
  const volume = context.createGain();
  volume.connect(context.destination);
  const play = () => {
    if (context.state !== "running") return; // until the user has clicked somewhere
    notes.forEach((frequency, i) => {
      const begin = context.currentTime + i * sound;
      const tone = new OscillatorNode(context, { frequency });
      const shape = new GainNode(context, { gain: 0 });
      shape.gain.linearRampToValueAtTime(0, begin);
      shape.gain.linearRampToValueAtTime(0.12, begin + 0.02);
      shape.gain.setValueAtTime(0.12, begin + sound - 0.03);
      shape.gain.linearRampToValueAtTime(0, begin + sound);
      tone.connect(shape).connect(volume);
      tone.start(begin);
      tone.stop(begin + sound);
    });
  };
  play();
  const timer = setInterval(play, turn * 1000);
  return () => {
    clearInterval(timer);
    volume.disconnect();
  };
}
