// Requests to the lab, over HTTP or to a worker. Arrays travel as float32 in base64, which is exact.

export function pack(numbers) {
  const bytes = new Uint8Array(Float32Array.from(numbers).buffer);
  let text = "";
  for (let start = 0; start < bytes.length; start += 8192) {
    text += String.fromCharCode(...bytes.subarray(start, start + 8192));
  }
  return btoa(text);
}

function unpack(value) {
  if (Array.isArray(value)) return value.map(unpack);
  if (value === null || typeof value !== "object") return value;
  if (typeof value.float32 === "string") {
    const text = atob(value.float32);
    const bytes = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n++) bytes[n] = text.charCodeAt(n);
    return { shape: value.shape, data: new Float32Array(bytes.buffer) };
  }
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, unpack(each)]));
}

// --- the served lab ---------------------------------------------------------------------------------------------------

const token = location.hash.slice(1);

async function overHttp(name, request) {
  let response;
  try {
    response = await fetch(`api/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Lab-Token": token },
      body: JSON.stringify(request),
    });
  } catch {
    throw new Error("the lab does not answer: start `minivit lab` again");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// --- the lab in this browser: Python runs in a worker ------------------------------------------------------------------

const inside = document.querySelector("meta[name='lab']")?.content === "worker";
const worker = inside ? new Worker("worker.js", { type: "module" }) : null;
const waiting = new Map();
let count = 0;

if (worker) {
  worker.onmessage = ({ data: { id, answer } }) => {
    const { done, failed } = waiting.get(id);
    waiting.delete(id);
    const parsed = JSON.parse(answer);
    if (parsed.error) failed(new Error(parsed.error));
    else done(parsed);
  };
}

const byMessage = (name, request) => new Promise((done, failed) => {
  waiting.set(++count, { done, failed });
  worker.postMessage({ id: count, name, request: JSON.stringify(request) });
});

export async function call(name, request = {}) {
  return unpack(await (worker ? byMessage : overHttp)(name, request));
}
