package tree

import (
	"os"
	"testing"

	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// A worker that had ended before it could be looked up was taken for whatever
// process has, in our namespace, the number it had in its own: limits and
// signals then went to a stranger.
func TestAdopt_EndedWorkerIsNobody(t *testing.T) {
	t.Parallel()
	for _, strategy := range []Strategy{PIDNS, Subreaper} {
		s := &shimmed{strategy: strategy, shimID: proc.ID{PID: 1 << 30}}
		if err := s.adopt(os.Getpid()); err != nil {
			t.Fatal(err)
		}
		if pid := s.PID(); pid != 0 {
			t.Errorf("%s: the worker is taken for process %d", strategy, pid)
		}
	}
}
