package harness

import (
	"bufio"
	"context"
	_ "embed" // peer.py
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

//go:embed peer.py
var peerSource string

// Raw is a plugin's class in a bare Python loop at the other end of a
// socketpair: the most that the interpreter and the socket give. For one
// goroutine.
type Raw struct {
	cmd  *exec.Cmd
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
}

// Raw starts the loop. mode is "calls" or "stream".
func (b *Bench) Raw(ctx context.Context, mode, plugin, module, class string) (*Raw, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	cmd := exec.CommandContext(ctx, b.Python, "-c", peerSource, mode, module, class)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+b.PluginDir(plugin), "PYTHONDONTWRITEBYTECODE=1")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("cannot start the raw loop: %w", err)
	}
	return &Raw{cmd: cmd, conn: ours, r: bufio.NewReaderSize(ours, 64<<10)}, nil
}

func socketpair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "raw"), os.NewFile(uintptr(fds[1]), "raw-peer")
	conn, err := net.FileConn(ours)
	_ = ours.Close() // FileConn has its own copy
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("cannot use a socketpair: %w", err)
	}
	return conn, theirs, nil
}

// Send asks for one call or one stream.
func (r *Raw) Send(kwargs map[string]any) error {
	text, err := json.Marshal(map[string]any{"args": []any{}, "kwargs": kwargs})
	if err != nil {
		return fmt.Errorf("cannot encode a call: %w", err)
	}
	return r.SendText(text)
}

// SendText is Send of what is encoded already.
func (r *Raw) SendText(text []byte) error {
	r.buf = binary.BigEndian.AppendUint32(r.buf[:0], uint32(len(text)))
	r.buf = append(r.buf, text...)
	if _, err := r.conn.Write(r.buf); err != nil {
		return fmt.Errorf("cannot send to the raw loop: %w", err)
	}
	return nil
}

// Receive returns one frame, valid until the next call.
func (r *Raw) Receive() ([]byte, error) {
	head, err := r.r.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("cannot read from the raw loop: %w", err)
	}
	n := int(binary.BigEndian.Uint32(head))
	_, _ = r.r.Discard(4) // what was peeked can be discarded
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	r.buf = r.buf[:n]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		return nil, fmt.Errorf("cannot read from the raw loop: %w", err)
	}
	return r.buf, nil
}

// Close ends the loop by closing its socket.
func (r *Raw) Close() error {
	_ = r.conn.Close()
	return r.cmd.Wait()
}
