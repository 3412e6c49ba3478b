package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// joinUpTo is the frame size up to which header and payload are copied into one
// buffer; longer payloads are handed to the kernel where they lie (writev).
const joinUpTo = 64 << 10

// Writer puts frames on a Unix socket, one at a time, whole. Safe from any
// goroutine.
type Writer struct {
	conn   *net.UnixConn
	raw    syscall.RawConn
	limits Limits

	turn    chan struct{} // holds one token; who takes it may write
	pending sync.WaitGroup
	pool    sync.Pool // *[]byte, at most joinUpTo long
}

// NewWriter writes frames to conn. The owner of conn closes it and then calls Wait.
func NewWriter(conn *net.UnixConn, limits Limits) (*Writer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot write frames: %w", err)
	}
	w := &Writer{conn: conn, raw: raw, limits: limits.OrDefaults(), turn: make(chan struct{}, 1)}
	w.pool.New = func() any { b := make([]byte, 0, 4<<10); return &b }
	w.turn <- struct{}{}
	return w, nil
}

// Send writes one frame; the payload is the parts one after the other. It makes
// one system call when the socket's buffer has room, which is nearly always.
// Otherwise the rest goes out in the background and Send waits for it as long as
// ctx allows: a frame that was begun is always finished. So the parts must not
// be changed after Send. begun says whether the peer may have seen any of it.
// Errors: *LimitError, the cause of ctx, or that of the socket.
func (w *Writer) Send(ctx context.Context, header []byte, parts ...[]byte) (begun bool, err error) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if err := w.limits.check(len(header), n); err != nil {
		return false, err
	}
	select {
	case <-w.turn:
	default:
		select {
		case <-w.turn:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	buf := w.pool.Get().(*[]byte)
	frame := w.frame((*buf)[:0], header, parts, n)
	rest, err := w.try(frame)
	if err != nil || len(rest) == 0 {
		w.give(buf, frame)
		w.turn <- struct{}{}
		return true, err
	}
	done := make(chan error, 1)
	w.pending.Add(1)
	go func() {
		defer w.pending.Done()
		_, err := rest.WriteTo(w.conn)
		w.turn <- struct{}{}
		done <- err
	}()
	select {
	case err := <-done:
		return true, err
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
}

// Wait returns when nothing is written in the background any more.
func (w *Writer) Wait() { w.pending.Wait() }

func (l Limits) check(header, payload int) error {
	if header > l.MaxHeader {
		return &LimitError{What: "header", Len: header, Max: l.MaxHeader}
	}
	if payload > l.MaxPayload {
		return &LimitError{What: "payload", Len: payload, Max: l.MaxPayload}
	}
	return nil
}

// frame lays out one frame: in buf alone when it is short, else header in buf
// and the payload parts where they are.
func (w *Writer) frame(buf, header []byte, parts [][]byte, payloadLen int) net.Buffers {
	buf = AppendPrefix(buf, len(header), payloadLen)
	buf = append(buf, header...)
	if len(buf)+payloadLen <= joinUpTo {
		for _, p := range parts {
			buf = append(buf, p...)
		}
		return net.Buffers{buf}
	}
	frame := make(net.Buffers, 1, 1+len(parts))
	frame[0] = buf
	for _, p := range parts {
		if len(p) > 0 {
			frame = append(frame, p)
		}
	}
	return frame
}

// give returns a buffer to the pool, in the size it grew to.
func (w *Writer) give(buf *[]byte, frame net.Buffers) {
	if b := frame[0]; cap(b) <= 2*joinUpTo {
		*buf = b[:0]
		w.pool.Put(buf)
	}
}

// try writes what the socket takes at once and returns what it did not.
func (w *Writer) try(frame net.Buffers) (rest net.Buffers, err error) {
	n := 0
	cerr := w.raw.Write(func(fd uintptr) bool {
		for {
			if len(frame) == 1 {
				n, err = unix.Write(int(fd), frame[0])
			} else {
				n, err = unix.Writev(int(fd), frame)
			}
			if !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
	if cerr != nil {
		return nil, cerr
	}
	if errors.Is(err, unix.EAGAIN) {
		return frame, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot write to the worker: %w", err)
	}
	i := 0
	for i < len(frame) && n >= len(frame[i]) {
		n -= len(frame[i])
		i++
	}
	if i == len(frame) {
		return nil, nil
	}
	rest = append(net.Buffers{frame[i][n:]}, frame[i+1:]...)
	return rest, nil
}

// AppendPrefix appends the two lengths.
func AppendPrefix(dst []byte, header, payload int) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(header))
	return binary.BigEndian.AppendUint32(dst, uint32(payload))
}

// AppendFrame appends a whole frame, for tools and tests; it checks no limit.
func AppendFrame(dst, header, payload []byte) []byte {
	dst = AppendPrefix(dst, len(header), len(payload))
	dst = append(dst, header...)
	return append(dst, payload...)
}
