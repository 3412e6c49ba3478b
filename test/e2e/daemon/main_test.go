package daemon

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/test/daemontest"
)

// shared is the daemon that tests use together.
type shared struct {
	once sync.Once
	tb   mainTB
	d    *daemontest.Daemon
}

var common shared // of this test process; started by the first test that asks

// mainTB stands for the test process where a daemon outlives single tests.
type mainTB struct {
	testing.TB
	failed bool
}

func (*mainTB) Helper()                     {}
func (*mainTB) Cleanup(func())              {}
func (m *mainTB) Failed() bool              { return m.failed }
func (*mainTB) Logf(f string, a ...any)     { fmt.Fprintf(os.Stderr, f+"\n", a...) }
func (m *mainTB) Errorf(f string, a ...any) { m.failed = true; m.Logf(f, a...) }
func (m *mainTB) Error(a ...any)            { m.Errorf("%s", fmt.Sprint(a...)) }
func (m *mainTB) Fatalf(f string, a ...any) { m.Errorf(f, a...); panic("the shared daemon failed") }
func (m *mainTB) Fatal(a ...any)            { m.Fatalf("%s", fmt.Sprint(a...)) }

// parallel tests mostly wait for each other's daemons and plugins.
const parallel = "6"

func TestMain(m *testing.M) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", parallel); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if common.d != nil {
		common.d.End(&common.tb)
		if common.tb.failed {
			code = 1
		}
	}
	daemontest.Cleanup()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// setup gives a test the shared daemon, and an instance of the plugin lab that
// nobody else uses and that is gone after the test.
func setup(t *testing.T) (s *daemontest.Session, lab string) {
	t.Helper()
	t.Parallel()
	common.once.Do(func() { common.d = daemontest.Start(&common.tb, daemontest.Options{}) })
	if common.d == nil {
		t.Fatal("the shared daemon did not start")
	}
	s = common.d.Session(t)
	lab = s.Instance(instanceName(t), nil)
	t.Cleanup(func() { deleteInstance(t, lab) })
	return s, lab
}

// deleteInstance needs a session of its own: that of the test has ended.
func deleteInstance(t *testing.T, lab string) {
	s := common.d.Session(t)
	resp, err := s.API.DeleteInstance(s.Ctx(), "lab", lab)
	if err != nil {
		t.Errorf("cannot delete instance %s: %v", lab, err)
		return
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 204 {
		t.Errorf("cannot delete instance %s, it still has jobs: %s", lab, resp.Status)
	}
	if t.Failed() {
		lines := common.d.Log.Lines(func(l daemontest.Line) bool { return l.Level != "debug" })
		for _, l := range lines[max(0, len(lines)-40):] {
			t.Log(l.Text)
		}
	}
}

func instanceName(t *testing.T) string {
	name := strings.TrimPrefix(t.Name(), "Test")
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name)
	return "t-" + name[max(0, len(name)-60):]
}

// own starts a daemon for one test alone.
func own(t *testing.T, o daemontest.Options) *daemontest.Daemon {
	t.Helper()
	t.Parallel()
	return daemontest.Start(t, o)
}

func ptr[T any](v T) *T { return &v }

func contextWithCancel(s *daemontest.Session) (context.Context, context.CancelFunc) {
	return context.WithCancel(s.Ctx())
}

func contains(text string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// files lists the plain files below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
