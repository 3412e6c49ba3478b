package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/client"
)

// daemon is a running cjmd of ours.
type daemon struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // why it ended; read after ended
	log   string
}

// marker tells the processes of one run from all others; workers inherit it.
func marker(dir string) string { return "CUDA_CJMD_CHECKS=" + filepath.Base(dir) }

// startDaemon starts cjmd and waits until it takes jobs.
func startDaemon(ctx context.Context, o options, dir string, api *client.API) (_ *daemon, err error) {
	d := &daemon{ended: make(chan struct{}), log: filepath.Join(dir, "cjmd.log")}
	out, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot make a log file: %w", err)
	}
	defer func() { _ = out.Close() }()
	d.cmd = exec.Command(o.cjmd, "--config="+o.config, "--state-dir="+filepath.Join(dir, "state"), "--socket="+filepath.Join(dir, "s"),
		"--plugins="+filepath.Join(dir, "plugins"))
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CJMD_") && !strings.HasPrefix(kv, "CUDA_VISIBLE_DEVICES=") {
			d.cmd.Env = append(d.cmd.Env, kv)
		}
	}
	d.cmd.Env = append(d.cmd.Env, marker(dir))
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = filepath.Join(dir, "plugins"), out, out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start cjmd: %w", err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	err = until(ctx, 30*time.Second, "cjmd to be ready", func() (bool, error) {
		select {
		case <-d.ended:
			return false, fmt.Errorf("cjmd ended while it started: %w\n%s", d.err, d.tail())
		default:
		}
		resp, err := api.Do(ctx, http.MethodGet, "/readyz", nil, nil)
		if err != nil {
			return false, nil // not there yet
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK, nil
	})
	if err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// stop ends the daemon politely, then by force, and waits for it. Idempotent.
func (d *daemon) stop() error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, 20 * time.Second}, {syscall.SIGTERM, 20 * time.Second}, {syscall.SIGKILL, 10 * time.Second}} {
		select {
		case <-d.ended:
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

// kill ends the daemon at once, as a crash does.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill() // it may just have ended
	<-d.ended
}

func (d *daemon) tail() string {
	text, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// left lists the processes of this run that live, the daemon's helpers and
// workers: their environment has the marker.
func left(dir string) ([]int, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes: %w", err)
	}
	var found []int
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", n.Name(), "environ"))
		if err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+marker(dir)+"\x00")) {
			found = append(found, pid)
		}
	}
	return found, nil
}

// until asks again every 20 ms until the answer is yes.
func until(ctx context.Context, patience time.Duration, what string, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := ask()
		if err != nil || ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s: %w", patience, what, context.Cause(ctx))
		}
	}
}

// call makes one request. body is marshalled unless nil; into is unmarshalled unless nil.
func call(ctx context.Context, api *client.API, method, path string, body, into any) error {
	var r io.Reader
	header := http.Header{}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("cannot encode a request: %w", err)
		}
		r = bytes.NewReader(text)
		header.Set("Content-Type", "application/json")
	}
	resp, err := api.Do(ctx, method, path, r, header)
	if err == nil {
		err = client.Check(resp)
	}
	if err != nil {
		return fmt.Errorf("cannot %s %s: %w", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(bufio.NewReader(resp.Body)).Decode(into); err != nil {
		return fmt.Errorf("cannot read the answer to %s %s: %w", method, path, err)
	}
	return nil
}
