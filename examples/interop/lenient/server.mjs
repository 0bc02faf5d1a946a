// A FHIR server that is lenient: npm @asymmetrik/node-fhir-server-core over Express, with the data below in memory.
// Routing, query strings, bodies, ETags and errors are those packages' own, at their defaults; method-override, a
// dependency of the server's, is switched on as its readme shows. This file is only the store that the server asks
// its embedder for: it knows five resources, and searches as R4 says, a comma being OR.
//
// It authenticates nobody. Each request goes to the log before anything else sees it, a JSON line each: that is
// how the checks see what reached it.
//
// usage: node server.mjs SOCKET LOG
import { appendFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
process.env.NODE_ENV = 'production';
const express = require('express');
const methodOverride = require('method-override');
const { initialize, loggers, resolveSchema } = require('@asymmetrik/node-fhir-server-core');

const [socket, log] = process.argv.slice(2);
const meta = { versionId: '1', lastUpdated: '2025-01-01T00:00:00Z' };
const about = (id) => ({ reference: `Patient/${id}` });
const store = new Map();
const put = (r) => store.set(`${r.resourceType}/${r.id}`, { ...r, meta });
put({ resourceType: 'Patient', id: 'example', name: [{ family: 'Chalmers' }] });
put({ resourceType: 'Patient', id: 'other', name: [{ family: 'Windsor' }] });
for (const [id, of] of [['mine', 'example'], ['theirs', 'other']]) {
  put({ resourceType: 'Observation', id, status: 'final', code: { text: 'heart rate' }, subject: about(of) });
}
put({ resourceType: 'Account', id: 'mine', status: 'active', subject: [about('example')] });

// any tells whether one of the values that a comma separates is meant.
const any = (asked, is) => [asked].flat().every((v) => String(v).split(',').some(is));
const subject = (r) => [r.subject].flat()[0]?.reference;

function service(resourceType) {
  const named = (args) => store.get(`${resourceType}/${args.id}`);
  return {
    searchById: async (args) => named(args),
    searchByVersionId: async (args) => named(args),
    search: async (args, { req }) => {
      const q = req.method === 'POST' ? { ...req.query, ...req.body } : req.query;
      const found = [...store.values()].filter((r) => r.resourceType === resourceType &&
        Object.entries(q).every(([name, asked]) => {
          switch (name.split(':')[0]) {
            case '_id':
              return any(asked, (v) => r.id === v);
            case 'patient':
            case 'subject':
              return any(asked, (v) => subject(r) === v || subject(r) === `Patient/${v}`);
            default: // R4 search.html#errors: what a server does not know it should ignore
              return true;
          }
        }));
      const Bundle = resolveSchema('4_0_1', 'bundle');
      return new Bundle({ type: 'searchset', total: found.length, entry: found.map((resource) => ({ resource })) });
    },
    create: async (_, { req }) => {
      put({ ...req.body, resourceType, id: 'made' });
      return { id: 'made', resource_version: '1' };
    },
    update: async (args, { req }) => {
      put({ ...req.body, resourceType, id: args.id });
      return { id: args.id, created: false, resource_version: '2' };
    },
    remove: async (args) => ({ deleted: store.delete(`${resourceType}/${args.id}`) ? '1' : '0' }),
  };
}

const app = express();
for (const name of ['X-HTTP-Method-Override', 'X-HTTP-Method', 'X-Method-Override', '_method']) {
  app.use(methodOverride(name, { methods: ['GET', 'POST'] }));
}
const profiles = {};
for (const type of ['Patient', 'Observation', 'Account']) {
  profiles[type] = { service: service(type), versions: ['4_0_1'], baseUrls: ['/'] };
}
loggers.container.add('default', { transports: [new loggers.transports.Console({ silent: true })] });
initialize({ profiles, logging: { level: 'error' } }, app);

const server = createServer((req, res) => {
  const { authorization, ...headers } = req.headersDistinct;
  appendFileSync(log, `${JSON.stringify({ method: req.method, url: req.url, headers, authorized: Boolean(authorization) })}\n`, { mode: 0o600 });
  app(req, res);
});
server.listen(socket, () => console.log(`ready ${store.size}`));
