// Requests to the server, and the events of a streamed reply.

/** What went wrong; `status` is that of HTTP, 0 where there was no reply. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const headers = (key) => (key ? { authorization: `Bearer ${key}` } : {});

async function reply(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not the server's own error: the number has to do
  }
  const again = response.headers.get("retry-after");
  throw new Failure(again ? `${message} Try again in ${again} s.` : message, response.status);
}

/** The object at a path. */
export async function read(path, key) {
  return (await reply(path, { headers: headers(key) })).json();
}

/** The objects of a streamed reply to a body, one by one; ends with the reply's [DONE]. */
export async function* stream(path, body, key, signal) {
  const response = await reply(path, {
    method: "POST", headers: { "content-type": "application/json", ...headers(key) }, body: JSON.stringify(body), signal,
  });
  let rest = "";
  for await (const text of texts(response.body)) {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue; // comments that keep the connection alive, and empty lines
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(event.error.message);
      yield event;
    }
  }
  throw new Failure("The stream broke off before its end.");
}

async function* texts(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {}); // it may have ended already
  }
}
