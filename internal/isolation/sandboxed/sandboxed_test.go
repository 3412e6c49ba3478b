package sandboxed_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/reexec"
	"github.com/cjmd/cjmd/internal/isolation/sandboxed"
	"github.com/cjmd/cjmd/internal/isolation/tree"
)

func TestMain(m *testing.M) {
	if code, ok := reexec.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// house is a machine's files as a daemon has them: its state with a secret, one
// worker's own directory, one that all share, code that a worker may read.
type house struct {
	state, own, other, shared, code string
	tier                            isolation.Tier
}

func newHouse(t *testing.T) *house {
	t.Helper()
	state := t.TempDir()
	h := &house{state: state}
	for name, dir := range map[string]*string{"own": &h.own, "other": &h.other, "shared": &h.shared, "code": &h.code} {
		*dir = filepath.Join(state, name)
		if err := os.Mkdir(*dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(*dir, "file"), []byte(name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(h.code, "file"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "secret"), []byte("secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	host, err := tree.New(tree.Options{ReexecEnv: []string{"GORACE=atexit_sleep_ms=0"}, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	h.tier = sandboxed.New(host, sandboxed.Options{Hide: []string{state}})
	if err := h.tier.Probe(t.Context()); err != nil {
		t.Skip(err)
	}
	return h
}

func (h *house) view() isolation.View {
	return isolation.View{Own: []string{h.own}, Shared: []string{h.shared}, Read: []string{h.code}}
}

// say runs a script inside and returns what it printed.
func (h *house) say(t *testing.T, v isolation.View, script string) (string, []isolation.Fact) {
	t.Helper()
	sb, err := h.tier.Prepare(t.Context(), isolation.Spec{Name: "worker.1", View: v})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	stdin, goOn, err := os.Pipe() // the worker waits for hello, while its limits are set
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("sh", "-c", "read go\n"+script)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, stdin, w, w, h.own
	err = sb.Start(cmd)
	w.Close()
	stdin.Close()
	if err != nil {
		goOn.Close()
		t.Fatal(err)
	}
	report := sb.Report()
	if _, err := goOn.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	goOn.Close()
	said, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := sb.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	return string(said), report
}

// asWho runs the test as it is and, where that is root, again as an ordinary
// user, who gets namespaces by a user namespace.
func asWho(t *testing.T, test func(t *testing.T)) {
	const nobody, key = 65534, "CJM_TEST_AS_NOBODY"
	if os.Getenv(key) != "" || os.Geteuid() != 0 {
		test(t)
		return
	}
	t.Run("root", test)
	t.Run("nobody", func(t *testing.T) {
		tmp, err := os.MkdirTemp("", "nobody")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(tmp)
		if err := os.Chown(tmp, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^"+strings.Split(t.Name(), "/")[0]+"$", "-test.v")
		cmd.Dir, cmd.Env = tmp, append(os.Environ(), key+"=1", "TMPDIR="+tmp, "HOME="+tmp)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if strings.Contains(string(out), "--- SKIP") {
			t.Skipf("%s", out)
		}
	})
}

func TestSandbox_StopsWhatAPluginIsNotFor(t *testing.T) {
	asWho(t, func(t *testing.T) {
		h := newHouse(t)
		// A listener on the host's loopback and a process of the host to aim at.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		v := h.view()
		v.Network = "none"
		for name, c := range map[string]struct{ script, want string }{
			"writes into the system":           {`touch /usr/x /etc/x /var/x /x 2>/dev/null; ls /usr/x /etc/x /var/x /x 2>/dev/null | wc -l`, "0"},
			"writes into its code":             {fmt.Sprintf(`cat %s/file; echo x 2>/dev/null > %[1]s/file || echo no`, h.code), "code\nno"},
			"reads the daemon's state":         {fmt.Sprintf(`cat %s/secret 2>/dev/null || echo no`, h.state), "no"},
			"reads another worker's directory": {fmt.Sprintf(`cat %s/file 2>/dev/null || echo no`, h.other), "no"},
			"reads homes":                      {`ls -A /home /root 2>/dev/null | grep -v : | grep -c .`, "0"},
			"sees processes":                   {`set -- /proc/[0-9]*; echo $#`, "2"}, // the shim and the shell
			"signals the host":                 {fmt.Sprintf(`kill -0 %d 2>/dev/null || echo no`, os.Getpid()), "no"},
			"makes a user namespace":           {`unshare -U true 2>/dev/null || echo no`, "no"},
			"mounts":                           {`mount -t tmpfs x /tmp 2>/dev/null || echo no`, "no"},
			"undoes a mount":                   {fmt.Sprintf(`umount -l %s 2>/dev/null || echo no`, h.state), "no"},
			"makes a device node":              {`mknod /tmp/d c 1 3 2>/dev/null || echo no`, "no"},
			"sees other devices":               {`ls -A /dev | tr '\n' ' '`, "fd full null ptmx pts random shm stderr stdin stdout urandom zero "},
			"moves out of its cgroup":          {`for f in $(find /sys/fs/cgroup -name cgroup.procs 2>/dev/null | head -3); do echo $$ 2>/dev/null > $f; done; echo tried`, "tried"},
			"connects to the host":             {fmt.Sprintf(`bash -c 'exec 3<>/dev/tcp/127.0.0.1/%s' 2>/dev/null || echo no`, port), "no"},
			"keeps capabilities":               {`grep -c 'Cap\(Eff\|Prm\|Bnd\|Amb\):	0000000000000000' /proc/self/status`, "4"},
		} {
			t.Run(name, func(t *testing.T) {
				said, _ := h.say(t, v, c.script)
				if got := strings.TrimSuffix(said, "\n"); strings.Replace(got, " tty", "", 1) != c.want && got != c.want {
					t.Errorf("said %q, want %q", got, c.want)
				}
			})
		}
	})
}

func TestSandbox_LeavesWhatAPluginNeeds(t *testing.T) {
	asWho(t, func(t *testing.T) {
		h := newHouse(t)
		v := h.view()
		v.Network = "loopback"
		said, report := h.say(t, v, strings.Join([]string{
			`set -e`,
			`cat file; echo mine > new; mkdir sub; mv new sub/moved; cat sub/moved`, // its directory, renames across directories
			fmt.Sprintf(`echo all > %s/new; cat %[1]s/new`, h.shared),
			`echo tmp > /tmp/x; chmod +x /tmp/x; printf '#!/bin/sh\necho runs\n' > /tmp/x; /tmp/x`, // JIT compilers run what they put there
			`echo shm > /dev/shm/x; cat /dev/shm/x`,
			`echo null > /dev/null; head -c 4 /dev/urandom | wc -c; head -c 3 /dev/zero | wc -c`,
			`echo renamed > /proc/self/task/$$/comm; cat /proc/self/task/$$/comm 2>/dev/null || cat /proc/$$/comm`, // CUDA names its threads
			`cat /proc/net/dev | grep -c lo:`,
			`python3 -c 'import multiprocessing, socket; s = socket.create_server(("127.0.0.1", 0)); socket.create_connection(s.getsockname()); multiprocessing.Lock(); print("python")' 2>&1`,
		}, "\n"))
		want := "own\nmine\nall\nruns\nshm\n4\n3\nrenamed\n\n1\n"
		if !strings.HasPrefix(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
		// An interpreter in somebody's home is hidden, and not granted here.
		if rest := strings.TrimPrefix(said, want); rest != "python\n" && !strings.Contains(rest, "not found") {
			t.Errorf("python said %q", rest)
		}
		for _, f := range report {
			if f.Requested && !f.InForce {
				t.Errorf("not in force: %+v", f)
			}
		}
		if text, err := os.ReadFile(filepath.Join(h.own, "sub/moved")); err != nil || string(text) != "mine\n" {
			t.Errorf("from outside: %q, %v", text, err)
		}
		if _, err := os.Stat("/tmp/x"); err == nil {
			t.Error("the worker's /tmp is the host's")
		}
	})
}

// A grant of a directory above the daemon's state does not bring the state back.
func TestSandbox_WhatIsHiddenBelowAGrantStaysHidden(t *testing.T) {
	asWho(t, func(t *testing.T) {
		h := newHouse(t)
		v := h.view()
		above := filepath.Dir(h.state)
		if err := os.Chmod(above, 0o755); err != nil { // the worker has a user of its own
			t.Fatal(err)
		}
		v.Read = append(v.Read, above)
		said, _ := h.say(t, v, fmt.Sprintf(`cat %s/secret 2>/dev/null || echo no; cat %s/file; cat file`, h.state, h.code))
		if said != "no\ncode\nown\n" {
			t.Errorf("said %q", said)
		}
	})
}

func TestSandbox_EachWorkerHasAUserOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the daemon is not root: workers have its user")
	}
	h := newHouse(t)
	said, _ := h.say(t, h.view(), `id -u; id -g; stat -c %u .; cat /etc/shadow 2>/dev/null || echo no`)
	lines := strings.Fields(said)
	if len(lines) != 4 || lines[3] != "no" {
		t.Fatalf("said %q", said)
	}
	uid, err := strconv.Atoi(lines[0])
	if err != nil || uid < 1_900_000_000 || lines[0] != lines[2] {
		t.Errorf("user %s in a directory of %s", lines[0], lines[2])
	}
}

// Links that a worker put into its directory are not followed when the directory
// is given to it again.
func TestSandbox_GivingADirectoryFollowsNoLink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("nothing is given without root")
	}
	h := newHouse(t)
	if err := os.Symlink(filepath.Join(h.state, "secret"), filepath.Join(h.own, "link")); err != nil {
		t.Fatal(err)
	}
	h.say(t, h.view(), "true")
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(h.state, "secret"), &st); err != nil || st.Uid != 0 {
		t.Errorf("the secret belongs to %d now (%v)", st.Uid, err)
	}
}

func TestSandbox_AGrantThatIsNotThereFailsTheStart(t *testing.T) {
	h := newHouse(t)
	v := h.view()
	v.Read = append(v.Read, filepath.Join(h.state, "nothing"))
	sb, err := h.tier.Prepare(t.Context(), isolation.Spec{Name: "worker.1", View: v})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	cmd := exec.Command("true")
	err = sb.Start(cmd)
	if err == nil || !strings.Contains(err.Error(), "cannot grant "+v.Read[1]) {
		t.Errorf("got %v", err)
	}
	if err := sb.Kill(t.Context()); err != nil {
		t.Error(err)
	}
}

// The start of a sandbox beside that of a bare process.
func BenchmarkStart(b *testing.B) {
	host, err := tree.New(tree.Options{StateDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	tier := sandboxed.New(host, sandboxed.Options{})
	if err := tier.Probe(b.Context()); err != nil {
		b.Skip(err)
	}
	for b.Loop() {
		sb, err := tier.Prepare(b.Context(), isolation.Spec{Name: "bench.1"})
		if err != nil {
			b.Fatal(err)
		}
		if err := sb.Start(exec.Command("true")); err != nil {
			b.Fatal(err)
		}
		if _, err := sb.Wait(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := sb.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := sb.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
