// Package simserve lets the real daemon serve a simulated machine: a Driver
// stands where the driver of an accelerator would be, and Worker is a real
// process that sleeps where a plugin would work and asks the driver for memory.
// So the daemon's monitor, supervisor, ledger, API and dashboards can be tried
// on a box without an accelerator. Start with Machine (machine.go), then driver.go
// for what is said over the driver's socket and worker.go for the process.
package simserve

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/simtest"
	"github.com/cjmd/cjmd/internal/sim"
)

// Operations of a Request.
const (
	opLoad    = "load"    // first, once
	opRun     = "run"     // answered twice: when it has begun, when it has ended
	opCancel  = "cancel"  // not answered
	opRelease = "release" // gives cached memory back
	opUsage   = "usage"
)

// Request is one line of a worker to the driver.
type Request struct {
	Op      string  `json:"op"`
	Plugin  string  `json:"plugin,omitempty"`
	Name    string  `json:"name,omitempty"` // the instance
	Devices string  `json:"devices,omitempty"`
	Call    string  `json:"call,omitempty"`
	Seconds float64 `json:"seconds,omitempty"` // instead of the trace's run time
}

// Answer is one line of the driver.
type Answer struct {
	Op      string           `json:"op"`
	Call    string           `json:"call,omitempty"`
	Begun   bool             `json:"begun,omitempty"` // the run has begun and takes Seconds
	Seconds float64          `json:"seconds,omitempty"`
	Error   string           `json:"error,omitempty"`
	OOM     bool             `json:"oom,omitempty"`
	Stopped bool             `json:"stopped,omitempty"` // because of a cancel
	Devices map[string]int64 `json:"devices,omitempty"` // bytes held
	Deaf    bool             `json:"deaf,omitempty"`    // the worker ignores polite requests to end
}

// driver serves the processes that stand for the model's workers.
type driver struct {
	m  *sim.Machine
	t  *simtest.Trace
	ln *net.UnixListener
}

// serve answers workers until ctx ends and returns when all connections are closed.
func (d *driver) serve(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = d.ln.Close() })
	defer stop()
	for {
		conn, err := d.ln.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot accept simulated workers: %w", err)
		}
		c := &connection{d: d, conn: conn}
		end := context.AfterFunc(ctx, func() { _ = conn.Close() })
		wg.Go(func() {
			defer end()
			c.serve()
		})
	}
}

// connection is one worker's process.
type connection struct {
	d    *driver
	conn *net.UnixConn
	proc *sim.Worker // of the reading goroutine

	mu sync.Mutex // one line at a time
}

// serve reads requests until the process is gone; its memory then comes back
// when the model says so.
func (c *connection) serve() {
	defer func() {
		_ = c.conn.Close()
		if c.proc != nil {
			c.proc.Kill()
		}
	}()
	in := bufio.NewScanner(c.conn)
	for in.Scan() {
		var r Request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			return
		}
		if err := c.handle(&r); err != nil {
			c.tell(Answer{Op: r.Op, Call: r.Call, Error: err.Error()})
		}
	}
}

func (c *connection) tell(a Answer) {
	line, err := json.Marshal(a)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.conn.Write(append(line, '\n')) // a worker that is gone is noticed by the reader
}

func (c *connection) handle(r *Request) error {
	if c.proc == nil && r.Op != opLoad {
		return errors.New("nothing is loaded")
	}
	switch r.Op {
	case opLoad:
		return c.load(r)
	case opRun:
		return c.run(r)
	case opCancel:
		c.proc.Cancel(r.Call, 0)
	case opRelease:
		c.proc.Release()
		c.tell(Answer{Op: r.Op})
	case opUsage:
		c.tell(c.usage())
	default:
		return fmt.Errorf("there is no operation %q", r.Op)
	}
	return nil
}

func (c *connection) usage() Answer {
	a := Answer{Op: opUsage, Devices: make(map[string]int64)}
	for id, n := range c.proc.VRAM() {
		a.Devices[string(id)] = int64(n)
	}
	return a
}

func (c *connection) load(r *Request) error {
	spec, ok := c.d.t.Plugins[r.Plugin]
	if !ok || c.proc != nil {
		return fmt.Errorf("cannot load %q", r.Plugin)
	}
	devices := c.d.devices(r.Devices, spec.Devices)
	proc, err := c.d.m.Start(r.Name, serveProgram(&spec, r.Plugin), devices,
		func(err error) { c.tell(answer(Answer{Op: opLoad, Deaf: spec.IgnoreTerm}, err)) },
		func(error) { _ = c.conn.CloseRead() }) // the process finds out by the end of its calls
	if err != nil {
		return err
	}
	c.proc = proc
	if pid := peer(c.conn); pid > 0 {
		proc.SetPID(pid)
	}
	return nil
}

// serveProgram leaves host memory out: the worker is a real process, and what
// it takes of the host is measured as that of any other.
func serveProgram(p *simtest.PluginSpec, name string) sim.Program {
	prog := p.Program(name)
	prog.ResidentRAM, prog.ExecuteRAM = 0, 0
	return prog
}

func (c *connection) run(r *Request) error {
	d := c.proc.RunTime(r.Call, seconds(r.Seconds))
	err := c.proc.Run(r.Call, d, func(err error) { c.tell(answer(Answer{Op: opRun, Call: r.Call}, err)) })
	if err != nil {
		return err
	}
	c.tell(Answer{Op: opRun, Call: r.Call, Begun: true, Seconds: d.Seconds()})
	return nil
}

// answer adds how something ended.
func answer(a Answer, err error) Answer {
	var memory *sim.MemoryError
	switch {
	case err == nil:
		return a
	case errors.As(err, &memory):
		a.OOM = true
	case errors.Is(err, sim.ErrKilled):
		a.Stopped = true
	}
	a.Error = err.Error()
	return a
}

// devices are those that the worker was placed on; without a placement those
// with the most free memory, as a library would choose.
func (d *driver) devices(placed string, n int) []resource.DeviceID {
	var out []resource.DeviceID
	if n == 0 {
		return nil
	}
	for _, id := range splitList(placed) {
		out = append(out, resource.DeviceID(id))
	}
	for len(out) < n {
		best, most := resource.DeviceID(""), resource.Bytes(-1)
		for _, dev := range d.t.Machine.Devices {
			id := resource.DeviceID(dev.ID)
			taken := false
			for _, have := range out {
				taken = taken || have == id
			}
			if free := d.m.Free(id); !taken && free > most {
				best, most = id, free
			}
		}
		if best == "" {
			return out
		}
		out = append(out, best)
	}
	return out
}

// peer is the process at the other end.
func peer(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
