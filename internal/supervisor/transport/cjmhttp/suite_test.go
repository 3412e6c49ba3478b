package cjmhttp_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor/transport/cjmhttp"
	"github.com/cjmd/cjmd/internal/supervisor/transport/transporttest"
)

func TestMain(m *testing.M) { transporttest.Main(m) }

// python is an interpreter, or skips the test.
func python(t *testing.T) string {
	t.Helper()
	p, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on PATH")
	}
	return p
}

// target is the launcher under an interpreter that has the stand-in packages of
// one age, or the real ones.
func target(t *testing.T, interpreter string, path ...string) transporttest.Target {
	t.Helper()
	const module, class = "suite_plugin", "SuitePlugin"
	return transporttest.Target{
		Transport: cjmhttp.New(cjmhttp.Options{ProgressEvery: 20 * time.Millisecond}),
		Command:   cjmhttp.Command(interpreter, module, class),
		Env:       []string{"PYTHONPATH=" + strings.Join(append(path, transporttest.Data("")), string(os.PathListSeparator))},
		Module:    module, Class: class,
	}
}

func standIn(t *testing.T, age string) transporttest.Target {
	t.Helper()
	return target(t, python(t), transporttest.Data("standin/common"), transporttest.Data("standin/"+age))
}

// asFirst: the first release has no categories.
func asFirst(tt transporttest.Target) transporttest.Target {
	tt.Blocks = true
	tt.Category = func(string) string { return "fatal" }
	return tt
}

func TestSuite_FirstRelease(t *testing.T) { transporttest.Run(t, asFirst(standIn(t, "first"))) }

func TestSuite_TypedErrors(t *testing.T) { transporttest.Run(t, standIn(t, "typed")) }

// TestSuite_Real runs against installed base libraries: CJM_HTTP_PYTHONS names
// interpreters that have one, separated by colons; those of the first releases
// are marked by a leading "first=".
func TestSuite_Real(t *testing.T) {
	list := os.Getenv("CJM_HTTP_PYTHONS")
	if list == "" {
		t.Skip("CJM_HTTP_PYTHONS names no interpreter with a base library")
	}
	for _, interpreter := range strings.Split(list, ":") {
		path, first := strings.CutPrefix(interpreter, "first=")
		tt := target(t, path)
		if first {
			tt = asFirst(tt)
		}
		t.Run(path, func(t *testing.T) { transporttest.Run(t, tt) })
	}
}
