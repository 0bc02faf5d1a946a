// Command demo runs the two servers that Ward's demonstration plays with, by themselves: a FHIR server with HL7's
// examples and an OpenID Provider. With them a config for `ward run` can be tried before the real ones are at hand:
//
//	go run ./examples/demo -fhir /tmp/fhir.sock -issuer 127.0.0.1:9080 -audience http://fhir.ehr.mesh.internal
//
// Both trust everybody who reaches them. They are for one machine and for trying things out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/wardmesh/ward/examples/demo/fhirserver"
	"github.com/wardmesh/ward/examples/demo/provider"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	socket := flag.String("fhir", "/tmp/ward-demo-fhir.sock", "Unix socket of the FHIR server")
	issuer := flag.String("issuer", "127.0.0.1:9080", "loopback address of the OpenID Provider")
	audience := flag.String("audience", "http://fhir.ehr.mesh.internal", "whom tokens are for")
	flag.Parse()
	if err := run(ctx, *socket, *issuer, *audience); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, socket, issuer, audience string) error {
	users := []provider.User{
		{Name: "dr.lee", Display: "Dr. Lee", Roles: []string{"physician"}, FHIRUser: "Practitioner/example"},
		{Name: "anna", Display: "Anna", FHIRUser: "Patient/example", Patient: "example"},
	}
	clients := []provider.Client{
		{ID: "smart-portal", Secret: "portal", Scopes: []string{"user/*.rs", "patient/*.rs", "openid"}},
		{ID: "ehr", Secret: "ehr", Scopes: []string{"user/*.cruds"}},
	}
	fhir, err := fhirserver.New(time.Now)
	if err != nil {
		return err
	}
	idp, err := provider.New("http://"+issuer, audience, users, clients, time.Now)
	if err != nil {
		return err
	}
	atSocket, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	atPort, err := net.Listen("tcp", issuer)
	if err != nil {
		return errors.Join(err, atSocket.Close())
	}
	ended := make(chan error, 2)
	for l, h := range map[net.Listener]http.Handler{atSocket: fhir, atPort: idp} {
		s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
		go func() { ended <- s.Serve(l) }()
		defer func() { _ = s.Close() }()
	}
	fmt.Printf("fhir      %d HL7 resources at unix:%s\n", fhir.Len(), socket)
	fmt.Printf("provider  http://%s, tokens for %s\n", issuer, audience)
	for _, u := range users {
		fmt.Printf("token     curl -s -u %s:%s -d grant_type=password -d username=%s -d password=%s http://%s/token\n",
			clients[0].ID, clients[0].Secret, u.Name, provider.Password, issuer)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}
