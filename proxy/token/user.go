package token

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/wardmesh/ward/proxy"
	"github.com/wardmesh/ward/proxy/fhir"
)

const (
	maxRole = 128
	maxName = 200
)

// users are the types of resource that a fhirUser claim may name (SMART App Launch 2.2, "Scopes for requesting
// identity data").
var users = [...]string{"Patient", "Practitioner", "PractitionerRole", "RelatedPerson", "Person"}

// user says for whom the client acts, nil when for itself: then sub is the client (RFC 9068 §2.2, of sub).
func (is *issuer) user(c claims, subject, client string) (*proxy.User, error) {
	if subject == client {
		return nil, nil
	}
	u := &proxy.User{Issuer: is.Issuer.Issuer, Subject: subject}
	roles, err := is.paths.roles.values(c)
	if err != nil {
		return nil, err
	}
	for _, r := range roles {
		if !isPrintable(r, maxRole) {
			return nil, proxy.Refuse(proxy.CauseTokenClaims, "claim %s holds an unusable role", is.paths.roles.text)
		}
		if !slices.Contains(u.Roles, r) {
			u.Roles = append(u.Roles, r)
		}
	}
	if u.Patient, err = is.patient(c); err != nil {
		return nil, err
	}
	ref, err := is.paths.fhirUser.one(c)
	if err != nil {
		return nil, err
	}
	u.FHIRUser = is.fhirUser(ref)
	name, err := is.paths.name.one(c)
	if err != nil {
		return nil, err
	}
	u.Name = displayable(name)
	return u, nil
}

// patient is the launch patient's id (SMART App Launch 2.2, "Launch context arrives with your access_token"); some issuers
// write it as a reference.
func (is *issuer) patient(c claims) (string, error) {
	s, err := is.paths.patient.one(c)
	if err != nil || s == "" {
		return "", err
	}
	id := strings.TrimPrefix(s, "Patient/")
	if !fhir.IsID(id) {
		return "", proxy.Refuse(proxy.CauseTokenClaims, "claim %s is not the id of a patient", is.paths.patient.text)
	}
	return id, nil
}

// fhirUser is a fhirUser claim as a reference on our own base; the zero Reference for a person who is kept elsewhere: the
// same id on two servers is two people.
func (is *issuer) fhirUser(s string) fhir.Reference {
	for _, base := range is.FHIRBases {
		if rest, found := strings.CutPrefix(s, base+"/"); found {
			s = rest
			break
		}
	}
	ref, ok := fhir.ParseReference(s)
	if !ok || !slices.Contains(users[:], ref.Type) {
		return fhir.Reference{}
	}
	return ref
}

// displayable is name if it can be shown on one line without deceiving its reader, else "": control characters
// and changes of direction do.
func displayable(name string) string {
	if len(name) > maxName || !utf8.ValidString(name) {
		return ""
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return ""
		}
	}
	return name
}

// purpose is the purpose of use that the token asserts, "" when it asserts none. A token that asserts several leaves open
// which one this call is for; to choose would be to guess.
func (is *issuer) purpose(c claims) (string, error) {
	s, err := is.paths.purpose.one(c)
	if err != nil || s == "" {
		return "", err
	}
	if !isPurpose(s) {
		return "", proxy.Refuse(proxy.CauseTokenClaims, "claim %s is not a purpose of use of HL7 v3 ActReason", is.paths.purpose.text)
	}
	return s, nil
}

// isPurpose reports whether code is below PurposeOfUse in HL7's v3 ActReason, as FHIR R4 publishes it.
func isPurpose(code string) bool {
	switch code {
	case "BIORCH", "BTG", "CAREMGT", "CLINTRCH", "CLINTRCHNPC", "CLINTRCHPC", "CLINTRL", "CLMATTCH", "COC", "COVAUTH",
		"COVERAGE", "DISASTER", "DONAT", "DSRCH", "ELIGDTRM", "ELIGVER", "ENROLLM", "ERTREAT", "ETREAT", "FAMRQT", "FRAUD",
		"GOV", "HACCRED", "HCOMPL", "HDECD", "HDIRECT", "HDM", "HLEGAL", "HMARKT", "HOPERAT", "HOUTCOMS", "HPAYMT",
		"HPRGRP", "HQUALIMP", "HRESCH", "HSYSADMIN", "HTEST", "LABELING", "MEMADMIN", "METAMGT", "MILCDM", "MILDCRG",
		"PATADMIN", "PATRQT", "PATSFTY", "PERFMSR", "POARCH", "POPHLTH", "PRECLINTRCH", "PUBHLTH", "PWATRNY", "RECORDMGT",
		"REMITADV", "SUPNWK", "SYSDEV", "THREAT", "TRAIN", "TRANSRCH", "TREAT":
		return true
	}
	return false
}
