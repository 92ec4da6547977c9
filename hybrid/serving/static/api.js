// The server: requests, streams of events, and what its failures mean in words.
const keyPlace = "hybrid.key";

export class Failure extends Error {
  constructor(words, status = 0) {
    super(words);
    this.status = status;
  }
}

export const key = {
  get: () => {
    try {
      return sessionStorage.getItem(keyPlace) ?? "";
    } catch {
      return key.kept;
    }
  },
  set: (value) => {
    key.kept = value;
    try {
      sessionStorage.setItem(keyPlace, value);
    } catch {
      // storage is switched off: it holds until the page is left
    }
  },
  kept: "",
};

export const request = async (path, { body, signal } = {}) => {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. It may have been stopped; what you wrote is kept.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Failure(inWords(response, told?.error?.message), response.status);
};

const inWords = (response, message) => {
  const wait = response.headers.get("Retry-After");
  switch (response.status) {
    case 401:
      return key.get() ? "The server does not accept this API key." : "This server asks for an API key.";
    case 413:
      return message ?? "This is more text than the server takes at once.";
    case 429:
      return `The server has no room for another request now.${wait ? ` Try again in ${wait} s.` : " Try again soon."}`;
    case 503:
      return message ? `The server takes no requests now: ${message}.` : "The server takes no requests now.";
    default:
      return message ?? `The server answered with status ${response.status}.`;
  }
};

// The events of a stream, as { event, data } with data as text. Comments keep the connection open and are left out.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const found = parse(part);
        if (found) yield found;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The connection to the server broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

const parse = (part) => {
  let event = "message";
  const data = [];
  for (const line of part.split(/\r?\n/)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    else if (line.startsWith("event:")) event = line.slice(6).trim();
  }
  return data.length ? { event, data: data.join("\n") } : null;
};

// What a model writes: pieces of text, then { usage, finish }. The request ends where the signal is given.
export async function* generated(kind, body, signal) {
  const path = kind === "chat" ? "/v1/chat/completions" : "/v1/completions";
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request(path, { body: asked, signal });
  let finish = null;
  let usage = null;
  for await (const { data } of events(response)) {
    if (data === "[DONE]") {
      yield { usage, finish };
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(chunk.error.message);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices?.[0];
    finish = choice?.finish_reason ?? finish;
    const text = kind === "chat" ? choice?.delta?.content : choice?.text;
    if (text) yield { text };
  }
  throw new Failure("The connection to the server broke before the answer was complete.");
}
