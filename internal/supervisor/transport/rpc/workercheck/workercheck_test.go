package workercheck_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/workercheck"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../../../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// goWorker builds the example.
func goWorker(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "worker")
	cmd := exec.Command("go", "build", "-o", bin, "./examples/workers/go")
	cmd.Dir = root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

func check(t *testing.T, command ...string) workercheck.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	rep, err := workercheck.Run(ctx, workercheck.Options{Command: command, Env: os.Environ(), Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	return rep
}

// skips lists the names of the checks that were skipped.
func skips(rep workercheck.Report) []string {
	var names []string
	for _, c := range rep.Checks {
		if c.Status == workercheck.Skip {
			names = append(names, c.Name)
		}
	}
	return names
}

func TestExamples_GoWorkerPassesWhatItOffers(t *testing.T) {
	t.Parallel()
	rep := check(t, goWorker(t))
	if want := []string{"task", "surface"}; !rep.OK() || !slices.Equal(skips(rep), want) {
		t.Fatalf("%d failed, skipped: %v, want %v", rep.Failed, skips(rep), want)
	}
}

func TestExamples_ShellWorkerPassesWhatItOffers(t *testing.T) {
	t.Parallel()
	rep := check(t, "bash", filepath.Join(root(t), "examples/workers/shell/worker.sh"))
	if want := []string{"task", "surface", "cancel-interrupt"}; !rep.OK() || !slices.Equal(skips(rep), want) {
		t.Fatalf("%d failed, skipped: %v, want %v", rep.Failed, skips(rep), want)
	}
}

func TestPythonRuntime_PassesEverything(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on PATH")
	}
	t.Setenv("PYTHONPATH", filepath.Join(root(t), "sdk/python"))
	rep := check(t, python, "-m", "cjmworker")
	if !rep.OK() || rep.Skipped != 0 {
		t.Fatalf("%d failed, skipped: %v", rep.Failed, skips(rep))
	}
}

// status returns the result of one check.
func status(t *testing.T, rep workercheck.Report, name string) workercheck.Check {
	t.Helper()
	for _, c := range rep.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no check %q", name)
	return workercheck.Check{}
}

// brokenWorker is a Python loop that answers hello with the given capabilities
// and everything else by a line of code.
func brokenWorker(capabilities, answer string) []string {
	return []string{"python3", "-S", "-c", `
import os, socket, struct, json, sys, time
s = socket.socket(fileno=int(os.environ["CJM_WORKER_FD"]))
f = s.makefile("rb")
def send(h, p=b""):
    b = json.dumps(dict(h, jsonrpc="2.0")).encode()
    s.sendall(struct.pack(">II", len(b), len(p)) + b + p)
while True:
    head = f.read(8)
    if len(head) < 8: break
    h, n = struct.unpack(">II", head)
    if h > 65536: break
    m, p = json.loads(f.read(h)), f.read(n)
    if m["method"] == "hello":
        send({"id": m["id"], "result": {"protocol": 1, "name": "broken", "version": "1", "capabilities": [` + capabilities + `], "pid": os.getpid(), "runtime": "x"}})
        continue
    ` + answer}
}

func TestRun_FindsWhatIsBroken(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3 on PATH")
	}
	cases := map[string]struct {
		command []string
		check   string
		says    string
	}{
		"does not start to talk":  {[]string{"sh", "-c", "echo no such module >&2; exit 3"}, "ready", "no such module"},
		"talks on stdout":         {[]string{"sh", "-c", "echo ready; exec sleep 5"}, "ready", "within"},
		"wrong result":            {brokenWorker("", `send({"id": m["id"], "result": {}}, b"{}")`), "unary", "the result is"},
		"closes the socket":       {brokenWorker("", `sys.exit(0)`), "unary", "closed its socket"},
		"writes garbage":          {brokenWorker("", `s.sendall(b"Traceback (most recent call last)")`), "unary", "header_too_long"},
		"chunk gap":               {brokenWorker(`"stream"`, "send({'method': 'chunk', 'params': {'job': 'j1', 'n': 2}}, b'2'); send({'id': m['id'], 'result': {'chunks': 1}}, b'200')"), "stream", "n 2, want"},
		"accepts unknown methods": {brokenWorker("", `send({"id": m["id"], "result": {}})`), "unknown-method", "want error -32601"},
		"accepts unknown cancels": {brokenWorker("", `send({"id": m["id"], "result": {"accepted": True}})`), "cancel-unknown", "does not exist was accepted"},
		"runs any task":           {brokenWorker(`"task"`, `send({"id": m["id"], "result": {}}, b"1")`), "task", "of category user_input"},
		"tells no surface":        {brokenWorker(`"surface"`, `send({"id": m["id"], "result": {}}, b"[]")`), "surface", "want an object"},
		"survives the end of the file": {brokenWorker("", `
    send({"id": m["id"], "result": {}})
time.sleep(60)`), "end-of-file", "are left 2s after the end of the file"},
		"fails at shutdown": {brokenWorker("", `send({"id": m["id"], "result": {}}); sys.exit(4)`), "shutdown", "exit status 4"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			rep, err := workercheck.Run(context.Background(), workercheck.Options{
				Command: c.command, Env: os.Environ(), Out: &out, JSON: true, Timeout: 2 * time.Second, Only: []string{c.check},
			})
			if err != nil || rep.OK() {
				t.Fatalf("%+v %v", rep, err)
			}
			if got := status(t, rep, c.check); got.Status != workercheck.Fail || !strings.Contains(got.Seen, c.says) {
				t.Fatalf("%s: %s %q, want a failure that says %q", c.check, got.Status, got.Seen, c.says)
			}
			var again workercheck.Report
			if err := json.Unmarshal(out.Bytes(), &again); err != nil || again.Failed != rep.Failed {
				t.Fatalf("the printed report differs: %v", err)
			}
		})
	}
}

func TestRun_RefusesWhatItCannotStart(t *testing.T) {
	t.Parallel()
	for _, command := range [][]string{nil, {"/no/such/program"}} {
		if _, err := workercheck.Run(context.Background(), workercheck.Options{Command: command}); err == nil {
			t.Fatalf("%v was accepted", command)
		}
	}
	_, err := workercheck.Run(context.Background(), workercheck.Options{Command: []string{"true"}, Only: []string{"unray"}})
	if err == nil || !strings.Contains(err.Error(), "unary") {
		t.Fatalf("a check that does not exist: %v", err)
	}
}
