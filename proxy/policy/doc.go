// Package policy decides calls by Cedar policies: who may do what to which resource, for whom and why.
//
// # What policies see
//
// A policy is read as a sentence: may this principal (a workload, proven by its SVID) do this action (a FHIR
// interaction) to this resource (a FHIR type and id) in this context (the user, the scopes, the purpose, the request)?
//
//	@id("bridges")
//	@description("Device bridges add observations about this clinic's patients, and do nothing else.")
//	permit (
//	    principal in Workload::"/bridge",
//	    action == Action::"create",
//	    resource is FHIR::Observation
//	)
//	when { context.level == "system" && !context.body.patients.isEmpty() };
//
// All names, their types and their meaning stand in one table (model.go), and [Schema] prints them. Policies are checked
// against the schema when they are loaded; a set with any fault is refused whole, with every fault at its place. What
// the schema cannot show:
//
//   - The principal is the path of the SPIFFE ID for workloads of the ward's own trust domain, and the whole ID for
//     those of federated domains, so a partner's /app/portal is never ours. A workload is in the folders of its path.
//   - The resource of a search, a create or a type's history has no id: FHIR::Observation::"". A call that concerns no
//     one type has the resource FHIR::System.
//   - context.patients is whom the request names, in whatever place: it tells what is asked for, not what the reply
//     will hold. For `subject=Patient/a,Patient/b` it is both, so ask for equality where only one is meant:
//     context.patients == ["a"]. context.confined says that the reply is held to the launch patient's compartment.
//
// # What nobody has looked up
//
// resource.patients and resource.labels speak of the resource as the server holds it, and a ward does not look there
// before it decides. It knows them without looking for a create (what the body says is all there is), for one Patient
// (its own id) and for types that cannot refer to patients. Otherwise they are unknown, which is not the same as empty:
// partial knowledge must never turn a forbid into nothing or a permit into everything.
//
//   - The schema declares both as always there, and a guard `resource has patients` is refused at load: it would read
//     not knowing as not having.
//   - A policy that looks at an unknown attribute while it is being evaluated is open. `&&` and `||` evaluate from left
//     to right, so a policy that is false for another reason first never gets that far.
//   - While a policy is open, nothing is allowed. The call is denied when every possible answer would deny it: a forbid
//     holds, or no permit holds and none is open. Otherwise the decision is [proxy.NeedsImage], which is refused too.
//   - What an update brings is another thing than what it replaces: context.body has the one, resource the other. A
//     policy that forgot the other would let a caller move a resource from one patient to another.
//
// # How it decides
//
// Cedar's rule: denied unless a permit holds, and denied when a forbid holds. Ward's additions are in decide.go, on one
// screen: any policy that cannot be evaluated denies, because Cedar passes over it, and a forbid that is passed over is a
// permission.
//
// For speed the policies are indexed by action and resource type when they are loaded, by their scopes alone, and a
// decision builds only those attributes that the policies of its slice can look at. A property test holds both against
// the plain evaluation of all policies on all attributes.
//
// # Afterwards
//
// A [proxy.Decision] bears the hash of the set and the inputs as policy saw them. With the set's files kept by their hash
// ([Set.Source], [Parse]), [Explain] decides again offline and shows which clause failed. [Replay] decides a whole trail
// again by another set, and says what that set would have changed.
//
// # Threats
//
// Whoever can write a policy file can open everything, so [Load] refuses files and folders that others than root and this
// process's user can write. Files are operators' input: the parser is bounded in size and depth. Decisions carry
// identifiers, and no values of search parameters other than patients' ids; errors carry no values at all.
//
// Cedar: https://docs.cedarpolicy.com. Purposes of use: HL7 v3 ActReason. Security labels: HL7 DS4P.
package policy
