/** SHA-256 (FIPS 180-4) piece by piece: the browser's own wants all of a file at once, and a secure page. */

const BLOCK = 64;

const isPrime = (n) => {
  for (let divisor = 2; divisor * divisor <= n; divisor += 1) if (n % divisor === 0) return false;
  return true;
};

/** The first `count` primes, and the first 32 bits of the fractional part of a root of each. */
function rootFractions(count, power) {
  const fractions = new Int32Array(count);
  for (let n = 2, found = 0; found < count; n += 1) {
    if (!isPrime(n)) continue;
    const root = n ** power;
    fractions[found] = ((root - Math.floor(root)) * 2 ** 32) | 0;
    found += 1;
  }
  return fractions;
}

const K = rootFractions(64, 1 / 3);
const START = rootFractions(8, 1 / 2);

export class Sha256 {
  #state = START.slice();
  #schedule = new Int32Array(64);
  #rest = new Uint8Array(BLOCK);
  #size = 0;

  /** Take the next bytes. */
  update(bytes) {
    let at = 0;
    const held = this.#size % BLOCK;
    this.#size += bytes.length;
    if (held > 0) {
      at = Math.min(BLOCK - held, bytes.length);
      this.#rest.set(bytes.subarray(0, at), held);
      if (held + at < BLOCK) return;
      this.#compress(this.#rest, 0);
    }
    for (; at + BLOCK <= bytes.length; at += BLOCK) this.#compress(bytes, at);
    this.#rest.set(bytes.subarray(at));
  }

  /** Return the 32 bytes; nothing may be added after that. */
  digest() {
    const size = this.#size;
    const held = size % BLOCK;
    const padding = new Uint8Array((held < 56 ? 56 : 120) - held + 8);
    padding[0] = 0x80;
    new DataView(padding.buffer).setBigUint64(padding.length - 8, BigInt(size) * 8n);
    this.update(padding);
    const digest = new Uint8Array(32);
    const view = new DataView(digest.buffer);
    this.#state.forEach((word, i) => view.setInt32(i * 4, word));
    return digest;
  }

  #compress(bytes, at) {
    const w = this.#schedule;
    const s = this.#state;
    for (let i = 0, p = at; i < 16; i += 1, p += 4) {
      w[i] = bytes[p] << 24 | bytes[p + 1] << 16 | bytes[p + 2] << 8 | bytes[p + 3];
    }
    for (let i = 16; i < 64; i += 1) {
      const x = w[i - 15];
      const y = w[i - 2];
      const s0 = (x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3;
      const s1 = (y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10;
      w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
    }
    let [a, b, c, d, e, f, g, h] = s;
    for (let i = 0; i < 64; i += 1) {
      const s1 = (e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7);
      const t1 = (h + s1 + (e & f ^ ~e & g) + K[i] + w[i]) | 0;
      const s0 = (a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10);
      const t2 = (s0 + (a & b ^ a & c ^ b & c)) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    s[0] += a;
    s[1] += b;
    s[2] += c;
    s[3] += d;
    s[4] += e;
    s[5] += f;
    s[6] += g;
    s[7] += h;
  }
}
