package harness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// RawWorker is the worker runtime itself, as cjmd starts it, with nothing on
// the other end of its socket but a loop that writes prepared frames and reads
// answers. For one goroutine.
type RawWorker struct {
	Raw
	next    int
	payload []byte
}

// RawWorker starts the runtime and loads the plugin.
func (b *Bench) RawWorker(ctx context.Context, plugin, module, class string, payload []byte) (*RawWorker, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	cmd := exec.CommandContext(ctx, b.Python, "-m", "cjmworker")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+b.sdk+string(os.PathListSeparator)+b.PluginDir(plugin), "PYTHONDONTWRITEBYTECODE=1", "CJM_WORKER_FD=3")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("cannot start the worker runtime: %w", err)
	}
	w := &RawWorker{Raw: Raw{cmd: cmd, conn: ours, r: bufio.NewReaderSize(ours, 64<<10)}, payload: payload}
	hello, err := json.Marshal(map[string]any{"protocol": []int{1}, "instance": plugin, "plugin": plugin, "module": module, "class": class, "concurrency": 1})
	if err == nil {
		err = w.request("hello", hello, []byte("{}"))
	}
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("cannot load a plugin into the worker runtime: %w", err)
	}
	return w, nil
}

// Execute runs one unary call.
func (w *RawWorker) Execute() error {
	n := strconv.Itoa(w.next)
	return w.request("execute", []byte(`{"job":"01K0000000000000000000000`+n+`","attempt":1,"stream":false,"dir":""}`), w.payload)
}

// request sends one request and reads until its answer.
func (w *RawWorker) request(method string, params, payload []byte) error {
	w.next++
	b := append(w.buf[:0], make([]byte, 8)...)
	b = fmt.Appendf(b, `{"jsonrpc":"2.0","id":"%d","method":"%s","params":%s}`, w.next, method, params)
	binary.BigEndian.PutUint32(b, uint32(len(b)-8))
	binary.BigEndian.PutUint32(b[4:], uint32(len(payload)))
	b = append(b, payload...)
	w.buf = b
	if _, err := w.conn.Write(b); err != nil {
		return fmt.Errorf("cannot send to the worker runtime: %w", err)
	}
	for {
		head, err := w.r.Peek(8)
		if err != nil {
			return fmt.Errorf("cannot read from the worker runtime: %w", err)
		}
		header, body := int(binary.BigEndian.Uint32(head)), int(binary.BigEndian.Uint32(head[4:]))
		_, _ = w.r.Discard(8) // what was peeked can be discarded
		if cap(b) < header+body {
			b = make([]byte, header+body)
		}
		b = b[:header+body]
		if _, err := io.ReadFull(w.r, b); err != nil {
			return fmt.Errorf("cannot read from the worker runtime: %w", err)
		}
		switch text := b[:header]; {
		case bytes.Contains(text, []byte(`"method"`)): // a notification, like usage
		case bytes.Contains(text, []byte(`"error"`)):
			return fmt.Errorf("the worker runtime answered %s", text)
		default:
			return nil
		}
	}
}

// Close ends the runtime by closing its socket: it then kills its own group.
func (w *RawWorker) Close() error {
	_ = w.conn.Close()
	_ = w.cmd.Wait() // killed, as it must be
	return nil
}
