package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Kernel is what the running kernel can do. Features are tried, since distributions carry them into older versions.
type Kernel struct {
	Release  string `json:"release"`
	PeerPin  bool   `json:"peer_pin"`  // SO_PEERPIDFD: the peer of a Unix socket is pinned by the kernel
	Pidfs    bool   `json:"pidfs"`     // a pidfd has an inode of its own
	PidInfo  bool   `json:"pid_info"`  // PIDFD_GET_INFO: the pidfd itself says who it is
	Landlock int    `json:"landlock"`  // ABI, 0 for none
	SockDiag bool   `json:"sock_diag"` // inet_diag answers
}

func probeKernel() Kernel {
	k := Kernel{Landlock: landlockABI(), SockDiag: diagAnswers()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		k.Release = unix.ByteSliceToString(u.Release[:])
	}
	if pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if fd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			k.PeerPin = true
			_ = unix.Close(fd)
		}
		_, _ = unix.Close(pair[0]), unix.Close(pair[1])
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return k
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Statfs_t
	k.Pidfs = unix.Fstatfs(fd, &st) == nil && st.Type == unix.PID_FS_MAGIC
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID}
	k.PidInfo = unix.IoctlPidfdInfo(fd, &info) == nil
	return k
}

// landlockABI is landlock_create_ruleset(2) with LANDLOCK_CREATE_RULESET_VERSION, which makes nothing.
func landlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi) //nolint:gosec // a small number
}

// diagAnswers asks inet_diag for the listening sockets. Where its module is missing the kernel answers with an error
// (sock_diag(7)); the sockets themselves are of no interest here.
func diagAnswers() bool {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	if unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}) != nil {
		return false
	}
	var b [unix.SizeofNlMsghdr + 56]byte // struct inet_diag_req_v2
	h := binary.NativeEndian
	h.PutUint32(b[0:], uint32(len(b)))
	h.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	h.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	h.PutUint32(b[8:], 1)
	b[unix.SizeofNlMsghdr], b[unix.SizeofNlMsghdr+1] = unix.AF_INET, unix.IPPROTO_TCP
	h.PutUint32(b[unix.SizeofNlMsghdr+4:], 1<<tcpListen)
	if unix.Sendto(fd, b[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return false
	}
	var reply [32 << 10]byte
	for {
		n, _, err := unix.Recvfrom(fd, reply[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n < unix.SizeofNlMsghdr {
			return false
		}
		kind := h.Uint16(reply[4:])
		return kind == unix.SOCK_DIAG_BY_FAMILY || kind == unix.NLMSG_DONE
	}
}

// probed is what the kernel can do; it is asked once.
func (x *examination) probed() Kernel {
	if x.kernel == nil {
		k := x.host.Kernel()
		x.kernel = &k
	}
	return *x.kernel
}

func kernelPins(_ context.Context, x *examination) []Finding {
	k := x.probed()
	if k.PeerPin && k.Pidfs && k.PidInfo {
		return nil
	}
	var missing []string
	for _, f := range []struct {
		has  bool
		name string
	}{{k.PeerPin, "SO_PEERPIDFD"}, {k.Pidfs, "pidfs"}, {k.PidInfo, "PIDFD_GET_INFO"}} {
		if !f.has {
			missing = append(missing, f.name)
		}
	}
	what := "kernel " + k.Release + " has no " + strings.Join(missing, ", ")
	if strong := x.wantStrong(); len(strong) > 0 && !k.PeerPin {
		return []Finding{fail(what, "attestations are weak, so these entries match no process: "+some(strong),
			"boot a kernel of 6.13 or later, or accept the risk of reused pids: remove min_strength: strong from these entries")}
	}
	return []Finding{warn(what, "a process that ends while it is attested could be taken for the one that gets its pid; such attestations are labelled weak",
		"boot a kernel of 6.13 or later")}
}

func cgroupTwo(_ context.Context, x *examination) []Finding {
	f, err := procfs.NewFS(x.host.Proc)
	if err != nil {
		return skip("cannot read " + x.host.Proc)
	}
	self, err := f.Self()
	if err != nil {
		return skip("cannot read " + x.host.Proc)
	}
	mounts, err := self.MountInfo()
	if err != nil {
		return skip("cannot read " + x.host.Proc + "/self/mountinfo")
	}
	for _, m := range mounts {
		if m.FSType == "cgroup2" && m.Root == "/" {
			return nil
		}
	}
	const what, mend = "cgroup version 2 is not mounted", "boot with systemd.unified_cgroup_hierarchy=1, or: mount -t cgroup2 none /sys/fs/cgroup/unified"
	if names := x.takeUnits(); len(names) > 0 {
		return []Finding{fail(what, "units cannot be attested, so these match no process: "+some(names), mend)}
	}
	return []Finding{warn(what, "only users can be told apart, not units", mend)}
}

func landlock(_ context.Context, x *examination) []Finding {
	const mend = "boot a kernel of 6.7 or later with landlock among the LSMs: grep -o landlock /sys/kernel/security/lsm"
	switch abi := x.probed().Landlock; {
	case abi == 0:
		return []Finding{warn("the kernel has no Landlock", "a captured proxy could read every file that its user can", mend)}
	case abi < 4: // network rules, Linux 6.7
		return []Finding{warn("Landlock is of version "+strconv.Itoa(abi)+", before network rules", "a captured proxy could open connections that it has no use for", mend)}
	}
	return nil
}

// execEvents looks for the process events of the connector. Who listens to them is not shown.
func execEvents(_ context.Context, x *examination) []Finding {
	b, err := os.ReadFile(x.host.Proc + "/net/connector")
	if err == nil && strings.Contains(string(b), "cn_proc") {
		return nil
	}
	return []Finding{warn("the kernel has no proc connector", "that a process has become another program is noticed by its next attestation, not at once",
		"boot a kernel with CONFIG_PROC_EVENTS, or set max_age on the workloads that matter")}
}

func sockDiag(_ context.Context, x *examination) []Finding {
	if x.probed().SockDiag {
		return nil
	}
	return []Finding{fail("inet_diag does not answer", "nobody who dials Ward over loopback TCP can be attested, so all are refused", "modprobe tcp_diag")}
}
