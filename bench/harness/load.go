package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Load is what a number of clients achieved in one repeat.
type Load struct {
	Rate float64 // answers per second, of all clients together
	P50  time.Duration
	P99  time.Duration
}

// Target is where a load goes.
type Target struct {
	Network, Address string
	Request          []byte // prepared by Request
	Statuses         []int  // the answers that count; any other ends the load
}

// RunLoad lets clients send the request over and over for d, each on a
// connection of its own and each its next one when it has its answer. One
// thread serves all of them with epoll, as the tools that load web servers do: a
// goroutine a client took as much of a small machine as the request itself.
func RunLoad(ctx context.Context, clients int, d time.Duration, t Target) (_ Load, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return Load{}, fmt.Errorf("cannot make an epoll: %w", err)
	}
	defer func() { _ = unix.Close(poll) }()
	l := &loader{t: t, poll: poll, conns: make([]loadConn, clients), buf: make([]byte, 256<<10)}
	defer l.close()
	for i := range l.conns {
		if err := l.open(ctx, i); err != nil {
			return Load{}, err
		}
	}
	return l.run(ctx, d)
}

// loader belongs to one call of RunLoad.
type loader struct {
	t     Target
	poll  int
	conns []loadConn
	buf   []byte
	laps  []time.Duration
	until time.Time
	left  int // clients that have not ended
}

// loadConn is one client.
type loadConn struct {
	file *os.File
	fd   int
	out  []byte // what of the request is not sent yet
	in   []byte // the answer so far
	sent time.Time
}

func (l *loader) open(ctx context.Context, i int) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, l.t.Network, l.t.Address)
	if err != nil {
		return fmt.Errorf("cannot reach the daemon: %w", err)
	}
	defer func() { _ = conn.Close() }() // the file has its own descriptor
	f, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return fmt.Errorf("cannot use a %s connection", l.t.Network)
	}
	file, err := f.File()
	if err != nil {
		return fmt.Errorf("cannot use a connection: %w", err)
	}
	l.conns[i] = loadConn{file: file, fd: int(file.Fd())}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
	if err := errors.Join(unix.SetNonblock(l.conns[i].fd, true), unix.EpollCtl(l.poll, unix.EPOLL_CTL_ADD, l.conns[i].fd, &ev)); err != nil {
		return fmt.Errorf("cannot watch a connection: %w", err)
	}
	return nil
}

func (l *loader) close() {
	for _, c := range l.conns {
		if c.file != nil {
			_ = c.file.Close()
		}
	}
}

// answerPatience is how long no answer at all may come.
const answerPatience = 30 * time.Second

func (l *loader) run(ctx context.Context, d time.Duration) (Load, error) {
	begin := time.Now()
	l.until, l.left = begin.Add(d), len(l.conns)
	for i := range l.conns {
		if err := l.send(i); err != nil {
			return Load{}, err
		}
	}
	events, heard := make([]unix.EpollEvent, len(l.conns)), begin
	for l.left > 0 {
		n, err := unix.EpollWait(l.poll, events, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return Load{}, fmt.Errorf("cannot wait for answers: %w", err)
		}
		if ctx.Err() != nil {
			return Load{}, context.Cause(ctx)
		}
		if n > 0 {
			heard = time.Now()
		} else if time.Since(heard) > answerPatience {
			return Load{}, fmt.Errorf("no answer for %s", answerPatience)
		}
		for _, ev := range events[:max(n, 0)] {
			if err := l.serve(int(ev.Fd), ev.Events); err != nil {
				return Load{}, err
			}
		}
	}
	took := time.Since(begin)
	return Load{Rate: float64(len(l.laps)) / took.Seconds(), P50: Quantile(l.laps, 0.5), P99: Quantile(l.laps, 0.99)}, nil
}

func (l *loader) send(i int) error {
	c := &l.conns[i]
	c.out, c.in, c.sent = l.t.Request, c.in[:0], time.Now()
	return l.push(i)
}

// push writes as much as the socket takes and asks to be told when it takes more.
func (l *loader) push(i int) error {
	c := &l.conns[i]
	whole := len(c.out) == len(l.t.Request)
	n, err := unix.Write(c.fd, c.out)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("cannot send a request: %w", err)
	}
	c.out = c.out[max(n, 0):]
	if whole && len(c.out) == 0 {
		return nil
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
	if len(c.out) > 0 {
		ev.Events |= unix.EPOLLOUT
	}
	if err := unix.EpollCtl(l.poll, unix.EPOLL_CTL_MOD, c.fd, &ev); err != nil {
		return fmt.Errorf("cannot watch a connection: %w", err)
	}
	return nil
}

func (l *loader) serve(i int, ready uint32) error {
	c := &l.conns[i]
	if ready&unix.EPOLLOUT != 0 && len(c.out) > 0 {
		return l.push(i)
	}
	n, err := unix.Read(c.fd, l.buf)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err != nil:
		return fmt.Errorf("cannot read an answer: %w", err)
	case n == 0:
		return errors.New("the daemon closed a connection")
	}
	c.in = append(c.in, l.buf[:n]...)
	status, complete, err := parseAnswer(c.in)
	if err != nil || !complete {
		return err
	}
	if !slices.Contains(l.t.Statuses, status) {
		return &StatusError{Status: status, Body: string(c.in)}
	}
	now := time.Now()
	l.laps = append(l.laps, now.Sub(c.sent))
	if now.Before(l.until) {
		return l.send(i)
	}
	l.left--
	return nil
}

// parseAnswer reads as much of an HTTP/1.1 answer as is needed to know its
// status and whether it is complete. There is never anything behind it.
func parseAnswer(b []byte) (status int, complete bool, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, false, nil
	}
	head, body := b[:end+2], b[end+4:]
	if len(head) < 12 {
		return 0, false, fmt.Errorf("cannot read an answer: it begins with %q", head)
	}
	if status, err = strconv.Atoi(string(head[9:12])); err != nil {
		return 0, false, fmt.Errorf("cannot read an answer: it begins with %q", head[:12])
	}
	const field = "\r\nContent-Length: "
	at := bytes.Index(head, []byte(field))
	if at < 0 { // chunked
		return status, bytes.HasSuffix(body, []byte("\r\n0\r\n\r\n")), nil
	}
	value, _, _ := bytes.Cut(head[at+len(field):], []byte("\r\n"))
	length, err := strconv.Atoi(string(value))
	if err != nil {
		return 0, false, fmt.Errorf("cannot read an answer: %w", err)
	}
	return status, len(body) >= length, nil
}

// MedianLoad takes the medians of several repeats.
func MedianLoad(repeats []Load) Load {
	pick := func(f func(Load) float64) float64 {
		v := make([]float64, len(repeats))
		for i, r := range repeats {
			v[i] = f(r)
		}
		return Median(v)
	}
	return Load{
		Rate: pick(func(l Load) float64 { return l.Rate }),
		P50:  time.Duration(pick(func(l Load) float64 { return float64(l.P50) })),
		P99:  time.Duration(pick(func(l Load) float64 { return float64(l.P99) })),
	}
}

// Repeat runs f several times after one run that does not count.
func Repeat[T any](times int, f func() (T, error)) ([]T, error) {
	out := make([]T, 0, times)
	for i := range times + 1 {
		v, err := f()
		if err != nil {
			return nil, fmt.Errorf("repeat %d: %w", i, err)
		}
		if i > 0 {
			out = append(out, v)
		}
	}
	return out, nil
}
