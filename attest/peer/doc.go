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
// # References
//
// A proxy without capabilities cannot look into its callers. It only names them ([Pinner.Refer]), and the agent pins
// what was named ([Pinner.Resolve]): the pid and pidfs inode of a Unix socket's peer, with the user who connected, or
// a TCP client's own socket by its addresses and its cookie, with the network namespace.
//
//	listener, err := proxy.Refer(l, refused)
//	c := conn.(*peer.Referred)
//	reference, err := c.Reference()                  // to the agent: agent.Resolve(ctx, reference)
//	err = c.Confirm()                                // when it has answered, before the first byte is read
//
// Why nothing comes between: neither an inode nor a cookie is used twice while the host runs, so the agent finds that
// very process or socket, or nothing. The agent cannot ask the accepted end of a TCP connection, as Pinner.TCP does,
// whether it is still the other end of that socket. The proxy can, and does so last: an end that is still established
// has been so all the time, so who held the client's end when the agent looked is who sent what will be read. The
// agent tells by itself, by [Process.Done], when that process ends or becomes another.
//
// A Unix socket's peer that connects again and again need not be looked into each time. [Referred.Standing] is what anybody
// may see of it: its groups at connect, its cgroup, and when it has last replaced its program or changed its user. The last
// the kernel's proc connector tells, and nobody waits for it: the event of an execve is in the socket's queue before the new
// program runs its first instruction, so the queue is read when a standing is asked for, and what connects after an execve
// never stands as the program before it did. Events that were lost count as a change of everybody. While two standings are
// the same, what the agent found at the first is true at the second, but for what the process does not decide itself (a
// file that is renamed, a folder that is given away): who relies on it asks the agent anew before long.
//
// # Servers
//
// [Pinner.Serving] is the question turned round: who serves at the other end of a connection that this process has
// dialled? It is answered from the connection, before a byte is sent.
//
// # A program replaced
//
// A pidfd survives execve. Two things do not, and both are kept: the memory image, to which an open
// /proc/PID/pagemap is bound, and the layout of that image in /proc/PID/stat (start of stack, code, data and
// heap). [Process.Alive] compares both. It is called for a process that is held as soon as the kernel's proc connector
// tells of its exec or change of user (Linux 6.6, in the host's own namespaces), when events were lost for all, and
// for all by a sweep besides, so that a long stream ends too: once a second, or up to every 50 ms where the kernel tells
// nothing ([Status]). Reading them needs the same permission as reading the executable; where
// Ward lacks it, no fact about the executable can be attested either, and uid and unit do not change with execve. A check
// in the middle of an execve may take the process for one that has exited; it is ended either way.
//
// # What is not promised
//
// A process that execs another program before its connection is accepted is pinned as that program: the path
// and hash of an executable never carry an entry alone. A process that hands its TCP socket to another one,
// after it was pinned or outside its cgroup, lends its identity knowingly; so does one that reads replies on
// another's behalf. A process whose first thread has ended while others run has no readable facts and is
// refused. Root can do anything.
//
// Links: pidfd_open(2), proc_pid_stat(5), unix(7), sock_diag(7), cgroups(7), netlink(7), linux/cn_proc.h.
package peer
