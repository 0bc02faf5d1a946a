// Package peer pins the process at the other end of a local socket.
//
// A [Pinner] turns an accepted connection into a [Process]: a value that names one process and no other until
// it says otherwise. Attestors then read facts about it, and [attest.Run] checks last that it is still the same.
//
//	pinner, err := peer.New(peer.Options{})
//	listener, err := pinner.Listen(l, refused)      // l is a Unix or a loopback TCP listener
//	conn, err := listener.Accept()                  // a *peer.Conn
//	process, err := conn.(*peer.Conn).Process()
//
// # Unix sockets
//
// The kernel names the peer twice: SO_PEERCRED (pid, uid, gid at connect) and SO_PEERPIDFD (a descriptor of
// the process itself). /proc/PID is then opened as a directory, and only after that is the pidfd asked whether
// its process still lives under that pid, as that user: so the directory is that process's. Liveness is asked
// with poll and PIDFD_GET_INFO, never with signal 0, which needs CAP_KILL. Before Linux 6.5 there is no
// SO_PEERPIDFD: the pid is pinned with pidfd_open after accept, and the process is labelled [attest.Weak],
// since its pid may have been reused before that. Before Linux 6.13 there is no PIDFD_GET_INFO, and
// /proc/PID/status stands in for it. Before 5.3 nothing can be pinned, and everybody is refused.
//
// A listener asks for the sender's credentials on every message, and a message that another process sent on
// the peer's connection ends it ([ErrPassed]): a socket can be inherited or passed, an identity cannot.
//
// # Loopback TCP
//
// A TCP socket has no peer credentials. inet_diag is asked for the client's own socket (its inode, cookie,
// creator's uid and cgroup), and the process that holds this socket is searched for in that cgroup and pinned.
// See [Pinner.TCP] for everything that is refused on the way.
//
// # A program replaced
//
// A pidfd survives execve. Two things do not, and both are kept: the memory image, to which an open
// /proc/PID/pagemap is bound, and the layout of that image in /proc/PID/stat (start of stack, code, data and
// heap). [Process.Alive] compares both, and a sweep calls it at least once a second for every process that is
// held, so that a long stream ends too. Reading them needs the same permission as reading the executable; where
// Ward lacks it, no fact about the executable can be attested either, and uid and unit do not change with execve.
//
// # What is not promised
//
// A process that execs another program before its connection is accepted is pinned as that program: the path
// and hash of an executable never carry an entry alone. A process that hands its TCP socket to another one,
// after it was pinned or outside its cgroup, lends its identity knowingly; so does one that reads replies on
// another's behalf. A process whose first thread has ended while others run has no readable facts and is
// refused. Root can do anything.
//
// Links: pidfd_open(2), proc_pid_stat(5), unix(7), sock_diag(7), cgroups(7).
package peer
