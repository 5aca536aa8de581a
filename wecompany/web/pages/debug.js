/**
 * `window.wecompany`: what the page measures, for tests and for whoever wants to know.  Reading it changes nothing.
 *
 *     wecompany.stats()  →  {
 *       user, isOnline, roundTrip (ms to the server), registrations (connections so far), waiting (texts unsent),
 *       call: null or {
 *         id, peer, state, isVideo, seconds,
 *         sent:     {audio, video, keys, bytes, skipped: pictures left out for want of room, width, height, bitrate},
 *         received: {audio, audioLost, video, videoLost} frames,
 *         decoded:  {audio, video} frames,    shown: pictures,
 *         delay:    ms from capture to display, median; right where both clocks are the same, as on one machine,
 *         late:     ms that frames wait on the way,
 *         sound:    {depth, target (ms), played (samples), dry, skipped, filled, level (0 to 1)},
 *         peak:     {frequency (Hz), level (dB)} of the loudest tone that is heard,
 *         roundTrip (ms to the other side), loss (0 to 1), size {width, height}, rate (pictures shown a second)
 *       },
 *       lastCall: the same of the call before, as it was at its end
 *     }
 */
export function expose(getState) {
  let lastCall = null;
  const ofCall = (call) => call && {
    id: call.id, peer: call.peer, state: call.state, isVideo: call.isVideo,
    seconds: call.startedAt === null ? 0 : (Date.now() - call.startedAt) / 1000, ...call.media?.stats(),
  };
  const stats = () => {
    const { session, calls, texts } = getState() ?? {};
    return {
      user: session?.user ?? null, isOnline: session?.isOnline ?? false, roundTrip: session?.roundTrip ?? null,
      registrations: session?.registrations ?? 0, waiting: texts?.waiting ?? 0,
      call: ofCall(calls?.current ?? null), lastCall,
    };
  };
  window.wecompany = Object.freeze({ stats });
  return (call) => (lastCall = ofCall(call));
}
