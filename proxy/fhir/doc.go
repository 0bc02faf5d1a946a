// Package fhir knows HL7 FHIR R4 as far as a proxy has to, to decide on a call: what a request asks for, what a
// token's SMART scopes allow of it, what a body says of itself, whom it concerns, and whether a reply holds what
// the caller may see and nothing else.
//
// The package is pure. It has no network, no clock and no state; the same bytes give the same answer. What a
// decision needs from elsewhere comes in as an argument, and what must happen next goes out as a value: the
// journeys in package proxy act on it.
//
// # Why
//
// A FHIR request can ask for the same thing in many spellings, and FHIR servers differ in which they take. Some
// route /PATIENT/1 and //Patient, decode %2f in a path, split a query at a semicolon, or take the last of two
// equal JSON keys. A proxy that reads a request differently from the server behind it decides on one request and
// forwards another. So everything is read once, by one strict parser, into an Interaction or a Content; what has
// no single meaning is refused; and what is forwarded is written anew from what was understood (Interaction.Target,
// Interaction.FormBody), so that there is one spelling and nothing left to guess.
//
// FHIR also lets a request reach much further than its URL says: chains, includes, conditional writes, operations,
// named queries. All of those are known by name and refused as Unsupported, which a client is told as 501. A
// parameter that R4 does not define is refused as well: a server that does not know it would ignore it, and answer
// with more than was asked for.
//
// # The journey of a request
//
//	in, err := Classify(method, target, base, header)   // the interaction: closed, canonical
//	in, err = in.WithForm(body, contentType)            // of a search by POST
//	content, err := ParseResource(body, options)        // of a create or update
//	err = CheckWrite(in, content)
//	grant, verdict := scopes.Permit(in)
//	in, check, err := Confine(in, patient)              // only where the grant is confined to one patient
//	facts, err := CheckReply(in, check, …)              // before anything of the reply goes out
//
// # The patient's compartment
//
// A caller with patient/ scopes alone sees one patient. What belongs to a patient is HL7's definition: a resource
// is in the compartment of those to whom certain of its references lead. Confine narrows the request to it, and
// CheckReply looks again at what comes back, because a server may ignore a parameter or fail to. Of Patient
// itself only the patient's own record belongs: by HL7's definition a record that links to mine would be mine,
// which makes the claim of any record a key to it. Types outside the compartment are free only when nothing in
// them can refer to a patient.
//
// What this cannot see: an extension that refers to another patient, a name in a narrative, a reference by
// identifier only. A Group or an AuditEvent is in the compartment of each of its members, and tells each of the
// others; that is HL7's definition too.
//
// # Against whom
//
// Requests, bodies and replies are hostile: any bytes, any size, any depth. Parsers bound their input and fail
// closed, each is fuzzed, and an accepted request must survive being written and read again unchanged. An Error
// names the place of a fault, never the content: no value, id or name of a patient goes into a log by this way.
//
// # Where things are
//
//   - interaction.go, the nouns and how an interaction is written; classify.go and accept.go, method, path and
//     header; query.go and form.go, the one parser of queries and forms; search.go and canonical.go, the rules
//     for parameters.
//   - compartment.go, confinement to one patient.
//   - tables.go, generated from HL7's definitions by gen, and names.go, how to ask them.
//   - scope.go, SMART scopes.
//   - content.go and reply.go, what bodies and replies say, over the strict reading of JSON in json.go and walk.go.
//
// # Links
//
//   - RESTful API: https://hl7.org/fhir/R4/http.html
//   - Search: https://hl7.org/fhir/R4/search.html
//   - The patient's compartment: https://hl7.org/fhir/R4/compartmentdefinition-patient.html
//   - SMART App Launch 2.2: https://hl7.org/fhir/smart-app-launch/STU2.2/
//   - URIs: RFC 3986; forms: https://url.spec.whatwg.org/#application/x-www-form-urlencoded
package fhir
