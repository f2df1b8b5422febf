// Holds a bundle against the rules of the OCI runtime-spec: with the validator of opencontainers/runtime-tools, as Debian
// has it (golang-github-opencontainers-runtime-tools-dev). GO111MODULE=off GOPATH=/usr/share/gocode go run validate.go DIR
package main

import (
	"fmt"
	"os"

	"github.com/opencontainers/runtime-tools/validate"
)

func main() {
	validator, err := validate.NewValidatorFromPath(os.Args[1], false, "linux")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	// All but the one that fetches a schema from the network.
	checks := []func() error{
		validator.CheckRoot, validator.CheckMandatoryFields, validator.CheckSemVer, validator.CheckMounts,
		validator.CheckProcess, validator.CheckLinux, validator.CheckPlatform, validator.CheckHooks,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println("checked")
}
