// An application: npm fhir-kit-client, unmodified. It knows one URL and the user's access token, and nothing of Ward.
//
// It reads {base, token, calls: [{method, ...arguments}]} from stdin and writes, a JSON line per call, what the
// library gave it.
import { Client } from 'fhir-kit-client';
import { text } from 'node:stream/consumers';

const { base, token, calls } = JSON.parse(await text(process.stdin));
const client = new Client({ baseUrl: base, ...(token && { bearerToken: token }) });
for (const { method, ...args } of calls) {
  const line = {};
  try {
    const got = method === 'capabilityStatement' ? await client.capabilityStatement(args.options) : await client[method](args);
    const { response } = Client.httpFor(got);
    Object.assign(line, { status: response.status, headers: Object.fromEntries(response.headers), body: got });
  } catch (err) {
    if (err.response) {
      Object.assign(line, { status: err.response.status, headers: Object.fromEntries(err.config.headers), body: err.response.data });
    } else {
      line.error = `${err.message}${err.cause ? `: ${err.cause.message}` : ''}`;
    }
  }
  console.log(JSON.stringify(line));
}
