package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// ours reports whether an address is one that Ward gives to a service.
func (x *examination) ours(a netip.Addr) bool {
	m := x.cfg.Mesh
	return m.Range.IsValid() && m.Range.Contains(a) || m.Listen.IsValid() && m.Listen.Addr() == a
}

// asked is the mesh name that is looked up: any service's is as good.
func (x *examination) asked() (string, bool) {
	if !x.cfg.Mesh.DNS.IsValid() || x.cfg.Mesh.Zone == "" || len(x.cfg.Services) == 0 {
		return "", false
	}
	return x.cfg.Services[0].Name, true
}

func responder(ctx context.Context, x *examination) []Finding {
	name, ok := x.asked()
	if !ok {
		return nil // applications use sockets or a proxy variable
	}
	server := x.cfg.Mesh.DNS
	addrs, err := x.host.Ask(ctx, server, name)
	switch {
	case err != nil:
		return []Finding{warn("nobody answers DNS on "+server.String(), "mesh names do not resolve on this host; applications reach services by socket only",
			"systemctl start ward-mesh, or write mesh: {dns: \"\"} where names are not used")}
	case len(addrs) == 0:
		return []Finding{fail(fmt.Sprintf("the DNS server on %s does not know %s", server, name), "it is not Ward's, or Ward runs another config; applications do not find the service",
			"ss -lunp 'sport = :"+fmt.Sprint(server.Port())+"' shows who it is; systemctl restart ward-mesh")}
	case !all(addrs, x.ours):
		return []Finding{fail(fmt.Sprintf("the DNS server on %s answers %s with %s, which is not Ward's", server, name, list(addrs)), "somebody else answers there, and applications send their calls to them in plain text",
			"ss -lunp 'sport = :"+fmt.Sprint(server.Port())+"' shows who it is; end it, then: systemctl restart ward-mesh")}
	}
	return nil
}

func resolver(ctx context.Context, x *examination) []Finding {
	name, ok := x.asked()
	if !ok {
		return nil
	}
	addrs, err := x.host.Resolve(ctx, name)
	switch {
	case err != nil || len(addrs) == 0:
		return []Finding{warn("this host's resolver does not know "+name, "applications that use mesh names get no answer",
			"set mesh.resolver to auto and restart ward-mesh, or send the zone "+x.cfg.Mesh.Zone+" to "+x.cfg.Mesh.DNS.String()+" in the resolver's own config")}
	case !all(addrs, x.ours):
		return []Finding{fail(fmt.Sprintf("this host's resolver answers %s with %s, which is not Ward's", name, list(addrs)), "applications send their calls past Ward, in plain text",
			"getent hosts "+name+"; remove the name from /etc/hosts and from the site's DNS, or send the zone "+x.cfg.Mesh.Zone+" to "+x.cfg.Mesh.DNS.String())}
	}
	return nil
}

func all(addrs []netip.Addr, is func(netip.Addr) bool) bool {
	return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !is(a) })
}

func list(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return some(out)
}
