/**
 * Files, off the page's thread: hashing what is sent, and writing down what comes.
 *
 * What comes goes into the browser's own file system for this site, where no other program sees it until the user saves
 * it; where there is none (a page without TLS), into memory.  Each message `{id, op, ...}` is answered with
 * `{id, result}` or `{id, error}`.
 */

import { Sha256 } from "./sha256.js";

const READ = 4_194_304;

/** What is on its way: name → {handle, access, parts, hash, size}. */
const sinks = new Map();

async function folder() {
  const root = await navigator.storage.getDirectory();
  return root.getDirectoryHandle("wecompany-files", { create: true });
}

async function hashFile({ file }) {
  const hash = new Sha256();
  for (let at = 0; at < file.size; at += READ) {
    hash.update(new Uint8Array(await file.slice(at, at + READ).arrayBuffer()));
  }
  return hash.digest();
}

async function openSink(name, size) {
  const sink = { hash: new Sha256(), size: 0, parts: [], handle: null, access: null };
  try {
    sink.handle = await (await folder()).getFileHandle(name, { create: true });
    sink.access = await sink.handle.createSyncAccessHandle();
  } catch {
    return sink; // in memory then
  }
  const kept = await sink.access.getSize();
  if (kept > size) {
    await sink.access.truncate(0);
    return sink;
  }
  const block = new Uint8Array(READ);
  while (sink.size < kept) {
    const read = sink.access.read(block, { at: sink.size });
    sink.hash.update(block.subarray(0, read));
    sink.size += read;
  }
  return sink;
}

const handlers = {
  hash: hashFile,

  /** Begin with a file, or go on with what came of it earlier; returns how much that is. */
  async open({ name, size }) {
    if (!sinks.has(name)) sinks.set(name, await openSink(name, size));
    return sinks.get(name).size;
  },

  async write({ name, bytes }) {
    const sink = sinks.get(name);
    if (sink.access === null) sink.parts.push(new Blob([bytes])); // a Blob need not be in memory
    else if (sink.access.write(bytes, { at: sink.size }) !== bytes.length) throw new Error("no space");
    sink.hash.update(bytes);
    sink.size += bytes.length;
    return sink.size;
  },

  /** Return the whole file and its hash. */
  async finish({ name }) {
    const sink = sinks.get(name);
    sinks.delete(name);
    sink.access?.flush();
    sink.access?.close();
    const file = sink.access === null ? new Blob(sink.parts) : await sink.handle.getFile();
    return { sha256: sink.hash.digest(), file };
  },

  /** Return a file that was finished earlier, or null. */
  async read({ name }) {
    try {
      return await (await (await folder()).getFileHandle(name)).getFile();
    } catch {
      return null;
    }
  },

  async remove({ name }) {
    sinks.get(name)?.access?.close();
    sinks.delete(name);
    await (await folder()).removeEntry(name).catch(() => {});
  },

  /** Remove every file whose name begins so. */
  async clear({ prefix }) {
    const files = await folder();
    for await (const name of files.keys()) if (name.startsWith(prefix)) await handlers.remove({ name });
  },
};

/** One thing after the other: a chunk has to be written before the next. */
let work = Promise.resolve();

onmessage = ({ data }) => {
  work = work.then(async () => {
    try {
      postMessage({ id: data.id, result: await handlers[data.op](data) });
    } catch (error) {
      postMessage({ id: data.id, error: String(error?.message ?? error) });
    }
  });
};
