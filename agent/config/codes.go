package config

import (
	_ "embed"
	"strings"
)

// The codes of errors. A code never changes its meaning, and is not used again when its error is gone.
const (
	// files
	codeUnreadable = "W0101"
	codeUnsafe     = "W0102"
	codeTooLarge   = "W0103"
	codeCharacter  = "W0104"
	codeTab        = "W0105"
	codeSyntax     = "W0106"
	codeDocuments  = "W0107"
	codeAlias      = "W0108"
	codeTag        = "W0109"
	codeFragment   = "W0110"

	// keys and values
	codeUnknownKey      = "W0201"
	codeUnsupported     = "W0202"
	codeDuplicateKey    = "W0203"
	codeSetTwice        = "W0204"
	codeMissing         = "W0205"
	codeNoValue         = "W0206"
	codeType            = "W0207"
	codeWord            = "W0208"
	codeID              = "W0209"
	codeForeignID       = "W0210"
	codeDuration        = "W0211"
	codeRange           = "W0212"
	codeUnknownSelector = "W0213"
	codeSelector        = "W0214"
	codeLaunch          = "W0215"
	codePath            = "W0216"
	codeAddress         = "W0217"
	codeLoopback        = "W0218"
	codeDNSName         = "W0219"
	codeURL             = "W0220"
	codeText            = "W0221"
	codeInstant         = "W0222"
	codeSize            = "W0223"
	codeTrustDomain     = "W0224"
	codeSecret          = "W0225"
	codeRepeated        = "W0226"

	// how values go together
	codeOnlyExecutable    = "W0301"
	codeNoBoundary        = "W0302"
	codeSameName          = "W0303"
	codeSameID            = "W0304"
	codeSameIdentifier    = "W0305"
	codeWindow            = "W0306"
	codeTwoPatients       = "W0307"
	codeNoWorkload        = "W0308"
	codeNotLent           = "W0309"
	codeServiceIsWorkload = "W0310"
	codeOutsideZone       = "W0311"
	codeHalfServed        = "W0312"
	codeClash             = "W0313"
	codeLongExchange      = "W0314"
	codeOutlivesCA        = "W0315"
	codeNoIssuer          = "W0316"
	codeKeySource         = "W0317"
	codeNeverStrong       = "W0318"
	codeAnyUpstream       = "W0319"
	codeObserve           = "W0320"
	codeIntercept         = "W0321"
	codeSecondTrail       = "W0322"
	codeCrowd             = "W0323"

	// what config names
	codeNamedFile = "W0401"

	// CodePolicy is for policies that cannot be loaded, which the packages that read them report by Config.Problem.
	CodePolicy = "W0402"
)

//go:embed codes.md
var pages string

// Explain is the page of a code: its cause, an example and how to mend it. It reports whether there is such a code.
func Explain(code string) (string, bool) {
	for _, page := range strings.Split("\n"+pages, "\n## ")[1:] {
		if name, _, _ := strings.Cut(page, " "); name == code {
			return strings.TrimSpace(page) + "\n", true
		}
	}
	return "", false
}

// Codes lists every code, in order.
func Codes() []string {
	var codes []string
	for _, page := range strings.Split("\n"+pages, "\n## ")[1:] {
		name, _, _ := strings.Cut(page, " ")
		codes = append(codes, name)
	}
	return codes
}
