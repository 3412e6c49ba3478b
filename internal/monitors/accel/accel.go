// Package accel holds what the monitors of accelerators share: the host's part
// of their snapshots, which the cpu monitor reads, and the command lines of
// processes. Run is called by a monitor's own Run, in its goroutine.
package accel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/resource"
)

// Reading is one look at the accelerators of a vendor.
type Reading struct {
	Vendor    string
	Devices   []resource.Device
	Processes []resource.Process
	Details   map[string]any
}

// Read takes one sample. It is called from one goroutine, once per reading of
// the host, which it gets for devices that share the host's memory.
type Read func(ctx context.Context, host resource.Host) (Reading, error)

// Run sends snapshots signed name: the host as host sees it, at its pace, with
// the accelerators that read finds in that moment. It ends with ctx or with the
// first error of either, and leaves nothing of host running.
func Run(ctx context.Context, name string, host monitors.Monitor, read Read, out chan<- resource.Snapshot) error {
	ctx, cancel := context.WithCancel(ctx)
	hosts, ended := make(chan resource.Snapshot), make(chan error, 1)
	go func() { ended <- guarded(ctx, host, hosts) }()
	defer func() {
		cancel()
		<-ended
	}()
	for {
		var s resource.Snapshot
		select {
		case s = <-hosts:
		case err := <-ended:
			ended <- err // for the deferred wait
			if err == nil {
				err = fmt.Errorf("cannot read the host: monitor %q ended", host.Name())
			}
			return err
		}
		r, err := read(ctx, s.Host)
		if err != nil {
			return err
		}
		s.At, s.Monitor = time.Now(), name
		s.GPUVendor, s.Devices, s.Processes = r.Vendor, r.Devices, r.Processes
		if s.Details == nil {
			s.Details = make(map[string]any, len(r.Details))
		}
		for k, v := range r.Details {
			s.Details[k] = v
		}
		select {
		case out <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// guarded runs host in a goroutine of ours, where a panic would end the daemon.
func guarded(ctx context.Context, host monitors.Monitor, out chan<- resource.Snapshot) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot read the host: monitor %q panicked: %v", host.Name(), p)
		}
	}()
	return host.Run(ctx, out)
}

// maxCommand is how much of a command line is kept, as in the Python system.
const maxCommand = 120

// Command is the beginning of a process' command line, or its short name when
// it has none; "" when it is gone or not ours to read. root is where /proc is.
func Command(root string, pid int) string {
	dir := filepath.Join(root, "proc", strconv.Itoa(pid))
	b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return ""
	}
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 {
		if b, err = os.ReadFile(filepath.Join(dir, "comm")); err != nil {
			return ""
		}
	}
	text := string(bytes.TrimSpace(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
	if len(text) <= maxCommand {
		return text
	}
	cut := maxCommand
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut]
}
