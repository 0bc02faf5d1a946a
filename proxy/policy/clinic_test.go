package policy

import "testing"

const clinicFolder = "../../examples/clinic/policy"

func TestSmoke(t *testing.T) {
	t.Log(len(Schema()))
	s, err := Load("../../examples/clinic/policy")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(s.Hash(), s.Len())
}
