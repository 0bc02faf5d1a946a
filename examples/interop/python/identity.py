"""A workload that asks who it is: PyPI's spiffe package, unmodified, on the SPIFFE Workload API.

It finds the socket by SPIFFE_ENDPOINT_SOCKET, fetches its X.509-SVID and the bundles, and verifies the chain from its
certificate to the bundle with the cryptography package. It writes one JSON object.

usage: python3 -IS identity.py SITE-PACKAGES
"""

import json
import sys

sys.path.insert(0, sys.argv[1])  # before what the machine has of the same names

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.x509.verification import PolicyBuilder, Store  # noqa: E402
from spiffe import TrustDomain, WorkloadApiClient  # noqa: E402


def public_bytes(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def main():
    with WorkloadApiClient() as client:
        svid = client.fetch_x509_svid(timeout=10)
        bundles = client.fetch_x509_bundles(timeout=10)
        context = client.fetch_x509_context(timeout=10)
    domain = TrustDomain(svid.spiffe_id.trust_domain.name)
    roots = bundles.get_bundle_for_trust_domain(domain).x509_authorities
    verifier = PolicyBuilder().store(Store(list(roots))).build_client_verifier()
    verified = verifier.verify(svid.leaf, svid.cert_chain[1:])
    json.dump({
        "id": str(svid.spiffe_id),
        "uri_sans": [n.value for n in verified.subjects if isinstance(n, x509.UniformResourceIdentifier)],
        "chain": len(verified.chain),
        "key_matches": public_bytes(svid.private_key.public_key()) == public_bytes(svid.leaf.public_key()),
        "domains": sorted(b.trust_domain.name for b in bundles.bundles),
        "roots": len(roots),
        "context_id": str(context.default_svid.spiffe_id),
    }, sys.stdout)


if __name__ == "__main__":
    try:
        main()
    except Exception as err:  # the check wants the library's own words
        json.dump({"error": f"{type(err).__name__}: {err}"}, sys.stdout)
