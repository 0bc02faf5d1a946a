package doctor

import "context"

// check is one entry of the table.
type check struct {
	code, group, name string
	after             []string // the checks without which this one cannot be made
	root, online      bool
	run               func(context.Context, *examination) []Finding
}

// The codes. A code never changes its meaning, and is not used again when its check is gone.
const (
	codeConfig = "W0900"

	codeUpstreamNetwork = "W0901"
	codeUpstreamSocket  = "W0902"
	codeUpstreamOpen    = "W0903"
	codeUpstreamAway    = "W0904"
	codeUpstreamProcess = "W0905"
	codeServerElsewhere = "W0906"

	codeKernel      = "W0911"
	codeSharedUser  = "W0913"
	codeInterpreter = "W0914"
	codeCgroup      = "W0915"
	codeLandlock    = "W0916"
	codeExecEvents  = "W0917"
	codeDiag        = "W0918"

	codeClock      = "W0921"
	codeFuture     = "W0922"
	codeIssuerTime = "W0923"

	codeStateMode  = "W0931"
	codeSocketDir  = "W0932"
	codeAdminGroup = "W0933"
	codeAdminMode  = "W0934"

	codeResponder = "W0941"
	codeResolver  = "W0942"

	codeExpiring = "W0951"
	codeRenewal  = "W0952"
	codeObserve  = "W0953"
	codeIssuers  = "W0954"

	codeSpace  = "W0961"
	codeGrowth = "W0962"
	codeInodes = "W0963"
	codeSecond = "W0964"

	codeNoDaemon = "W0971"
	codeRoleAway = "W0972"
	codeVersions = "W0973"
	codeRunning  = "W0974"
	codeTrail    = "W0975"
	codePressure = "W0976"
	codeProblems = "W0977"
)

// checks is the table, in the order in which they are made: what others stand on comes first.
func checks() []check {
	return []check{
		{codeConfig, "config", "the config is whole", nil, false, false, wholeConfig},

		{codeUpstreamNetwork, "bypass", "no FHIR server can be reached over the network without Ward", on(codeConfig), false, false, upstreamNetwork},
		{codeUpstreamSocket, "bypass", "only Ward can open the FHIR servers' sockets", on(codeConfig), false, false, upstreamSocket},
		{codeUpstreamOpen, "bypass", "only Ward can dial the FHIR servers' ports", on(codeConfig), false, false, upstreamOpen},
		{codeUpstreamAway, "bypass", "every FHIR server is there", on(codeConfig), false, false, upstreamAway},
		{codeUpstreamProcess, "bypass", "every FHIR server is the process that config names", on(codeConfig, codeUpstreamAway), false, false, upstreamProcess},
		{codeServerElsewhere, "bypass", "no FHIR server listens on other ports of the network", on(codeConfig), false, false, serverElsewhere},

		{codeKernel, "attestation", "the kernel pins the processes that connect", nil, false, false, kernelPins},
		{codeSharedUser, "attestation", "no entry takes a user that several units share", on(codeConfig), false, false, sharedUser},
		{codeInterpreter, "attestation", "no entry takes an interpreter for a program", on(codeConfig), false, false, interpreter},
		{codeCgroup, "attestation", "the kernel tells units apart", nil, false, false, cgroupTwo},
		{codeLandlock, "attestation", "the kernel confines Ward's own processes", nil, false, false, landlock},
		{codeExecEvents, "attestation", "the kernel tells of programs that are replaced", nil, false, false, execEvents},
		{codeDiag, "attestation", "the kernel tells who dials over loopback", nil, false, false, sockDiag},

		{codeClock, "clock", "the clock is kept right", nil, false, false, clockSynced},
		{codeFuture, "clock", "the clock has not been set back", on(codeConfig), false, false, fromTheFuture},
		{codeIssuerTime, "clock", "the clock agrees with the token issuers'", on(codeConfig), false, true, issuerTime},

		{codeStateMode, "permissions", "only Ward can read its keys, state and audit log", on(codeConfig), false, false, stateModes},
		{codeSocketDir, "permissions", "nobody else can put a socket in the place of Ward's", on(codeConfig), false, false, socketDirs},
		{codeAdminGroup, "permissions", "no daemon is an operator", nil, false, false, adminGroup},
		{codeAdminMode, "permissions", "only operators can open the admin sockets", on(codeConfig), false, false, adminModes},

		{codeResponder, "names", "Ward answers for the mesh zone", on(codeConfig), false, false, responder},
		{codeResolver, "names", "this host's resolver asks Ward for mesh names", on(codeConfig, codeResponder), false, false, resolver},

		{codeNoDaemon, "daemon", "the daemon answers", on(codeConfig), false, false, daemonAnswers},
		{codeRoleAway, "daemon", "every role that has run answers", on(codeConfig), false, false, rolesAnswer},
		{codeVersions, "daemon", "all of Ward has one version", on(codeConfig, codeNoDaemon), false, false, oneVersion},
		{codeRunning, "daemon", "the daemons run the config that is on disk", on(codeConfig, codeNoDaemon), false, false, runsThisConfig},

		{codeExpiring, "expiry", "nothing ends soon that does not renew itself", on(codeConfig, codeNoDaemon), false, false, expiring},
		{codeRenewal, "expiry", "SVIDs are issued and renewed", on(codeConfig, codeNoDaemon), false, false, renewals},
		{codeObserve, "expiry", "no service's observing is about to end, or has", on(codeConfig), false, false, observing},
		{codeIssuers, "expiry", "the keys of every token issuer are at hand", on(codeConfig, codeNoDaemon), false, false, issuers},

		{codeSpace, "disk", "the audit log has the space that it needs", on(codeConfig), false, false, space},
		{codeGrowth, "disk", "the audit log will not fill its disk soon", on(codeConfig, codeSpace), false, false, growth},
		{codeInodes, "disk", "there are inodes left", on(codeConfig), false, false, inodes},
		{codeSecond, "disk", "the second audit log is on a disk of its own", on(codeConfig), false, false, secondDisk},

		{codeTrail, "daemon", "the audit log takes records", on(codeConfig, codeNoDaemon), false, false, trailWorks},
		{codePressure, "daemon", "nothing presses on the audit log", on(codeConfig, codeNoDaemon, codeTrail), false, false, pressure},
		{codeProblems, "daemon", "the daemons report no other problem", on(codeConfig, codeNoDaemon, codeTrail, codeRenewal, codeExpiring, codeIssuers), false, false, problems},
	}
}

func on(codes ...string) []string { return codes }
