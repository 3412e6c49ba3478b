package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/api"
	"github.com/cjmd/cjmd/internal/config"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/nvidia"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// What assemble.go joins, said where a mistake names both sides.
var (
	_ jobs.Store         = (*sqlitestore.Store)(nil)
	_ sched.Queue        = sched.JobQueue{}
	_ sched.Workers      = (*supervisor.Supervisor)(nil)
	_ sched.Gate         = (*monitors.Gate)(nil)
	_ sched.Catalog      = (*plugins.Catalog)(nil)
	_ supervisor.Catalog = (*specs)(nil)
	_ api.Jobs           = intake{}
	_ api.Workers        = (*supervisor.Supervisor)(nil)
	_ api.Lifecycle      = (*sched.Scheduler)(nil)
	_ api.Plugins        = (*plugins.Catalog)(nil)
	_ api.Machine        = machine{}
)

// asMain in the environment makes the test binary be cjmd.
const asMain = "CJMD_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if code, ok := reexec.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	if code, ok := nvidia.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	if os.Getenv(asMain) != "" {
		os.Unsetenv(asMain) // not for the configuration, nor for workers
		main()
	}
	goleak.VerifyTestMain(m)
}

// output collects what a daemon says and wakes who waits for a word of it.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer  // guarded by mu
	more chan struct{} // guarded by mu; closed at the next write
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// wait returns once the output has word.
func (o *output) wait(t *testing.T, word string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		o.mu.Lock()
		text, more := o.text.String(), o.more
		o.mu.Unlock()
		if strings.Contains(text, word) {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("never said %q:\n%s", word, text)
		}
	}
}

// home is a private directory with a short path (it holds a socket), and the
// environment of somebody who lives there.
func home(t *testing.T) (dir string, env []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cjmd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir, []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
}

// served is a daemon that runs inside the test.
type served struct {
	dir    string
	log    *output
	client *http.Client // over its socket
	stop   context.CancelFunc
	code   chan int
}

// serve runs the daemon until the test ends; more flags follow its own.
func serve(t *testing.T, more ...string) *served {
	t.Helper()
	dir, env := home(t)
	return serveIn(t, dir, env, more...)
}

func serveIn(t *testing.T, dir string, env []string, more ...string) *served {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	d := &served{dir: dir, log: newOutput(), client: clientOf(t, filepath.Join(dir, "state/run/cjmd.sock")), stop: stop, code: make(chan int, 1)}
	args := append([]string{"serve", "--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0"}, more...)
	go func() { d.code <- run(ctx, args, env, d.log, d.log) }()
	t.Cleanup(func() {
		stop()
		d.client.CloseIdleConnections()
		select {
		case code := <-d.code:
			if code != 0 {
				t.Errorf("exit code %d:\n%s", code, d.log)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("did not stop:\n%s", d.log)
		}
	})
	d.log.wait(t, `"msg":"serving"`)
	return d
}

func clientOf(t *testing.T, socket string) *http.Client {
	t.Helper()
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

// do returns status and body of one request.
func (d *served) do(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	return request(t, d.client, method, path, body)
}

func request(t *testing.T, c *http.Client, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b.String()
}

// once runs a command line that ends by itself.
func once(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	code = run(ctx, args, env, &out, &errs)
	return code, out.String(), errs.String()
}

// assembled is a daemon that is built and not yet run.
func assembled(t *testing.T, more ...string) *daemonParts {
	t.Helper()
	dir, env := home(t)
	env = append(env, more...)
	cfg, err := config.Load(config.Options{Env: append(env, "CJMD_STATE_DIR="+filepath.Join(dir, "state"), "CJMD_SERVER_LISTEN=127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	d, err := assemble(t.Context(), cfg, env, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	d.level = zap.NewAtomicLevel()
	d.loadConfig = func() (*config.Config, error) { return cfg, nil }
	return d
}
