// An application under load: eight loops of plain fetch, without a pause, through reads, searches, writes and calls
// that policy refuses. For each answer it writes the decision's id as soon as the head of the reply is there, before
// the body: from then on the call counts as answered. When the connection fails it tries again.
//
// usage: node load.mjs BASE, the access token on stdin
import { text } from 'node:stream/consumers';
import { setTimeout as pause } from 'node:timers/promises';

const base = process.argv[2];
const token = await text(process.stdin);
const observation = JSON.stringify({
  resourceType: 'Observation', status: 'final', subject: { reference: 'Patient/example' },
  code: { coding: [{ system: 'http://loinc.org', code: '8867-4' }] }, valueQuantity: { value: 61, unit: '/min' },
});
const calls = [
  ['GET', '/Patient/example'],
  ['GET', '/Condition?patient=Patient/example&_count=3'],
  ['POST', '/Observation', observation],
  ['DELETE', '/Patient/pat2'],
];

async function loop(n) {
  for (let i = n; ; i++) {
    const [method, path, body] = calls[i % calls.length];
    const headers = { authorization: `Bearer ${token}`, ...(body && { 'content-type': 'application/fhir+json' }) };
    try {
      const res = await fetch(base + path, { method, headers, body });
      console.log(`${res.headers.get('ward-decision')} ${res.status}`);
      await res.arrayBuffer();
    } catch {
      await pause(20);
    }
  }
}
for (let n = 0; n < 8; n++) {
  loop(n);
}
