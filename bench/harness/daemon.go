package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Daemon is a running cjmd of our own, with the plugins of the benchmarks.
type Daemon struct {
	Socket  string
	Address string // loopback TCP
	Dir     string // its state directory
	// ReadyAfter is the time from its start until it said that it takes jobs.
	ReadyAfter time.Duration

	b     *Bench
	more  []string // further directories with manifests
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // why it ended; read after ended
	log   string
}

// Daemon starts cjmd on a new state directory and waits until it is ready. It
// also knows the plugins below the directories more.
func (b *Bench) Daemon(ctx context.Context, more ...string) (*Daemon, error) {
	dir, err := b.TempDir("daemon")
	if err != nil {
		return nil, fmt.Errorf("cannot make a state directory: %w", err)
	}
	plugins, err := os.ReadDir(b.plugins)
	if err != nil {
		return nil, fmt.Errorf("cannot find the plugins of the benchmarks: %w", err)
	}
	for _, p := range plugins { // an environment is a directory with an interpreter
		bin := filepath.Join(dir, "envs", p.Name(), "bin")
		if err := errors.Join(os.MkdirAll(bin, 0o755), os.Symlink(b.Python, filepath.Join(bin, "python"))); err != nil {
			return nil, fmt.Errorf("cannot make an environment: %w", err)
		}
	}
	return b.start(ctx, dir, more)
}

// Restart ends the daemon politely and starts another one on its directory.
func (d *Daemon) Restart(ctx context.Context) (*Daemon, error) {
	if err := d.Stop(); err != nil {
		return nil, err
	}
	return d.b.start(ctx, d.Dir, d.more)
}

func (b *Bench) start(ctx context.Context, dir string, more []string) (*Daemon, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	b.daemons++
	d := &Daemon{b: b, more: more, Dir: dir, Address: address, Socket: filepath.Join(b.dir, "s"+strconv.Itoa(b.daemons)), ended: make(chan struct{}),
		log: filepath.Join(b.dir, "daemon"+strconv.Itoa(b.daemons)+".log")}
	out, err := os.Create(d.log)
	if err != nil {
		return nil, fmt.Errorf("cannot make a log file: %w", err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(b.cjmd, "--state-dir="+dir, "--socket="+d.Socket, "--listen="+address,
		"--plugins="+strings.Join(append([]string{b.plugins}, more...), ","), "--log-format=json")
	// A fast machine submits more in a row than may be pending by default.
	cmd.Env = append(withoutDaemonSettings(os.Environ()), "PYTHONDONTWRITEBYTECODE=1", "CJMD_JOBS_MAX_PENDING=10000000")
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.plugins, out, out // a quiet directory: the working directory is searched for manifests
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start cjmd: %w", err)
	}
	d.cmd = cmd
	go func() {
		d.err = cmd.Wait()
		close(d.ended)
	}()
	if err := d.waitReady(ctx); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	d.ReadyAfter = time.Since(begin)
	return d, nil
}

func withoutDaemonSettings(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, "CJMD_") {
			out = append(out, kv)
		}
	}
	return out
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cannot find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

// startPatience bounds the wait for a daemon that does not come up.
const startPatience = 20 * time.Second

// waitReady asks until the daemon says that it takes jobs. It asks often,
// because the time until then is itself a measurement.
func (d *Daemon) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	ask := Request("GET", "/readyz", "", nil)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		if c, err := Dial(ctx, "unix", d.Socket); err == nil {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			status, body, err := c.Do(ask)
			_ = c.Close()
			if err == nil && status == 200 {
				return nil
			}
			last = string(body)
		}
		select {
		case <-tick.C:
		case <-d.ended:
			return fmt.Errorf("cjmd ended while it started: %w\n%s", d.err, d.tail())
		case <-ctx.Done():
			return fmt.Errorf("cjmd is not ready: %w %s\n%s", context.Cause(ctx), last, d.tail())
		}
	}
}

// Stop ends the daemon politely, then by force, and waits for it. Idempotent.
func (d *Daemon) Stop() error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, 5 * time.Second}, {syscall.SIGTERM, 10 * time.Second}, {syscall.SIGKILL, 10 * time.Second}} {
		select {
		case <-d.ended: // also before the first signal, when it is a second Stop
			return nil
		default:
		}
		_ = d.cmd.Process.Signal(step.signal) // it may just have ended
		select {
		case <-d.ended:
			if step.signal == syscall.SIGKILL {
				return fmt.Errorf("cjmd did not end by itself\n%s", d.tail())
			}
			return nil
		case <-time.After(step.wait):
		}
	}
	return errors.New("cannot end cjmd")
}

func (d *Daemon) tail() string {
	text, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// PID of the daemon.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// RSS is the daemon's resident memory in MiB, without its workers'.
func (d *Daemon) RSS() (float64, error) { return RSS(d.PID()) }

// RSS is the resident memory of a process in MiB.
func RSS(pid int) (float64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, fmt.Errorf("cannot read the memory of %d: %w", pid, err)
	}
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(string(rest)), " kB"))
			return float64(kb) / 1024, err
		}
	}
	return 0, fmt.Errorf("cannot read the memory of %d: no VmRSS", pid)
}

// CPU is the processor time that the daemon has used, without its workers'.
func (d *Daemon) CPU() (time.Duration, error) { return CPU(d.PID()) }

// CPU is the processor time that a process has used.
func CPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, fmt.Errorf("cannot read the processor time of %d: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	var ticks int
	for _, f := range strings.Fields(rest)[11:13] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("cannot read the processor time of %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil // USER_HZ is 100 on every Linux
}

// ExactCPU is CPU to the nanosecond.
func (d *Daemon) ExactCPU() (time.Duration, error) { return ExactCPU(d.PID()) }

// ExactCPU is the processor time that the threads of a process have used, to the
// nanosecond: CPU counts in steps of 10 ms, more than an idle daemon uses in
// seconds. Threads that have ended are not in it.
func ExactCPU(pid int) (time.Duration, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	threads, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("cannot list the threads of %d: %w", pid, err)
	}
	var sum time.Duration
	for _, t := range threads {
		text, err := os.ReadFile(filepath.Join(dir, t.Name(), "schedstat"))
		if err != nil {
			return 0, fmt.Errorf("cannot read the processor time of a thread: %w", err)
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cannot read the processor time of a thread: %w", err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// Token is the admin token, for TCP.
func (d *Daemon) Token() (string, error) {
	text, err := os.ReadFile(filepath.Join(d.Dir, "admin.token"))
	if err != nil {
		return "", fmt.Errorf("cannot read the admin token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// Dial connects over the Unix socket.
func (d *Daemon) Dial(ctx context.Context) (*Client, error) { return Dial(ctx, "unix", d.Socket) }

// Target is a load on the Unix socket.
func (d *Daemon) Target(request []byte, statuses ...int) Target {
	return Target{Network: "unix", Address: d.Socket, Request: request, Statuses: statuses}
}

// Call makes one request, outside of what is measured. body is marshalled
// unless nil; into is unmarshalled unless nil.
func (d *Daemon) Call(ctx context.Context, method, path string, body, into any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return fmt.Errorf("cannot encode a request: %w", err)
		}
	}
	c, err := d.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	status, answer, err := c.Do(Request(method, path, "", text))
	if err != nil {
		return fmt.Errorf("cannot %s %s: %w", method, path, err)
	}
	if status/100 != 2 {
		return fmt.Errorf("cannot %s %s: %w", method, path, &StatusError{Status: status, Body: string(answer)})
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("cannot read the answer to %s %s: %w", method, path, err)
	}
	return nil
}
