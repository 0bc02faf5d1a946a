package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/wardmesh/ward/agent/admin"
)

// Host is where the checks look. All of it can be replaced; [ThisHost] is the real one, and every function must be
// set.
type Host struct {
	Root string // the folder that config's absolute paths begin at: "/"
	Proc string // "/proc"
	UID  int    // who is looking
	Now  func() time.Time

	Kernel  func() Kernel
	Sockets func() ([]Socket, error) // TCP, of this network namespace
	Clock   func() (Clock, error)
	Space   func(path string) (Space, error)

	// Get reads a document of an admin socket into v; see admin.Get.
	Get func(ctx context.Context, socket, doc string, v any) error
	// Ask asks one DNS server for the IPv4 addresses of a name, Resolve the resolver that applications use. No
	// address and no error means that there is no such name.
	Ask     func(ctx context.Context, server netip.AddrPort, name string) ([]netip.Addr, error)
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// Date is the time that an HTTP server says it is.
	Date func(ctx context.Context, url, caFile string) (time.Time, error)
}

// Clock is what the kernel says of its own clock (adjtimex(2)).
type Clock struct {
	Synced   bool
	MaxError time.Duration
}

// Space is what is left of a filesystem.
type Space struct {
	Device            uint64
	Free              int64 // bytes, to an ordinary user
	Inodes, InodeFree uint64
}

// ThisHost is the host on which this process runs.
func ThisHost() Host {
	return Host{Root: "/", Proc: "/proc", UID: os.Geteuid(), Now: time.Now, Kernel: probeKernel,
		Sockets: func() ([]Socket, error) { return readSockets("/proc") }, Clock: readClock, Space: readSpace,
		Get: admin.Get, Ask: askDNS, Resolve: resolveName, Date: readDate}
}

// in is the place of one of config's paths.
func (h Host) in(path string) string {
	if h.Root == "/" || h.Root == "" {
		return path
	}
	return filepath.Join(h.Root, path)
}

func readClock() (Clock, error) {
	var t unix.Timex // Modes 0: nothing is set
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return Clock{}, os.NewSyscallError("adjtimex", err)
	}
	return Clock{Synced: state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0,
		MaxError: time.Duration(t.Maxerror) * time.Microsecond}, nil
}

func readSpace(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	var at unix.Stat_t
	if err := unix.Stat(path, &at); err != nil {
		return Space{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return Space{Device: at.Dev, Free: int64(st.Bavail) * st.Bsize, Inodes: st.Files, InodeFree: st.Ffree}, nil //nolint:gosec // bytes of a disk fit
}

func askDNS(ctx context.Context, server netip.AddrPort, name string) ([]netip.Addr, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	r, _, err := (&dns.Client{Timeout: 2 * time.Second}).ExchangeContext(ctx, q, server.String())
	if err != nil {
		return nil, err
	}
	switch r.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	default:
		return nil, fmt.Errorf("it answers %s", dns.RcodeToString[r.Rcode])
	}
	var addrs []netip.Addr
	for _, rr := range r.Answer {
		if a, ok := rr.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs, nil
}

func resolveName(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", name+".")
	if gone, ok := errors.AsType[*net.DNSError](err); ok && gone.IsNotFound {
		return nil, nil
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// readDate asks for the headers alone, follows no redirect, and verifies TLS: whoever else could answer would be
// telling the time.
func readDate(ctx context.Context, url, caFile string) (time.Time, error) {
	var roots *x509.CertPool // the system's
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return time.Time{}, err
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(pem) {
			return time.Time{}, fmt.Errorf("%s holds no certificate", caFile)
		}
	}
	client := &http.Client{Timeout: checkTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return time.Time{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return time.Time{}, err
	}
	_ = resp.Body.Close()
	return http.ParseTime(resp.Header.Get("Date")) // RFC 9110 §6.6.1
}
