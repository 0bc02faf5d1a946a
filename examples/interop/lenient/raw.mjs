// A client that has no idea of HTTP: it writes bytes to a Unix socket and says what came back.
//
// It reads {socket, requests: [base64]} from stdin, opens a connection for each, and writes a JSON line for each:
// {reply: base64}. A connection ends when the other side ends it, or when that has said nothing for QUIET ms after its
// first words.
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';

const QUIET = 300;
const LONGEST = 15_000;
const { socket, requests } = JSON.parse(await text(process.stdin));
for (const request of requests) {
  const chunks = [];
  await new Promise((resolve) => {
    const c = connect(socket, () => c.write(Buffer.from(request, 'base64')));
    c.setTimeout(LONGEST, () => c.destroy());
    c.on('data', (chunk) => {
      chunks.push(chunk);
      c.setTimeout(QUIET);
    });
    c.on('error', () => {}); // a reset after the answer is an end like any other
    c.on('close', resolve);
  });
  console.log(JSON.stringify({ reply: Buffer.concat(chunks).toString('base64') }));
}
