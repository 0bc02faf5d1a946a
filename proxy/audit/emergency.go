package audit

import "github.com/wardmesh/ward/proxy"

// The purposes of use, codes of HL7 v3 ActReason, for which care must go on when the disk is full.
const (
	purposeEmergency  = "ETREAT" // emergency treatment
	purposeBreakGlass = "BTG"    // break-glass
)

// Emergency reports whether r may use the reserve: it is the intent or the outcome of a call that was allowed, whose
// verified purpose of use is emergency treatment (ETREAT) or break-glass (BTG). Refusals may not, whatever purpose they
// name: a user who is refused could use the reserve up. Nor may calls that were let through only because their service is
// observed.
func Emergency(r *proxy.Record) bool {
	return (r.Would == nil || r.Would.Effect == proxy.EffectNarrow) &&
		(r.Purpose == purposeEmergency || r.Purpose == purposeBreakGlass) &&
		(r.Stage == proxy.StageIntent || r.Stage == proxy.StageOutcome)
}
