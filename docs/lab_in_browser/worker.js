// The worker of the lab in the browser: loads Python, NumPy and minivit, each file checked against its hash, and
// answers the page's requests in the order in which they come.

import { FILES } from "./files.js";

const now = { ready: false, progress: "loading Python", failure: "", site: "../" };
let answer = null;

// the only addresses that are ever requested, each with the hash of what must be there
const plainFetch = self.fetch.bind(self);
const begun = new Map();

async function checked(name) {
  const file = FILES[name];
  if (!file) throw new Error(`${name} is no file of the lab`);
  let response;
  try {
    response = await plainFetch(new URL(file.url, import.meta.url), { integrity: file.integrity, credentials: "omit" });
  } catch {
    throw new Error(`${name} cannot be loaded, or is not the file that it should be`);
  }
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

self.fetch = target => {
  const name = String(target.url ?? target).split("/").pop();
  const response = begun.get(name) ?? checked(name);
  begun.delete(name);
  return response;
};

async function imported(name) {
  const source = await (await fetch(name)).blob();
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try {
    return await import(address);
  } finally {
    URL.revokeObjectURL(address);
  }
}

async function load() {
  for (const name of Object.keys(FILES)) begun.set(name, checked(name)); // all downloads together
  const refused = Promise.race([...begun.values()].map(response => new Promise((_, fail) => response.catch(fail))));
  await Promise.race([refused, python()]); // Pyodide waits forever for a file that is refused
}

async function python() {
  await imported("pyodide.asm.js");
  const { loadPyodide } = await imported("pyodide.mjs");
  const pyodide = await loadPyodide({ indexURL: new URL("pyodide/", import.meta.url).href });
  now.progress = "loading NumPy";
  // not loadPackage, which compiles every extension module of NumPy, also those that nothing imports
  const packages = pyodide.runPython("import sysconfig; sysconfig.get_path('purelib')");
  const unpack = async (name, extractDir) =>
    pyodide.unpackArchive(await (await fetch(name)).arrayBuffer(), "zip", { extractDir });
  await unpack(Object.keys(FILES).find(name => name.startsWith("numpy-")), packages);
  if (FILES["numpy_bytecode.zip"]) await unpack("numpy_bytecode.zip", packages);
  now.progress = "loading the model";
  await unpack("minivit.zip", "/lab");
  pyodide.FS.writeFile("/lab/model.npz", new Uint8Array(await (await fetch("model.npz")).arrayBuffer()));
  pyodide.runPython("import sys; sys.path.insert(0, '/lab')");
  const browser = pyodide.pyimport("minivit.lab.browser");
  browser.start("/lab/model.npz");
  answer = browser.answer;
  now.ready = true;
}

self.onmessage = ({ data: { id, name, request } }) => {
  let text;
  if (name === "state") text = JSON.stringify(now);
  else if (answer === null) text = JSON.stringify({ error: now.failure || `the lab is not ready: ${now.progress}` });
  else text = answer(name, request);
  self.postMessage({ id, answer: text });
};

load().catch(error => {
  now.failure = `the lab did not start in this browser: ${error.message}`;
});
