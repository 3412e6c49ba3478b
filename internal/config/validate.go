package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// checker gathers problems; each names the key and the way out.
type checker struct {
	c        *Config
	problems []Problem
}

func (k *checker) fail(key, format string, args ...any) {
	k.problems = append(k.problems, Problem{key, k.c.origins[key], fmt.Sprintf(format, args...)})
}

// Validate reports every problem of the values at once (*Error), or nil. It
// looks at no file: whether a path can be used is found out where it is used.
func (c *Config) Validate() error {
	k := &checker{c: c}
	k.dirs()
	k.server()
	k.enums()
	k.jobs()
	k.workers()
	k.rest()
	if len(k.problems) > 0 {
		return &Error{k.problems}
	}
	return nil
}

func (k *checker) dirs() {
	c := k.c
	for _, d := range []struct{ key, path string }{
		{"state_dir", c.StateDir}, {"log_dir", c.LogDir}, {"run_dir", c.RunDir}, {"cache_dir", c.CacheDir},
		{"plugins.data_dir", c.Plugins.DataDir}, {"plugins.models_dir", c.Plugins.ModelsDir},
	} {
		k.absolute(d.key, d.path)
	}
	for _, p := range c.Plugins.Paths {
		if p == "" {
			k.fail("plugins.paths", "holds an empty path; delete it")
		}
	}
	for _, id := range c.Autoload {
		if id == "" {
			k.fail("autoload", "holds an empty name; delete it")
		}
	}
}

func (k *checker) absolute(key, path string) {
	if !filepath.IsAbs(path) {
		k.fail(key, "%q is not an absolute path; begin it with /", path)
	}
}

// maxSocketPath is what sockaddr_un holds, less its terminating NUL.
const maxSocketPath = 107

func (k *checker) server() {
	s := k.c.Server
	if s.Socket != None {
		k.absolute("server.socket", s.Socket)
		if len(s.Socket) > maxSocketPath {
			k.fail("server.socket", "%q is %d bytes long, the system allows %d; choose a shorter run_dir or socket", s.Socket, len(s.Socket), maxSocketPath)
		}
	}
	if mode, err := strconv.ParseUint(s.SocketMode, 8, 32); err != nil || mode > 0o777 || mode&0o600 != 0o600 {
		k.fail("server.socket_mode", "%q must be octal permission bits that let the owner read and write, like \"0660\"", s.SocketMode)
	}
	if s.SocketRole != "admin" && s.SocketRole != "submit" && s.SocketRole != "read" {
		k.fail("server.socket_role", "%q must be admin, submit or read", s.SocketRole)
	}
	if s.Socket == None && s.Listen == None {
		k.fail("server.listen", "socket and listen are both none: nobody could reach the daemon; give one of them")
	}
	if s.Listen != None {
		k.listen(s)
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		k.fail("server.tls_cert", "tls_cert and tls_key belong together; give both or neither")
	}
	for _, f := range []struct{ key, path string }{{"server.tls_cert", s.TLSCert}, {"server.tls_key", s.TLSKey}} {
		if f.path != "" {
			k.absolute(f.key, f.path)
		}
	}
	for _, h := range s.AllowedHosts {
		if h == "" || strings.ContainsAny(h, "/*, ") {
			k.fail("server.allowed_hosts", "%q is no host name; write name or name:port, no scheme and no wildcard", h)
		}
	}
	for _, o := range s.AllowedOrigins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || strings.Contains(o, "*") {
			k.fail("server.allowed_origins", "%q is no origin; write scheme://host[:port], no path and no wildcard", o)
		}
	}
}

func (k *checker) listen(s Server) {
	_, port, err := net.SplitHostPort(s.Listen)
	n, perr := strconv.Atoi(port)
	if err != nil || perr != nil || n < 0 || n > 65535 {
		k.fail("server.listen", "%q must be host:port like 127.0.0.1:8765, or none", s.Listen)
		return
	}
	if err := s.SafeAddress(s.Listen); err != nil {
		k.fail("server.listen", "%v", err)
	}
}

