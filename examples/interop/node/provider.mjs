// An OpenID Provider: npm oidc-provider, configured as a clinic's would be.
//
// Access tokens for a resource (RFC 8707) are RFC 9068 JWTs with SMART scopes and the user's facts; without a
// resource they are opaque. People sign in with the provider's own development forms. The key is made at each start,
// so that a restart is a key roll-over.
//
// usage: node provider.mjs ISSUER
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import Provider, { errors } from 'oidc-provider';

const issuer = process.argv[2];
const clinic = JSON.parse(readFileSync(new URL('clinic.json', import.meta.url), 'utf8'));
const scopes = [...new Set(Object.values(clinic.clients).flatMap((c) => c.scope.split(' ')))];

const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const key = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256', kid: `key-${process.pid}-${Date.now()}` };

const provider = new Provider(issuer, {
  jwks: { keys: [key] },
  scopes,
  cookies: { keys: [crypto.randomUUID()] },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clients: Object.entries(clinic.clients).map(([client_id, c]) => ({
    client_id,
    client_secret: c.secret,
    scope: c.scope,
    grant_types: c.grants,
    response_types: c.grants.includes('authorization_code') ? ['code'] : [],
    redirect_uris: c.grants.includes('authorization_code') ? [`http://127.0.0.1/${client_id}/callback`] : [],
  })),
  pkce: { required: () => true },
  async findAccount(_ctx, sub) {
    return clinic.users[sub] && { accountId: sub, claims: async () => ({ sub }) };
  },
  // What Ward reads about the user (SMART App Launch 2: fhirUser, patient).
  async extraTokenClaims(_ctx, token) {
    return token.accountId ? clinic.users[token.accountId] : undefined;
  },
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo(_ctx, resource, client) {
        if (resource !== clinic.audience && resource !== clinic.elsewhere) {
          throw new errors.InvalidTarget();
        }
        return {
          scope: scopes.filter((s) => s !== 'openid').join(' '),
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: clinic.clients[client.clientId].lifetime ?? 600,
          jwt: { sign: { alg: 'ES256' } },
        };
      },
    },
  },
});

const { hostname, port } = new URL(issuer);
provider.listen(Number(port), hostname, () => console.log(`ready ${key.kid}`));
