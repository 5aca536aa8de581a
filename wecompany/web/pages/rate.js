/** How much video is sent: as much as the other side gets, a little more when all is well, less when it is not. */

/** Bits a second: at first, at least and at most. */
export const BITRATE = { first: 600_000, least: 80_000, most: 1_500_000 };

/** The part of what was sent that may be lost before less is sent, and by how much less. */
const MAX_LOSS = 0.03;
const LESS = 0.75;
const MORE = 1.08;

/** Milliseconds that frames may be later than the earliest one was before less is sent. */
const MAX_LATE = 150;

/** Milliseconds for a change to show at the other side before the next one. */
const SETTLE = 2_000;

export class RateController {
  #changedAt = -Infinity;

  constructor(now) {
    this.now = now;
    this.bitrate = BITRATE.first;
  }

  /**
   * Take what the other side says.
   *
   * @param lost the part of the frames that did not arrive, 0 to 1
   * @param late milliseconds that frames are later than the earliest was: what waits on the way
   * @param isLimited whether our own encoder gives less than it might, so that more would mean nothing
   */
  report(lost, late, isLimited = false) {
    if (lost > MAX_LOSS || late > MAX_LATE) this.#change(LESS);
    else if (!isLimited) this.#change(MORE, SETTLE / 2);
  }

  /** Our own network does not take what we send. */
  congested() {
    this.#change(LESS);
  }

  #change(factor, settle = SETTLE) {
    const now = this.now();
    if (now - this.#changedAt < settle) return;
    this.#changedAt = now;
    this.bitrate = Math.round(Math.min(BITRATE.most, Math.max(BITRATE.least, this.bitrate * factor)));
  }
}
