// Package reexec lets a program serve as its own worker-shim and
// worker-guardian. A main function, or a TestMain, calls Dispatch first.
package reexec

import (
	"github.com/cjmd/cjmd/internal/isolation/guardian"
	"github.com/cjmd/cjmd/internal/isolation/shim"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

// Dispatch runs the hidden verb that args (os.Args[1:]) begin with. ok is false,
// and nothing was done, when they begin with none.
func Dispatch(args []string) (code int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case tree.VerbShim:
		return shim.Main(args[1:]), true
	case tree.VerbGuardian:
		return guardian.Main(args[1:]), true
	default:
		return 0, false
	}
}
