/** How much video is sent: as much as the other side gets, a little more when all is well, less when it is not. */

/** Bits a second: at first, at least and at most. */
export const BITRATE = { first: 500_000, least: 60_000, most: 1_500_000 };

/** The part of the frames that may be lost, and milliseconds that they may be late, before less is sent. */
const MAX_LOSS = 0.03;
const MAX_LATE = 150;

/** Milliseconds of lateness with which nothing is sent at all, until what waits on the way has got through. */
const MUCH_TOO_LATE = 600;

/** By how much less and more is sent; of what arrives at most so much is sent when less has to be. */
const LESS = 0.8;
const MORE = 1.1;
const OF_ARRIVED = 0.75;

/** How much more than what arrives may be sent: an encoder that needs little says nothing of a network. */
const BEYOND = 1.5;

/** Milliseconds for a change to show at the other side before the next one. */
const SETTLE = { less: 1_500, more: 900 };

export class RateController {
  #changedAt = -Infinity;

  constructor(now) {
    this.now = now;
    this.bitrate = BITRATE.first;
    /** Whether so much waits on the way that nothing should be added. */
    this.isDraining = false;
  }

  /**
   * Take what the other side says.
   *
   * @param lost the part of the frames that did not arrive, 0 to 1
   * @param late milliseconds that frames are later than the earliest was: what waits on the way
   * @param arrived bits a second that came
   */
  report(lost, late, arrived = Infinity) {
    this.isDraining = late > MUCH_TOO_LATE;
    if (lost > MAX_LOSS || late > MAX_LATE) {
      this.#change(Math.min(this.bitrate * LESS, arrived * OF_ARRIVED), SETTLE.less);
    } else {
      this.#change(Math.max(this.bitrate, Math.min(this.bitrate * MORE, arrived * BEYOND)), SETTLE.more);
    }
  }

  /** Our own network does not take what we send. */
  congested() {
    this.#change(this.bitrate * LESS, SETTLE.less);
  }

  #change(bitrate, settle) {
    const now = this.now();
    if (now - this.#changedAt < settle) return;
    this.#changedAt = now;
    this.bitrate = Math.round(Math.min(BITRATE.most, Math.max(BITRATE.least, bitrate)));
  }
}