// SafeAddress says why the daemon must not serve TCP on address (host:port), nil
// when it may.
func (s Server) SafeAddress(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if loopback(host) || s.TLSCert != "" || (s.InsecureBind && s.InsecureBindReally) {
		return nil
	}
	return fmt.Errorf("%q can be reached from other machines and tokens would cross the network in clear; "+
		"listen on 127.0.0.1, or give server.tls_cert and server.tls_key, or set both server.insecure_bind and server.insecure_bind_really", address)
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func (k *checker) enums() {
	c := k.c
	for _, e := range []struct {
		key, value string
		allowed    []string
	}{
		{"log.level", c.Log.Level, []string{"debug", "info", "warn", "error"}},
		{"log.format", c.Log.Format, []string{"json", "console", "auto"}},
		{"workers.isolation.tier", c.Workers.Isolation.Tier, []string{"auto", "0", "1", "2", "3"}},
		{"scheduler.policy", c.Scheduler.Policy, []string{"reserve", "permissive", "safety", "queue"}},
	} {
		if !slices.Contains(e.allowed, e.value) {
			k.fail(e.key, "%q is not one of %s", e.value, strings.Join(e.allowed, ", "))
		}
	}
	if c.Monitor.Name == "" {
		k.fail("monitor.name", "is empty; name a monitor like cpu, or say none")
	}
}

func (k *checker) atLeast(key string, have, least int) {
	if have < least {
		k.fail(key, "%d is too small; the least is %d", have, least)
	}
}

func (k *checker) longer(key string, have, least time.Duration) {
	if have < least {
		k.fail(key, "%s is too short; the least is %s", FormatDuration(have), FormatDuration(least))
	}
}

func (k *checker) jobs() {
	j := k.c.Jobs
	k.atLeast("jobs.max_attempts", j.MaxAttempts, 1)
	k.atLeast("jobs.retention.count", j.Retention.Count, 0)
	k.longer("jobs.retention.age", j.Retention.Age, 0)
	k.longer("jobs.queue_timeout", j.QueueTimeout, 0)
	k.longer("jobs.run_timeout", j.RunTimeout, 0)
	k.atLeast("jobs.max_body_mb", j.MaxBodyMB, 1)
	k.atLeast("jobs.max_pending", j.MaxPending, 1)
	k.atLeast("jobs.max_pending_per_submitter", j.MaxPerUser, 0)
	k.atLeast("jobs.files_mb", j.FilesMB, 1)
	k.atLeast("jobs.files_total_mb", j.FilesTotalMB, 1)
	k.longer("jobs.cancel_grace", j.CancelGrace, 0)
	k.longer("jobs.interrupt_grace", j.InterruptGrace, 0)
	k.atLeast("joblog.max_mb", k.c.JobLog.MaxMB, 1)
	if k.c.Limits.BodyMB < j.MaxBodyMB {
		k.fail("limits.body_mb", "%d is smaller than jobs.max_body_mb (%d): such a job could never be submitted; raise it", k.c.Limits.BodyMB, j.MaxBodyMB)
	}
}

func (k *checker) workers() {
	w := k.c.Workers
	k.longer("workers.stall_timeout", w.StallTimeout, time.Second)
	k.longer("workers.start_cap", w.StartCap, time.Second)
	k.longer("workers.stop_grace", w.StopGrace, 0)
	k.longer("workers.drain_grace", w.DrainGrace, 0)
	k.atLeast("workers.log_max_mb", w.LogMaxMB, 1)
	k.atLeast("workers.log_files", w.LogFiles, 0)
	if w.StartCap < w.StallTimeout {
		k.fail("workers.start_cap", "%s is shorter than workers.stall_timeout (%s); raise it or lower that", FormatDuration(w.StartCap), FormatDuration(w.StallTimeout))
	}
}

func (k *checker) rest() {
	c := k.c
	k.longer("scheduler.queue_wait", c.Scheduler.QueueWait, 0)
	k.atLeast("scheduler.ram_margin_mb", c.Scheduler.RAMMarginMB, 0)
	k.atLeast("scheduler.gpu_margin_mb", c.Scheduler.GPUMarginMB, 0)
	k.atLeast("scheduler.max_running_per_submitter", c.Scheduler.MaxRunning, 0)
	k.atLeast("scheduler.cpu_slots", c.Scheduler.CPUSlots, 0)
	k.longer("monitor.interval_busy", c.Monitor.IntervalBusy, 20*time.Millisecond)
	if c.Monitor.IntervalIdle < c.Monitor.IntervalBusy {
		k.fail("monitor.interval_idle", "%s is shorter than monitor.interval_busy (%s); raise it", FormatDuration(c.Monitor.IntervalIdle), FormatDuration(c.Monitor.IntervalBusy))
	}
	if c.Monitor.MaxAge < 2*c.Monitor.IntervalIdle {
		k.fail("monitor.max_age", "%s is shorter than two idle samples (2 x %s): readings would always be stale; raise it", FormatDuration(c.Monitor.MaxAge), FormatDuration(c.Monitor.IntervalIdle))
	}
	k.atLeast("limits.sse_streams", c.Limits.SSEStreams, 1)
	k.atLeast("limits.sse_per_principal", c.Limits.SSEPerPrincipal, 1)
	k.atLeast("limits.body_mb", c.Limits.BodyMB, 1)
	k.atLeast("limits.header_kb", c.Limits.HeaderKB, 4)
	k.atLeast("limits.json_depth", c.Limits.JSONDepth, 4)
}
